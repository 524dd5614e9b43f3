use protocol::ids::{Fence, ProcessId};
use protocol::limits::OUTPUT_BYTES_MAX;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::*;
use crate::driver::{InFlight, PROGRESS_IN_FLIGHT_MAX};

fn program(path: &str, args: &[&str]) -> Program {
    Program {
        path: path.into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        extra_args: true,
        env: vec!["COLOUR".into()],
    }
}

/// `sh` takes a script from the command, `fixed` takes nothing.
fn driver() -> ExecDriver {
    let fixed = Program {
        extra_args: false,
        ..program("/bin/true", &[])
    };
    let programs = [
        ("sh".to_owned(), program("/bin/sh", &["-c"])),
        ("missing".to_owned(), program("/nowhere/program", &[])),
        ("fixed".to_owned(), fixed),
    ];
    ExecDriver::new(programs.into())
}

fn agent() -> AgentId {
    // nextest runs tests beside each other: marks must differ between processes.
    AgentId(Uuid::from_u128(u128::from(std::process::id())))
}

fn operation() -> OperationId {
    OperationId::new(ProcessId(Uuid::from_u128(2)), 3)
}

struct Running {
    outcome: BoxFuture<'static, Outcome>,
    stop: watch::Sender<Option<StopReason>>,
    pieces: mpsc::Receiver<Box<InFlight>>,
}

fn start(input: &serde_json::Value) -> Running {
    let (out, pieces) = mpsc::channel(100);
    let (stop, signal) = StopSignal::new();
    let outcome = driver().run(Job {
        agent: agent(),
        operation: operation(),
        fence: Fence(1),
        input: input.to_string().into(),
        progress: ProgressSink::new(operation(), out),
        stop: signal,
    });
    Running {
        outcome,
        stop,
        pieces,
    }
}

fn script(text: &str) -> Running {
    start(&serde_json::json!({"program": "sh", "args": [text]}))
}

/// Runs to the end and returns the outcome and all streamed output by channel.
async fn finish(mut running: Running) -> (Outcome, String, String) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut take = |piece: &InFlight| {
        let text = String::from_utf8_lossy(&piece.progress.output);
        match piece.progress.channel {
            Channel::Stderr => stderr.push_str(&text),
            _ => stdout.push_str(&text),
        }
    };
    let outcome = loop {
        tokio::select! {
            Some(piece) = running.pieces.recv() => take(&piece),
            outcome = &mut running.outcome => break outcome,
        }
    };
    while let Ok(piece) = running.pieces.try_recv() {
        take(&piece);
    }
    (outcome, stdout, stderr)
}

/// Waits until the program has said something.
async fn said_something(running: &mut Running) {
    tokio::select! {
        piece = running.pieces.recv() => assert!(piece.is_some()),
        outcome = &mut running.outcome => panic!("it ended: {outcome:?}"),
    }
}

async fn none_is_left() -> bool {
    process::kill_marked(MARK, mark(agent(), operation())).await == 0
}

#[tokio::test]
async fn a_program_gets_its_input_and_its_output_is_streamed_and_kept() {
    let (outcome, stdout, stderr) = finish(start(&serde_json::json!({
        "program": "sh",
        "args": ["cat; echo $COLOUR $0 $DROVER_OPERATION; echo oops >&2", "zero"],
        "stdin": {"a": [1, 2]},
        "env": {"COLOUR": "red"},
    })))
    .await;
    let expected = format!("{{\"a\":[1,2]}}red zero {}\n", mark(agent(), operation()));
    assert_eq!(stdout, expected);
    assert_eq!(stderr, "oops\n");
    assert_eq!(
        (outcome.status, outcome.exit_code),
        (OutcomeStatus::Succeeded, Some(0))
    );
    assert_eq!(outcome.output, expected);
}

#[tokio::test]
async fn exit_statuses_say_how_it_ended() {
    for (text, status, code, words) in [
        (
            "exit 3",
            OutcomeStatus::FailedPermanent,
            Some(3),
            "exit status 3",
        ),
        (
            "echo why >&2; exit 3",
            OutcomeStatus::FailedPermanent,
            Some(3),
            "exit status 3: why",
        ),
        (
            "exit 75",
            OutcomeStatus::FailedTransient,
            Some(75),
            "again later",
        ),
        (
            "kill -9 $$",
            OutcomeStatus::FailedPermanent,
            Some(-9),
            "signal 9",
        ),
    ] {
        let (outcome, ..) = finish(script(text)).await;
        assert_eq!(
            (outcome.status, outcome.exit_code),
            (status, code),
            "{text}"
        );
        assert!(outcome.message.contains(words), "{}", outcome.message);
    }
    let (outcome, ..) = finish(start(&serde_json::json!({"program": "missing"}))).await;
    assert_eq!(outcome.status, OutcomeStatus::FailedPermanent);
    assert!(
        outcome.message.contains("/nowhere/program"),
        "{}",
        outcome.message
    );
}

#[test]
fn what_is_not_allowed_is_refused_with_what_is() {
    for (input, words) in [
        (r#"{"program": "/bin/sh"}"#, "it allows: fixed, missing, sh"),
        (
            r#"{"program": "fixed", "args": ["x"]}"#,
            "takes no arguments",
        ),
        (
            r#"{"program": "sh", "env": {"LD_PRELOAD": "x"}}"#,
            "it allows: COLOUR",
        ),
        (r#"{"program": "sh", "args": ["a\u0000b"]}"#, "NUL"),
        (
            r#"{"program": "sh", "shell": true}"#,
            "unknown field `shell`",
        ),
        (r#"{"args": []}"#, "missing field `program`"),
        ("", "exec takes for example"),
    ] {
        let error = driver().validate(input.as_bytes()).unwrap_err();
        assert!(error.contains(words), "{input}: {error}");
    }
    let error = ExecDriver::new(BTreeMap::new())
        .validate(br#"{"program": "x"}"#)
        .unwrap_err();
    assert!(
        error.contains("it allows none") && error.contains("agent.toml"),
        "{error}"
    );
}

#[tokio::test]
async fn a_cancel_kills_the_whole_tree_also_what_left_the_group_and_what_ignores_sigterm() {
    let mut running = script(
        "trap '' TERM; setsid sleep 1000 & (trap '' TERM; sleep 1000) & sleep 1000 & echo up; wait",
    );
    said_something(&mut running).await;
    running.stop.send_replace(Some(StopReason::Cancelled));
    let (outcome, ..) = finish(running).await;
    assert_eq!(outcome.status, OutcomeStatus::Cancelled);
    assert!(none_is_left().await);
}

#[tokio::test]
async fn a_program_can_tidy_up_when_it_is_asked_to_end() {
    let mut running =
        script("trap 'echo tidy; exit 4' TERM; echo up; while :; do sleep 0.01; done");
    said_something(&mut running).await;
    running.stop.send_replace(Some(StopReason::Deadline));
    let (outcome, stdout, _) = finish(running).await;
    assert_eq!(outcome.status, OutcomeStatus::DeadlineExceeded);
    assert_eq!((outcome.exit_code, stdout.as_str()), (Some(4), "tidy\n"));
}

#[tokio::test]
async fn its_own_timeout_ends_a_program() {
    let input = serde_json::json!({"program": "sh", "args": ["sleep 1000"], "timeout_ms": 50});
    let (outcome, ..) = finish(start(&input)).await;
    assert_eq!(outcome.status, OutcomeStatus::DeadlineExceeded);
    assert!(none_is_left().await);
}

#[tokio::test]
async fn what_a_program_leaves_in_its_group_is_killed_and_its_own_daemons_may_stay() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("daemon");
    let text = format!(
        "sleep 1000 & echo $!; setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & \
         while [ ! -e {0} ]; do sleep 0.01; done; exit 0",
        file.display()
    );
    let (outcome, stdout, _) = finish(script(&text)).await;
    assert_eq!(outcome.status, OutcomeStatus::Succeeded);
    let environment = |pid: &str| std::fs::read(format!("/proc/{}/environ", pid.trim()));
    // A killed process has no environment any more once it has been scheduled.
    while environment(&stdout).is_ok_and(|environment| !environment.is_empty()) {
        tokio::task::yield_now().await;
    }
    let daemon = std::fs::read_to_string(&file).unwrap();
    assert!(!environment(&daemon).unwrap().is_empty());
    assert_eq!(
        process::kill_marked(MARK, mark(agent(), operation())).await,
        1
    );
}

#[tokio::test]
async fn dropping_the_run_kills_the_program() {
    let mut running = script("sleep 1000 & echo up; wait");
    said_something(&mut running).await;
    drop(running);
    // SIGKILL is sent; the processes die when they are next scheduled, and are reaped by init.
    while !none_is_left().await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fast_writer_waits_for_its_readers_and_can_still_be_stopped() {
    let mut running = script("yes");
    let mut held = Vec::new();
    while held.len() < PROGRESS_IN_FLIGHT_MAX {
        tokio::select! {
            piece = running.pieces.recv() => held.push(piece),
            _ = &mut running.outcome => panic!("it does not end by itself"),
        }
    }
    // All credit is out: the program's pipe is full and nothing more can come.
    running.stop.send_replace(Some(StopReason::Cancelled));
    let Running {
        outcome,
        mut pieces,
        ..
    } = running;
    let outcome = outcome.await;
    assert!(pieces.try_recv().is_err());
    assert_eq!(outcome.status, OutcomeStatus::Cancelled);
    assert!(outcome.output.len() <= OUTPUT_BYTES_MAX && !outcome.output.is_empty());
}

#[tokio::test]
async fn what_a_dead_agent_left_running_is_killed_and_reported_as_interrupted() {
    use std::os::unix::process::ExitStatusExt as _;
    let mut left = std::process::Command::new("/bin/sleep")
        .arg("1000")
        .env(MARK, mark(agent(), operation()))
        .spawn()
        .unwrap();
    let lost = || Lost {
        agent: agent(),
        operation: operation(),
        input: "{}".into(),
    };
    let recovered = driver().recover(lost()).await;
    assert_eq!(left.wait().unwrap().signal(), Some(9));
    let Recovered::Interrupted { message } = recovered else {
        panic!("{recovered:?}");
    };
    assert!(message.contains("1 of its processes"), "{message}");
    let Recovered::Interrupted { message } = driver().recover(lost()).await else {
        panic!("nothing can be known");
    };
    assert!(message.contains("nothing of it was running"), "{message}");
}
