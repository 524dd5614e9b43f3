//! The real binary, real agents, real programs: the tour of README.md, and what must survive a crash.

#[expect(dead_code, reason = "stock_client.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

#[path = "support/terminal.rs"]
mod terminal;

use deployment::{Deployment, Running, command, eventually, said};
use rustix::process::Signal;
use serde_json::Value;
use terminal::Terminal;

/// What a run printed, as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_program_runs_on_an_agent_and_its_output_and_status_come_back() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");

    let run = deployment.drover(&["run", "hv-1", "exec", "--", "echo", "hello", "there"]);
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    assert_eq!(text(&run.stdout), "hello there\n");

    let script = "echo out; echo err >&2; exit 7";
    let run = deployment.drover(&["run", "--quiet", "hv-1", "exec", "--", "sh", "-c", script]);
    assert_eq!(run.status.code(), Some(7), "{}", said(&run));
    assert_eq!(
        (text(&run.stdout), text(&run.stderr)),
        ("out\n".into(), "err\n".into())
    );

    let script = "kill -9 $$";
    let run = deployment.drover(&["run", "hv-1", "exec", "--", "sh", "-c", script]);
    assert_eq!(run.status.code(), Some(128 + 9), "{}", said(&run));

    let agents = deployment.json(&["agents", "list"]);
    let prefix = &agents[0]["id"].as_str().expect("an id")[..13];
    let run = deployment.drover(&["run", "-q", prefix, "exec", "--", "echo", "by id"]);
    assert_eq!(text(&run.stdout), "by id\n", "{}", said(&run));

    let run = deployment.drover(&["run", "hv-1", "exec", "--", "rm", "-rf", "/"]);
    assert_eq!(run.status.code(), Some(125), "{}", said(&run));
    assert!(text(&run.stderr).contains("rm"), "{}", said(&run));

    let words = ["--output", "json", "run", "hv-1", "exec", "--", "echo", "x"];
    let run = deployment.drover(&words);
    let last = text(&run.stdout).lines().last().map(str::to_owned);
    let last: Value = serde_json::from_str(&last.expect("a line")).expect("JSON");
    assert_eq!(last["process"]["outcome"]["exit_code"], 0, "{}", said(&run));

    let processes = deployment.json(&["processes", "list"]);
    assert_eq!(processes.as_array().map(Vec::len), Some(6));
    assert_eq!(processes[5]["state"], "succeeded");
}

#[test]
fn output_of_a_long_program_is_all_there_and_in_order() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let run = deployment.drover(&["run", "-q", "hv-1", "exec", "--", "sh", "-c", script]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let expected: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(run.stdout.len(), expected.len());
    assert!(text(&run.stdout) == expected, "output is out of order");
}

#[test]
fn what_was_accepted_survives_a_kill_of_the_server_and_happens_once() {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let _idle = deployment.join("hv-2", &deployment.token());
    let effect = deployment.path("effect");
    let script = |name: &str| {
        format!(
            "echo started >> {0}.{name}; sleep 1; echo ended >> {0}.{name}",
            effect.display()
        )
    };
    let create = |agent: &str, name: &str| {
        let script = script(name);
        let process = deployment.json(&[
            "processes",
            "create",
            agent,
            "exec",
            "--",
            "sh",
            "-c",
            &script,
        ]);
        process["id"].as_str().expect("an id").to_owned()
    };
    // One runs when the server dies; one waits for an agent that comes only after.
    let running = create("hv-1", "a");
    let waiting = create("hv-2", "b");
    eventually("the program's start", || {
        deployment.path("effect.a").exists()
    });

    deployment.server.kill();
    deployment.start_again();
    let _late = deployment.run_agent("hv-2");

    for (id, name) in [(&running, "a"), (&waiting, "b")] {
        eventually("the end of a process", || {
            deployment.process_state(id) == "succeeded"
        });
        let lines = std::fs::read_to_string(deployment.path(&format!("effect.{name}")));
        assert_eq!(lines.expect("the effect"), "started\nended\n", "{name}");
    }
}

#[test]
fn a_run_goes_on_through_a_restart_of_the_server() {
    let mut deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let mark = deployment.path("mark");
    let script = format!(
        "echo before; touch {}; sleep 3; echo after; exit 4",
        mark.display()
    );
    let run = command(&deployment.path("."))
        .args([
            "--data-dir",
            &deployment.data_dir().to_string_lossy(),
            "run",
            "hv-1",
            "exec",
        ])
        .args(["--", "sh", "-c", &script])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("drover runs");
    eventually("the program's start", || mark.exists());
    deployment.server.kill();
    deployment.start_again();
    let run = run.wait_with_output().expect("it ends");
    assert_eq!(run.status.code(), Some(4), "{}", said(&run));
    assert!(text(&run.stdout).ends_with("after\n"), "{}", said(&run));
}

#[test]
fn a_cancelled_process_stops_on_the_agent() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let mark = deployment.path("mark");
    let script = format!("touch {}; sleep 100", mark.display());
    let process = deployment.json(&[
        "processes",
        "create",
        "hv-1",
        "exec",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let id = process["id"].as_str().expect("an id");
    eventually("the program's start", || mark.exists());
    deployment.json(&["processes", "cancel", id]);
    eventually("the end of the process", || {
        deployment.process_state(id) == "cancelled"
    });
}

#[test]
fn ctrl_c_cancels_the_run_and_stops_the_program() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let mark = deployment.path("mark");
    let script = format!("touch {}; sleep 100", mark.display());
    let mut run = deployment.spawn(&["run", "hv-1", "exec", "--", "sh", "-c", &script]);
    eventually("the program's start", || mark.exists());
    run.signal(Signal::INT);
    assert_eq!(run.wait().code(), Some(130));
    let processes = deployment.json(&["processes", "list"]);
    assert_eq!(processes[0]["state"], "cancelled");
}

#[test]
fn a_killed_agent_says_what_it_cannot_know_and_goes_on() {
    let deployment = Deployment::start();
    let mut agent = deployment.agent("hv-1");
    let mark = deployment.path("mark");
    let script = format!("echo started >> {}; sleep 100", mark.display());
    let create = |script: &str| {
        let words = [
            "processes",
            "create",
            "hv-1",
            "exec",
            "--",
            "sh",
            "-c",
            script,
        ];
        deployment.json(&words)["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    };
    let lost = create(&script);
    eventually("the program's start", || mark.exists());
    agent.kill();
    let next = create("true");

    let _agent = deployment.run_agent("hv-1");
    eventually("the end of the lost one", || {
        deployment.process_state(&lost) == "failed"
    });
    eventually("the end of the next one", || {
        deployment.process_state(&next) == "succeeded"
    });
    let process = deployment.json(&["processes", "show", &lost]);
    assert_eq!(process["outcome"]["status"], "interrupted");
    let effect = std::fs::read_to_string(&mark).expect("the effect");
    assert_eq!(effect, "started\n", "it ran once");
}

#[test]
fn a_deadline_ends_a_program_and_the_run_says_so() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let run = deployment.drover(&[
        "run",
        "--deadline",
        "1s",
        "hv-1",
        "exec",
        "--",
        "sh",
        "-c",
        "echo on; sleep 100",
    ]);
    assert_eq!(run.status.code(), Some(124), "{}", said(&run));
    assert_eq!(text(&run.stdout), "on\n");
}

#[test]
fn a_revoked_agent_loses_its_session_and_does_not_come_back() {
    let deployment = Deployment::start();
    let mut agent = deployment.agent("hv-1");
    let revoked = deployment.drover(&["agents", "revoke", "hv-1"]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    eventually("the agent's log to tell", || {
        deployment.agent_log("hv-1").contains("revoked")
    });
    assert_eq!(deployment.agent_state("hv-1"), "revoked");

    agent.kill();
    let _again = deployment.run_agent_unseen("hv-1");
    eventually("the second refusal", || {
        deployment.agent_log("hv-1").contains("agent join --force")
    });
    assert_eq!(deployment.agent_state("hv-1"), "revoked");
    let run = deployment.drover(&["run", "hv-1", "exec", "--", "echo", "x"]);
    assert_eq!(run.status.code(), Some(5), "{}", said(&run));
    assert!(text(&run.stderr).contains("was revoked"), "{}", said(&run));
}

#[test]
fn the_overview_tells_what_the_gateway_counts() {
    let deployment = Deployment::start_with(&["--datapath", "poll"]);
    let overview = || -> Value {
        serde_json::from_str(&deployment.get("/v1/overview")).expect("the overview is JSON")
    };
    // Rates begin with the first look.
    overview();
    let _agent = deployment.agent("hv-1");
    eventually("two handshakes, counted", || {
        overview()["rates"]["admitted"].as_f64() > Some(0.0)
    });
    let seen = overview();
    for name in ["retried", "turned_away", "handshakes_failed"] {
        assert!(seen["rates"][name].is_number(), "{name}: {seen}");
    }
    assert_eq!(seen["datapath"]["kind"], "poll");
    for name in ["dropped", "uplink_full", "mailbox_full"] {
        assert!(seen["datapath"][name].is_u64(), "{name}: {seen}");
    }
    eventually("nobody half-open, on either shard", || {
        let sessions = &overview()["sessions"];
        let shards = sessions["by_shard"].as_array();
        let shards = shards.into_iter().flatten();
        let half_open: Vec<_> = shards.map(|shard| shard["half_open"].as_u64()).collect();
        sessions["half_open"] == 0 && half_open == [Some(0), Some(0)]
    });
}

#[test]
fn a_join_token_works_once() {
    let deployment = Deployment::start();
    let token = deployment.token();
    let first = deployment.join("hv-1", &token);
    assert!(first.status.success(), "{}", said(&first));
    let second = deployment.join("hv-2", &token);
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(
        text(&second.stderr).contains("used before"),
        "{}",
        said(&second)
    );
    let tokens = deployment.json(&["tokens", "list"]);
    assert_eq!(tokens[0]["state"], "used");
}

#[test]
fn sigterm_stops_the_server_in_order_and_loses_nothing() {
    let mut deployment = Deployment::start();
    let mut agent = deployment.agent("hv-1");
    let mark = deployment.path("mark");
    let script = format!("echo x >> {0}; sleep 2; echo y >> {0}", mark.display());
    let process = deployment.json(&[
        "processes",
        "create",
        "hv-1",
        "exec",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let id = process["id"].as_str().expect("an id").to_owned();
    eventually("the program's start", || mark.exists());

    deployment.server.signal(Signal::TERM);
    assert_eq!(deployment.server.wait().code(), Some(0));
    assert!(!deployment.data_dir().join("ready.json").exists());
    assert!(!agent.has_ended(), "the agent outlives its server");

    deployment.start_again();
    eventually("the end of the process", || {
        deployment.process_state(&id) == "succeeded"
    });
    assert_eq!(
        std::fs::read_to_string(&mark).expect("the effect"),
        "x\ny\n"
    );

    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().code(), Some(0));
    eventually("the session's end", || {
        deployment.agent_state("hv-1") == "disconnected"
    });
}

/// A command line, its exit code, and a part of its message. DATA, AGENTS and TOKEN stand for the
/// server's data directory, its address for agents and a well-formed token of another deployment.
const MISTAKES: &[(&str, i32, &str)] = &[
    (
        "serve --config bad.toml",
        2,
        "bad.toml line 2: there is no key `gatway.shards`",
    ),
    ("serve --config missing.toml", 2, "cannot read missing.toml"),
    ("serve --shards 0", 2, "from 1 to 64"),
    (
        "serve --set gateway.shrads=2",
        2,
        "did you mean `gateway.shards`?",
    ),
    (
        "serve --profile api-server --data-dir FRESH",
        2,
        "set link.connect",
    ),
    (
        "serve --profile process-server --data-dir FRESH --set link.connect=127.0.0.1:9",
        2,
        "set store to the URL",
    ),
    (
        "serve --profile api-server,process-server --data-dir FRESH",
        2,
        "set link.connect to HOST:PORT",
    ),
    (
        "serve --data-dir DATA",
        2,
        "is in use by the server with process id",
    ),
    ("serve --data-dir bad.toml", 2, "is not a directory"),
    (
        "serve --data-dir other --gateway-listen AGENTS",
        1,
        "cannot listen on UDP AGENTS: Address already in use (os error 98)\n  try: stop who uses this port, \
         or choose another one with --gateway-listen\n",
    ),
    (
        "serve --data-dir other --domain another.example",
        1,
        "another.example",
    ),
    ("agents list --data-dir nowhere", 3, "drover serve"),
    (
        "agents list --api http://127.0.0.1:1",
        3,
        "cannot reach the server",
    ),
    (
        "agents list --api https://127.0.0.1:1",
        3,
        "cannot reach the server at https://127.0.0.1:1/",
    ),
    (
        "agents list --api ftp://127.0.0.1:1",
        2,
        "https://HOST:PORT",
    ),
    (
        "agents list --api https://127.0.0.1:1 --ca-file bad.toml",
        2,
        "bad.toml cannot be used: it holds no certificate",
    ),
    (
        "agents list --data-dir DATA --token wrong",
        4,
        "check the token",
    ),
    ("agents list --data-dir DATA --state sleepy", 1, "state"),
    (
        "agents show nobody --data-dir DATA",
        5,
        "there is no agent `nobody`",
    ),
    (
        "groups show nothing --data-dir DATA",
        5,
        "there is no group `nothing`",
    ),
    ("groups create Bad!Name --data-dir DATA", 1, "name"),
    ("tokens create --count 0 --data-dir DATA", 1, "count"),
    (
        "processes show 0190b6b8-0000-7000-8000-000000000001 --data-dir DATA",
        5,
        "0190b6b8",
    ),
    (
        "run nobody exec --data-dir DATA",
        5,
        "there is no agent `nobody`",
    ),
    (
        "run nobody exec --input {oops --data-dir DATA",
        2,
        "--input is not JSON",
    ),
    (
        "run nobody exec --input {\"program\":\"a\"} --data-dir DATA -- b",
        2,
        "--input has \"program\"",
    ),
    (
        "run nobody exec --deadline 1500ms --data-dir DATA",
        2,
        "whole seconds",
    ),
    (
        "run 0190b6b8-0000-7000-8000-000000000001 exec --data-dir DATA",
        5,
        "there is no such agent",
    ),
    (
        "processes show abcd --data-dir DATA",
        2,
        "drover processes list",
    ),
    ("agent join --server x --token y", 2, "HOST:PORT"),
    (
        "agent join --server 127.0.0.1:1 --token y",
        2,
        "drover tokens create",
    ),
    (
        "agent join --server AGENTS --token TOKEN",
        1,
        "certificate authority",
    ),
    ("agent run --state-dir nowhere", 1, "drover agent join"),
    ("agent allow x y", 2, "absolute path"),
    (
        "agent allow x /y --state-dir nowhere",
        1,
        "drover agent join",
    ),
];

#[test]
fn mistakes_get_a_message_advice_and_their_own_exit_code() {
    let deployment = Deployment::start();
    let other = command(&deployment.path("."))
        .args(["serve", "--data-dir", "other", "--print-config"])
        .output()
        .expect("drover runs");
    assert!(other.status.success(), "{}", said(&other));
    let dir = deployment.path(".");
    std::fs::write(dir.join("bad.toml"), "[gatway]\nshards = 2\n").expect("a file");
    let token = format!("drover1.{0}.{0}", "A".repeat(43));
    let fill = |text: &str| {
        text.replace("DATA", &deployment.data_dir().to_string_lossy())
            .replace("AGENTS", &deployment.addresses.agents)
            .replace("TOKEN", &token)
    };
    for (line, code, what) in MISTAKES {
        let line = fill(line);
        let output = command(&dir)
            .args(line.split(' '))
            .output()
            .expect("drover runs");
        assert_eq!(
            output.status.code(),
            Some(*code),
            "{line}: {}",
            said(&output)
        );
        let words = text(&output.stderr);
        assert!(words.contains(&fill(what)), "{line}: {}", said(&output));
    }
}

#[test]
fn every_kind_of_thing_can_be_made_listed_and_taken_away() {
    let deployment = Deployment::start();
    let health = deployment.json(&["health"]);
    assert_eq!(health["status"], "ok");

    let group = deployment.json(&["groups", "create", "rack-7"]);
    assert_eq!(
        deployment.json(&["groups", "show", "rack-7"])["id"],
        group["id"]
    );

    let made = deployment.json(&["tokens", "create", "--group", "rack-7", "--count", "2"]);
    let id = made["tokens"][0]["id"].as_str().expect("an id").to_owned();
    deployment.json(&["tokens", "revoke", &id]);

    let viewer = deployment.json(&["api-tokens", "create", "ci", "--role", "viewer"]);
    let token = viewer["token"].as_str().expect("a token");
    let refused = deployment.drover(&["--token", token, "groups", "create", "rack-8"]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    assert!(
        deployment
            .drover(&["--token", token, "agents", "list"])
            .status
            .success()
    );
    deployment.json(&[
        "api-tokens",
        "revoke",
        viewer["id"].as_str().expect("an id"),
    ]);
    let refused = deployment.drover(&["--token", token, "agents", "list"]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));

    for shell in ["bash", "zsh", "fish"] {
        let script = deployment.drover(&["completions", shell]);
        assert!(text(&script.stdout).contains("drover"), "{shell}");
    }
}

#[test]
fn the_deployment_at_a_glance_is_printed_once_where_there_is_no_terminal() {
    let deployment = Deployment::start();
    let _agent = deployment.agent("hv-1");
    let run = deployment.drover(&["run", "-q", "hv-1", "exec", "--", "sh", "-c", "exit 7"]);
    assert_eq!(run.status.code(), Some(7), "{}", said(&run));

    for words in [&["top"][..], &["top", "--once"]] {
        let top = deployment.drover(words);
        assert_eq!(top.status.code(), Some(0), "{}", said(&top));
        let page = text(&top.stdout);
        for part in [
            "1 of 1, ",
            "connects ",
            "exit status 7",
            "store commit",
            "ready, up",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        // Every rate that it has a line for is one that the server tells.
        let mut rates = page
            .lines()
            .skip_while(|line| !line.starts_with("PER SECOND"));
        assert!(rates.next().is_some(), "{page}");
        let rates: Vec<&str> = rates.take_while(|line| !line.is_empty()).collect();
        assert_eq!(rates.len(), 9, "{page}");
        let told = |line: &&str| line.ends_with(|last: char| last.is_ascii_digit());
        assert!(rates.iter().all(told), "{page}");
        assert!(!page.contains('\u{1b}'), "{page:?}");
        // Who did not ask for one look learns how to.
        let advised = text(&top.stderr).contains("--once");
        assert_eq!(advised, words.len() == 1, "{}", said(&top));
    }

    // The server's own document, with rates although nobody had looked before.
    let overview = deployment.json(&["top"]);
    assert_eq!(overview["sessions"]["up"], 1, "{overview}");
    assert_eq!(overview["processes"]["by_state"]["failed"], 1, "{overview}");
    assert!(overview["rates"]["connects"].is_number(), "{overview}");

    let wrong = deployment.drover(&["--token", "wrong", "top"]);
    assert_eq!(wrong.status.code(), Some(4), "{}", said(&wrong));
    let nobody = deployment.drover(&["--api", "http://127.0.0.1:9", "top", "--once"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", said(&nobody));
}

/// What starts a colour of the foreground.
const COLOUR: &str = "\u{1b}[38;5;";

/// `drover top` on a terminal.
fn top(deployment: &Deployment, terminal: &Terminal, environment: &[(&str, &str)]) -> Running {
    let mut command = command(&deployment.path("."));
    command.args(["--data-dir", &deployment.data_dir().to_string_lossy()]);
    command.arg("top").env("TERM", "xterm-256color");
    command.env_remove("NO_COLOR");
    command.envs(environment.iter().copied());
    let running = Running::new(terminal.start(&command));
    eventually("the first frame", || terminal.drawn().contains("sessions"));
    running
}

#[test]
fn whatever_ends_the_display_the_terminal_is_as_it_was() {
    let deployment = Deployment::start();
    let ends: [(&str, Option<Signal>, i32); 5] = [
        ("q", None, 0),
        ("\u{3}", None, 0),
        ("", Some(Signal::TERM), 143),
        ("", Some(Signal::INT), 130),
        ("", Some(Signal::HUP), 129),
    ];
    for (keys, signal, code) in ends {
        let terminal = Terminal::open();
        assert!(terminal.is_as_before());
        let mut top = top(&deployment, &terminal, &[]);
        assert!(!terminal.is_as_before(), "keys come without Enter");
        assert!(terminal.drawn().contains(COLOUR));
        terminal.press(keys);
        if let Some(signal) = signal {
            top.signal(signal);
        }
        assert_eq!(top.wait().code(), Some(code), "{keys:?} {signal:?}");
        assert!(terminal.is_as_before(), "{keys:?} {signal:?}");
        // The other screen is left and the cursor is back; what the reader has not yet read comes.
        eventually("the terminal's own screen", || {
            let drawn = terminal.drawn();
            let at = |escape| drawn.rfind(escape);
            at("\u{1b}[?1049h") < at("\u{1b}[?1049l") && at("\u{1b}[?25l") < at("\u{1b}[?25h")
        });
    }
}

#[test]
fn the_display_waits_for_a_server_that_goes_away_and_ends_when_it_is_refused() {
    let mut deployment = Deployment::start();
    let made = deployment.json(&["api-tokens", "create", "watcher", "--role", "viewer"]);
    let token = made["token"].as_str().expect("a token").to_owned();
    let terminal = Terminal::open();
    let environment = [("DROVER_TOKEN", token.as_str()), ("NO_COLOR", "1")];
    let mut top = top(&deployment, &terminal, &environment);
    // Ctrl-L draws all of it anew: what is looked for comes in one piece.
    let shows = |what: &str| {
        let before = terminal.drawn().len();
        terminal.press("\u{c}");
        eventually("a frame", || {
            terminal
                .drawn()
                .get(before..)
                .is_some_and(|new| new.contains("sessions"))
        });
        terminal
            .drawn()
            .get(before..)
            .is_some_and(|new| new.contains(what))
    };
    deployment.server.kill();
    eventually("the loss", || shows("reconnecting for "));
    deployment.start_again();
    eventually("the return", || !shows("reconnecting for "));

    let id = made["id"].as_str().expect("an id");
    let revoked = deployment.drover(&["api-tokens", "revoke", id]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    deployment.server.kill();
    deployment.start_again();
    assert_eq!(top.wait().code(), Some(4), "{}", terminal.drawn());
    assert!(terminal.is_as_before());
    eventually("the reason", || {
        terminal.drawn().contains("check the token")
    });
    assert!(!terminal.drawn().contains(COLOUR), "NO_COLOR is set");
}
