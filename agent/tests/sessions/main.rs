//! The agent against a played gateway, over real sockets, files and processes.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is the test's failure; the lint only knows #[test] functions"
)]

mod fake;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::driver::simulated::{Effect, EffectLog};
use agent::driver::{Drivers, SimulatedDriver};
use agent::transport::{self, SilenceableEndpoint};
use agent::{
    Agent, AgentConfig, AgentError, AgentParts, EnrolError, Identity, JoinError, JoinOptions,
    Journal, Profile, RunError, Trust, Unobserved,
};
use fake::{Authority, Gateway, command, operation};
use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::{CANCEL_STREAM, CloseCode};
use protocol::enrol::EnrolRefusal;
use protocol::ids::{AgentId, Epoch, Fence, OperationId, Slot};
use protocol::operation::{OperationState, OutcomeStatus, Phase, Refusal};
use quinn::VarInt;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An agent that joined, with its state directory and its gateway.
struct Stage {
    authority: Arc<Authority>,
    gateway: Gateway,
    dir: TempDir,
}

/// A running agent.
struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn options(authority: &Authority, server: &str, dir: &Path) -> JoinOptions {
    JoinOptions {
        token: authority.token(),
        servers: vec![server.to_owned()],
        state_dir: dir.to_owned(),
        hostname: Some("hv-1".into()),
        force: false,
    }
}

impl Stage {
    async fn new() -> Self {
        let authority = Authority::new();
        let gateway = Gateway::new(&authority);
        let dir = tempfile::tempdir().unwrap();
        let options = options(&authority, &gateway.address, dir.path());
        let (joined, request) = tokio::join!(agent::join(options), gateway.enrol(None));
        joined.unwrap();
        assert_eq!(
            (request.secret, request.hostname.as_str()),
            (fake::SECRET, "hv-1")
        );
        Self {
            authority,
            gateway,
            dir,
        }
    }

    fn run(&self) -> Running {
        let flags = agent::config::Flags {
            programs: [("sh".to_owned(), PathBuf::from("/bin/sh"))].into(),
            ..Default::default()
        };
        let config = AgentConfig::load(self.dir.path(), flags).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(agent::run(config, shutdown.clone()));
        Running { shutdown, task }
    }
}

fn shell(script: &str) -> serde_json::Value {
    json!({"program": "sh", "args": ["-c", script]})
}

fn finished(message: &AgentMessage) -> &protocol::operation::Outcome {
    match message {
        AgentMessage::Finished { outcome, .. } => outcome,
        AgentMessage::Report {
            state: OperationState::Finished(outcome),
            ..
        } => outcome,
        other => panic!("not finished: {other:?}"),
    }
}

#[tokio::test]
async fn a_machine_joins_runs_a_program_and_answers_a_repetition_from_its_journal() {
    let stage = Stage::new().await;
    let running = stage.run();
    let (mut session, hello) = stage.gateway.session().await;
    assert_eq!(
        session.first_id[0],
        fake::SLOT.0,
        "the first packet carries the slot"
    );
    assert_eq!((hello.session_count, hello.capacity), (1, 4));
    assert_eq!(hello.kinds, ["exec"]);
    let order = shell("echo ran >> \"$0\"; cat \"$0\"; echo oops >&2");
    let file = stage.dir.path().join("effect");
    let mut order = order.clone();
    order["args"].as_array_mut().unwrap().push(json!(file));
    let answers = session
        .command(command(1, "exec", &order))
        .await
        .rest()
        .await;
    assert!(matches!(
        answers[0],
        AgentMessage::Accepted {
            fence: Fence(1),
            ..
        }
    ));
    let outcome = finished(answers.last().unwrap());
    assert_eq!(
        (outcome.status, outcome.exit_code),
        (OutcomeStatus::Succeeded, Some(0))
    );
    assert_eq!(outcome.output, "ran\n");
    let streamed = answers
        .iter()
        .filter(|m| matches!(m, AgentMessage::Progress { .. }));
    assert_eq!(streamed.count(), 2);

    // The same again, in this process and in the next: answered, not run.
    let again = session
        .command(command(1, "exec", &order))
        .await
        .rest()
        .await;
    assert_eq!(finished(&again[1]), outcome);
    running.stop().await;
    assert_eq!(session.next().await, AgentMessage::Status { capacity: 0 });
    assert_eq!(session.closed().await, Some(CloseCode::Normal));
    let running = stage.run();
    let (mut session, hello) = stage.gateway.session().await;
    assert_eq!(
        (hello.session_count, hello.open[0].phase),
        (2, Phase::Finished)
    );
    assert_eq!(finished(&session.next().await), outcome);
    let again = session
        .command(command(1, "exec", &order))
        .await
        .rest()
        .await;
    assert_eq!(finished(&again[1]), outcome);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ran\n");

    running.stop().await;
}

#[tokio::test]
async fn what_is_forgotten_is_unknown_and_a_question_makes_sure_that_it_stays_so() {
    let stage = Stage::new().await;
    let running = stage.run();
    let (mut session, _) = stage.gateway.session().await;
    let order = shell("exit 0");
    session
        .command(command(1, "exec", &order))
        .await
        .rest()
        .await;
    let operations = vec![operation(1)];
    session.say(&GatewayMessage::Forget { operations }).await;
    let operations = vec![(operation(1), Fence(1))];
    session.say(&GatewayMessage::Query { operations }).await;
    let AgentMessage::Report { state, .. } = session.next().await else {
        panic!("no report");
    };
    assert_eq!(state, OperationState::NeverSeen);
    let late = session
        .command(command(1, "exec", &order))
        .await
        .rest()
        .await;
    let [AgentMessage::Refused { refusal, .. }] = &late[..] else {
        panic!("{late:?}");
    };
    assert_eq!(*refusal, Refusal::StaleFence { seen: Fence(1) });
    running.stop().await;
}

#[tokio::test]
async fn joining_says_what_is_wrong_and_never_shows_the_secret_to_a_stranger() {
    let stage = Stage::new().await;
    let fresh = tempfile::tempdir().unwrap();
    let state_dir = fresh.path().join("state");

    // A stranger answers: its certificate is fine, and of another deployment.
    let stranger = Gateway::new(&Authority::new());
    let wrong = options(&stage.authority, &stranger.address, &state_dir);
    let (joined, ()) = tokio::join!(agent::join(wrong), stranger.fail());
    let Err(JoinError::Unreachable(tried)) = joined else {
        panic!("{joined:?}");
    };
    assert!(
        matches!(tried[0].1, EnrolError::WrongAuthority(_)),
        "{tried:?}"
    );

    let good = options(&stage.authority, &stage.gateway.address, &state_dir);
    let refused = Some(EnrolRefusal::UsedToken);
    let (joined, _) = tokio::join!(agent::join(good.clone()), stage.gateway.enrol(refused));
    assert!(matches!(
        joined,
        Err(JoinError::Refused(EnrolRefusal::UsedToken))
    ));
    assert!(!Identity::exists(&state_dir));

    // A server that may help later is passed over for the next one.
    let mut two = good.clone();
    two.servers.push(stage.gateway.address.clone());
    let gateway = async {
        stage.gateway.enrol(Some(EnrolRefusal::Busy)).await;
        stage.gateway.enrol(None).await
    };
    let (joined, _) = tokio::join!(agent::join(two), gateway);
    let first = joined.unwrap();
    let error = agent::join(good.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("--force") && error.contains(&first.to_string()),
        "{error}"
    );

    let forced = JoinOptions {
        force: true,
        ..good
    };
    let (joined, _) = tokio::join!(agent::join(forced), stage.gateway.enrol(None));
    assert_ne!(joined.unwrap(), first);
    let nowhere = JoinOptions {
        servers: vec!["nonsense".into()],
        force: true,
        ..options(&stage.authority, "x", &state_dir)
    };
    let error = agent::join(nowhere).await.unwrap_err().to_string();
    assert!(error.contains("`nonsense` is not HOST:PORT"), "{error}");
}

#[tokio::test]
async fn operations_survive_a_lost_session_and_a_redirect_is_followed() {
    let stage = Stage::new().await;
    let other = Gateway::new(&stage.authority);
    let running = stage.run();
    let (session, _) = stage.gateway.session().await;
    let gate = stage.dir.path().join("gate");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; echo done",
        gate.display()
    );
    let mut lane = session.command(command(1, "exec", &shell(&script))).await;
    assert!(matches!(lane.next().await, AgentMessage::Accepted { .. }));
    session.close(CloseCode::Draining);
    let (mut session, hello) = stage.gateway.hello().await;
    assert_eq!(hello.open[0].phase, Phase::Running);
    let redirect = GatewayMessage::Redirect {
        addresses: vec![other.address.clone()],
        retry_after: Duration::from_millis(1),
    };
    session.say(&redirect).await;
    assert_eq!(session.closed().await, Some(CloseCode::Normal));
    let (mut session, hello) = other.session().await;
    assert_eq!(
        (hello.session_count, hello.open[0].phase),
        (3, Phase::Running)
    );
    std::fs::write(gate, "").unwrap();
    let report = session.next().await;
    assert_eq!(finished(&report).output, "done\n");
    running.stop().await;
}

#[tokio::test]
async fn a_reset_cancels_and_a_draining_gateway_is_left_only_when_the_next_session_stands() {
    let stage = Stage::new().await;
    let other = Gateway::new(&stage.authority);
    let running = stage.run();
    let (mut old, _) = stage.gateway.session().await;
    let order = shell("sleep 1000 & setsid sleep 1000 & echo up; wait");
    let mut lane = old.command(command(1, "exec", &order)).await;
    assert!(matches!(lane.next().await, AgentMessage::Accepted { .. }));
    assert!(matches!(lane.next().await, AgentMessage::Progress { .. }));
    lane.send
        .reset(VarInt::try_from(CANCEL_STREAM).unwrap())
        .unwrap();
    let rest = lane.rest().await;
    assert_eq!(finished(&rest[0]).status, OutcomeStatus::Cancelled);

    old.say(&GatewayMessage::GoAway {
        addresses: vec![other.address.clone()],
        delay: Duration::from_millis(1),
        deadline: Duration::from_secs(30),
    })
    .await;
    let (mut new, _) = other.hello().await;
    assert!(old.connection.close_reason().is_none(), "make before break");
    new.welcome(Epoch(1)).await;
    assert_eq!(old.closed().await, Some(CloseCode::Normal));
    let answers = new
        .command(command(2, "exec", &shell("exit 0")))
        .await
        .rest()
        .await;
    assert_eq!(
        finished(answers.last().unwrap()).status,
        OutcomeStatus::Succeeded
    );
    running.stop().await;
}

#[tokio::test]
async fn a_gateway_that_breaks_the_protocol_is_left_and_a_twin_ends_the_agent() {
    let stage = Stage::new().await;
    let running = stage.run();
    let (mut session, _) = stage.gateway.session().await;
    session.write(&u32::MAX.to_le_bytes()).await;
    assert_eq!(session.closed().await, Some(CloseCode::BadFrame));
    running.stop().await;
    let running = stage.run();
    let (session, _) = stage.gateway.session().await;
    session.close(CloseCode::Superseded);
    let end = running.task.await.unwrap();
    assert!(
        matches!(end, Err(RunError::Agent(AgentError::Superseded(_)))),
        "{end:?}"
    );
}

#[tokio::test]
async fn many_large_results_are_reported_one_after_the_other() {
    let stage = Stage::new().await;
    let running = stage.run();
    let (session, _) = stage.gateway.session().await;
    let order = shell("head -c 16384 /dev/zero");
    let all = 1..=40;
    for n in all.clone() {
        let answers = session
            .command(command(n, "exec", &order))
            .await
            .rest()
            .await;
        assert_eq!(finished(answers.last().unwrap()).output.len(), 16384);
    }
    session.close(CloseCode::Draining);
    let (mut session, hello) = stage.gateway.session().await;
    assert_eq!(hello.open.len(), all.clone().count());
    for n in all {
        let report = session.next().await;
        assert!(matches!(report, AgentMessage::Report { operation: of, .. } if of == operation(n)));
        assert_eq!(finished(&report).output.len(), 16384);
    }
    running.stop().await;
}

#[tokio::test]
async fn what_gateways_tell_is_kept_for_the_next_start() {
    let stage = Stage::new().await;
    let other = Gateway::new(&stage.authority);
    let running = stage.run();
    let (mut session, _) = stage.gateway.hello().await;
    let mut welcome = session.welcome_words(Epoch(1));
    welcome.slot = Slot(5);
    welcome.addresses = vec![other.address.clone()];
    session
        .say(&GatewayMessage::Welcome(Box::new(welcome)))
        .await;
    while Identity::load(stage.dir.path()).unwrap().slot != Slot(5) {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    let running = stage.run();
    let (session, hello) = other.session().await;
    assert_eq!((hello.session_count, session.first_id[0]), (2, 5));
    running.stop().await;
}

#[tokio::test]
async fn a_second_process_on_the_same_state_directory_is_refused() {
    let stage = Stage::new().await;
    let running = stage.run();
    let (_session, _) = stage.gateway.session().await;
    let end = stage.run().task.await.unwrap();
    assert!(
        end.unwrap_err()
            .to_string()
            .contains("in use by another agent")
    );
    running.stop().await;
}

/// The simulated hypervisor of a fleet: effects by operation, with their number.
#[derive(Default)]
struct World(Mutex<HashMap<(AgentId, OperationId), u32>>);

impl EffectLog for World {
    fn apply(&self, agent: AgentId, operation: OperationId) -> std::io::Result<bool> {
        let mut effects = self.0.lock().unwrap();
        let count = effects.entry((agent, operation)).or_default();
        *count += 1;
        Ok(*count == 1)
    }
    fn find(&self, agent: AgentId, operation: OperationId) -> Effect {
        match self.0.lock().unwrap().contains_key(&(agent, operation)) {
            true => Effect::Present,
            false => Effect::Absent,
        }
    }
}

/// A fleet's parts, as a load test has them.
struct Fleet {
    dir: TempDir,
    world: Arc<World>,
    gateway: Gateway,
    authority: Arc<Authority>,
}

impl Fleet {
    async fn enrol(&self, endpoint: &quinn::Endpoint) -> Identity {
        let token = self.authority.token();
        let enrol = agent::enrol(endpoint, &self.gateway.address, &token, "hv");
        tokio::join!(enrol, self.gateway.enrol(None)).0.unwrap()
    }

    fn agent(&self, identity: Identity, endpoint: &quinn::Endpoint, journal: &Journal) -> Agent {
        let effects = Arc::clone(&self.world) as Arc<dyn EffectLog>;
        let trust = Trust::new(&identity.roots).unwrap();
        Agent::new(AgentParts {
            identity,
            trust: Arc::new(trust),
            endpoint: endpoint.clone(),
            journal: journal.clone(),
            drivers: Arc::new(Drivers::new().with("simulated", SimulatedDriver::new(effects))),
            profile: Arc::new(Profile {
                capacity: 4,
                hostname: "hv".into(),
                software: agent::SOFTWARE.into(),
                labels: vec![],
            }),
            servers: vec![],
            observer: Arc::new(Unobserved),
            stop_grace: Duration::from_secs(10),
        })
        .unwrap()
    }
}

fn copy(identity: &Identity, dir: &Path) -> Identity {
    identity.save(dir).unwrap();
    Identity::load(dir).unwrap()
}

#[tokio::test]
async fn a_killed_agent_says_nothing_and_goes_on_from_its_journal_with_each_effect_once() {
    let authority = Authority::new();
    let fleet = Fleet {
        dir: tempfile::tempdir().unwrap(),
        world: Arc::default(),
        gateway: Gateway::new(&authority),
        authority,
    };
    let path = fleet.dir.path().join("fleet.log");
    let journal = Journal::open(&path).unwrap();
    let socket = SilenceableEndpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let identity = fleet.enrol(socket.endpoint()).await;
    let spare = copy(&identity, fleet.dir.path());
    let agent = identity.agent;
    let first = fleet.agent(identity, socket.endpoint(), &journal);
    let first = tokio::spawn(async move { Box::pin(first.run(CancellationToken::new())).await });
    let (session, _) = fleet.gateway.session().await;
    // One that is done before the crash, and one that is not.
    let quick = command(1, "simulated", &json!({"service_ms": 0}));
    let answers = session.command(quick).await.rest().await;
    assert_eq!(
        finished(answers.last().unwrap()).status,
        OutcomeStatus::Succeeded
    );
    let slow = command(2, "simulated", &json!({"service_ms": 500, "progress": 5}));
    let mut lane = session.command(slow).await;
    assert!(matches!(lane.next().await, AgentMessage::Accepted { .. }));
    assert!(matches!(lane.next().await, AgentMessage::Progress { .. }));
    socket.silence();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(session.closed().await, None, "it dies without a goodbye");
    drop(journal);

    let journal = Journal::open(&path).unwrap();
    let endpoint = transport::endpoint().unwrap();
    let shutdown = CancellationToken::new();
    let second = fleet.agent(spare, &endpoint, &journal);
    let stop = shutdown.clone();
    let second = tokio::spawn(async move { Box::pin(second.run(stop)).await });
    let (mut session, hello) = fleet.gateway.session().await;
    let phases: Vec<_> = hello.open.iter().map(|open| open.phase).collect();
    assert_eq!(
        (hello.session_count, phases),
        (2, vec![Phase::Finished, Phase::Running])
    );
    for _ in 0..2 {
        assert_eq!(
            finished(&session.next().await).status,
            OutcomeStatus::Succeeded
        );
    }
    shutdown.cancel();
    second.await.unwrap().unwrap();
    let effects = fleet.world.0.lock().unwrap().clone();
    assert_eq!(
        effects,
        [((agent, operation(1)), 1), ((agent, operation(2)), 1)].into()
    );
}
