//! Webhooks and batches of the real program, by its command line, through a crash of the server.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use deployment::{Deployment, eventually, said};
use serde_json::Value;

/// A program that takes everything it is told.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let got = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&got);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || take(&stream, &kept));
            }
        });
        Self { url, got }
    }

    /// What has come of a type, by its place in the log.
    fn sequences(&self, kind: &str) -> BTreeSet<u64> {
        let got = self.got.lock().expect("no thread panicked");
        got.iter()
            .filter(|body| body["type"] == kind)
            .filter_map(|body| body["data"]["sequence"].as_u64())
            .collect()
    }
}

/// Answers requests on a connection until it ends.
fn take(stream: &TcpStream, kept: &Mutex<Vec<Value>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(given) = line.strip_prefix("content-length:") {
                length = given.trim().parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body = serde_json::from_slice(&body).ok()?;
        kept.lock().ok()?.push(body);
        let mut stream = stream;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .ok()?;
    }
}

/// So many processes of an agent that is not there.
fn start(deployment: &Deployment, count: u32) {
    for _ in 0..count {
        deployment.json(&["processes", "create", "hv", "exec", "--", "echo", "hello"]);
    }
}

fn id(value: &Value) -> String {
    value["id"].as_str().expect("an id").to_owned()
}

#[test]
fn what_happens_is_told_through_a_crash_and_a_batch_cancels_what_waits() {
    let mut deployment = Deployment::start_with(&["--set", "webhooks.allow_insecure=true"]);
    // For the start after the crash.
    let file = "[webhooks]\nallow_insecure = true\n";
    std::fs::write(deployment.path("drover.toml"), file).expect("it can be written");
    let receiver = Receiver::start();
    let create = [
        "webhooks",
        "create",
        &receiver.url,
        "--event",
        "process.*",
        "--event",
        "batch.*",
    ];
    let hook = deployment.json(&create);
    assert!(
        hook["secret"]
            .as_str()
            .expect("a secret")
            .starts_with("whsec_")
    );
    let hook = id(&hook);
    let tested = deployment.drover(&["webhooks", "test", &hook]);
    assert!(tested.status.success(), "{}", said(&tested));
    assert!(
        said(&tested).contains("the answer was 200"),
        "{}",
        said(&tested)
    );

    let joined = deployment.join("hv", &deployment.token());
    assert!(joined.status.success(), "{}", said(&joined));
    start(&deployment, 5);
    deployment.server.kill();
    deployment.start_again();
    start(&deployment, 5);
    eventually("all ten to be told", || {
        receiver.sequences("process.created").len() == 10
    });

    // The agent is not there: all ten wait, and a batch ends them.
    cancel_all(&deployment, &receiver);
}

/// A batch, by hand: a look, two mistakes, and the real thing.
fn cancel_all(deployment: &Deployment, receiver: &Receiver) {
    let cancel = [
        "batches", "create", "cancel", "--agent", "hv", "--kind", "exec",
    ];
    let dry = deployment.json(&[&cancel[..], &["--dry-run"]].concat());
    assert_eq!(
        (&dry["matched"], dry["sample"].as_array().map(Vec::len)),
        (&10.into(), Some(10))
    );
    let unconfirmed = deployment.drover(&cancel);
    assert_eq!(unconfirmed.status.code(), Some(2), "{}", said(&unconfirmed));
    assert!(
        said(&unconfirmed).contains("--dry-run"),
        "{}",
        said(&unconfirmed)
    );
    let wrong = deployment.drover(&[&cancel[..], &["--confirm", "99"]].concat());
    assert_eq!(wrong.status.code(), Some(1), "{}", said(&wrong));
    assert!(
        said(&wrong).contains("10 processes match now"),
        "{}",
        said(&wrong)
    );
    let batch =
        deployment.json(&[&cancel[..], &["--confirm", "10", "--reason", "a test"]].concat());
    let batch = id(&batch);
    eventually("the batch's end", || {
        deployment.json(&["batches", "show", &batch])["state"] == "finished"
    });
    eventually("every end to be told", || {
        receiver.sequences("process.cancelled").len() == 10
    });
    eventually("the batch to be told", || {
        receiver.sequences("batch.finished").len() == 1
    });
    let shown = deployment.drover(&["batches", "list"]);
    assert!(said(&shown).contains("a test"), "{}", said(&shown));
}

#[test]
fn webhooks_are_changed_looked_at_and_deleted_by_the_command_line() {
    let deployment = Deployment::start_with(&["--set", "webhooks.allow_insecure=true"]);
    let receiver = Receiver::start();
    let create = [
        "webhooks",
        "create",
        &receiver.url,
        "--event",
        "process.created",
        "--disabled",
    ];
    let hook = id(&deployment.json(&create));
    let refused = deployment.drover(&["webhooks", "update", &hook]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let slip = deployment.drover(&["webhooks", "update", &hook, "--event", "process.creatd"]);
    assert_eq!(slip.status.code(), Some(1));
    assert!(
        said(&slip).contains("`process.creatd` is no event"),
        "{}",
        said(&slip)
    );
    let update = [
        "webhooks",
        "update",
        &hook,
        "--enable",
        "--description",
        "ci",
        "--kind",
        "exec",
    ];
    let changed = deployment.json(&update);
    assert_eq!(
        (&changed["disabled"], &changed["filter"]["kind"]),
        (&false.into(), &"exec".into())
    );

    let joined = deployment.join("hv", &deployment.token());
    assert!(joined.status.success(), "{}", said(&joined));
    deployment.json(&["processes", "create", "hv", "exec", "--", "echo", "hello"]);
    let mut sequence = String::new();
    eventually("the delivery", || {
        let all = deployment.json(&["webhooks", "deliveries", &hook, "--state", "succeeded"]);
        sequence = all[0]["sequence"].to_string();
        all[0]["status"] == 200
    });
    let list = deployment.drover(&["webhooks", "list"]);
    assert!(
        said(&list).contains("well") && said(&list).contains(&receiver.url),
        "{}",
        said(&list)
    );
    deployment.json(&["webhooks", "redeliver", &hook, &sequence]);
    eventually("it to be told again", || {
        receiver.got.lock().expect("no panic").len() == 2
    });
    let rotated = deployment.drover(&["webhooks", "rotate", &hook, "--overlap", "1h"]);
    assert!(said(&rotated).contains("whsec_"), "{}", said(&rotated));
    let shown = deployment.drover(&["webhooks", "show", &hook]);
    assert!(
        said(&shown).contains("old secret until"),
        "{}",
        said(&shown)
    );
    assert!(!said(&shown).contains("whsec_"), "{}", said(&shown));
    let gone = deployment.drover(&["webhooks", "delete", &hook]);
    assert!(gone.status.success(), "{}", said(&gone));
    let missing = deployment.drover(&["webhooks", "show", &hook]);
    assert_eq!(missing.status.code(), Some(5), "{}", said(&missing));
}
