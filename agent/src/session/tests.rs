mod lives;

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use protocol::ids::{GroupId, ProcessId, SessionId, Slot};
use uuid::Uuid;

use super::*;
use crate::clock;
use crate::driver::{Driver, Job, Lost};

const NOW_MS: u64 = 1_000_000;

/// Takes every input but `bad`. The tests play its runs themselves.
struct Anything;

impl Driver for Anything {
    fn validate(&self, input: &[u8]) -> Result<(), String> {
        match input {
            b"bad" => Err("bad is bad".into()),
            _ => Ok(()),
        }
    }
    fn run(&self, _: Job) -> BoxFuture<'static, Outcome> {
        unreachable!("the state machine runs nothing")
    }
    fn recover(&self, _: Lost) -> BoxFuture<'static, Recovered> {
        unreachable!("the state machine asks nobody")
    }
}

/// An agent with a disk, and a gateway that remembers what it was told.
struct Stage {
    session: Session,
    now: Instant,
    disk: State,
    disk_full: bool,
    said: Vec<AgentMessage>,
    outputs: Vec<Output>,
    links: u32,
    streams: u64,
}

fn session(now: Instant, disk: State) -> Session {
    let profile = Profile {
        capacity: 3,
        hostname: "hv".into(),
        software: "test".into(),
        labels: vec![],
    };
    let drivers = Drivers::new().with("work", Anything);
    let agent = AgentId(Uuid::from_u128(1));
    Session::new(
        now,
        NOW_MS,
        agent,
        Arc::new(profile),
        Arc::new(drivers),
        disk,
    )
}

fn operation(n: u128) -> OperationId {
    OperationId::new(ProcessId(Uuid::from_u128(n)), 0)
}

fn command(n: u128, fence: u64) -> Command {
    Command {
        operation: operation(n),
        fence: Fence(fence),
        kind: "work".into(),
        input: Bytes::new(),
        deadline_ms: NOW_MS + 60_000,
    }
}

fn success() -> Outcome {
    bare_outcome(OutcomeStatus::Succeeded, "")
}

impl Stage {
    fn new() -> Self {
        let now = clock::now();
        Self {
            session: session(now, State::default()),
            now,
            disk: State::default(),
            disk_full: false,
            said: vec![],
            outputs: vec![],
            links: 0,
            streams: 0,
        }
    }

    /// A stage with a session that is up.
    fn up() -> (Self, Link) {
        let mut stage = Self::new();
        let link = stage.connect();
        stage.said.clear();
        stage.outputs.clear();
        (stage, link)
    }

    fn connect(&mut self) -> Link {
        let link = Link(self.links);
        self.links += 1;
        self.session.handle_connected(link);
        self.settle();
        self.session.handle_control(link, welcome(Epoch(1)));
        self.settle();
        link
    }

    /// The process dies; the next one reads the disk.
    fn crash(&mut self) {
        self.session = session(self.now, self.disk.clone());
        self.outputs.clear();
    }

    fn collect(&mut self) {
        while let Some(output) = self.session.poll_output() {
            if let Output::Control { message, .. } | Output::Reply { message, .. } = &output {
                self.said.push((**message).clone());
            }
            self.outputs.push(output);
        }
        while let Some(report) = self.session.poll_report() {
            self.said.push(report);
        }
    }

    /// One turn of the disk.
    fn persist(&mut self) -> bool {
        let Some(records) = self.session.poll_persist() else {
            return false;
        };
        let result = match self.disk_full {
            true => Err("disk full".to_owned()),
            false => {
                records
                    .iter()
                    .for_each(|record| drop(self.disk.apply(record)));
                Ok(())
            }
        };
        self.session.handle_persisted(self.now, result);
        true
    }

    fn settle(&mut self) {
        self.collect();
        while self.persist() {
            self.collect();
        }
        self.collect();
        // What waits for company has waited.
        let waited = self.now + Duration::from_millis(20);
        self.session.handle_timeout(waited);
        self.collect();
    }

    fn send(&mut self, link: Link, epoch: u64, command: Command) -> Lane {
        self.streams += 4;
        let lane = Lane {
            link,
            stream: self.streams,
        };
        self.session
            .handle_command(self.now, NOW_MS, lane, Epoch(epoch), command);
        lane
    }

    /// Sends a command and returns the answers.
    fn ask(&mut self, link: Link, epoch: u64, command: Command) -> Vec<AgentMessage> {
        self.said.clear();
        self.send(link, epoch, command);
        self.settle();
        std::mem::take(&mut self.said)
    }

    fn refusal(&mut self, link: Link, epoch: u64, command: Command) -> Refusal {
        match &self.ask(link, epoch, command)[..] {
            [AgentMessage::Refused { refusal, .. }] => refusal.clone(),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn control(&mut self, link: Link, message: GatewayMessage) -> Vec<AgentMessage> {
        self.said.clear();
        self.session.handle_control(link, message);
        self.settle();
        std::mem::take(&mut self.said)
    }

    fn starts(&self) -> usize {
        self.outputs
            .iter()
            .filter(|output| matches!(output, Output::Start(_)))
            .count()
    }
}

fn welcome(epoch: Epoch) -> GatewayMessage {
    GatewayMessage::Welcome(Box::new(Welcome {
        version: 1,
        session: SessionId(1),
        group: GroupId(Uuid::from_u128(5)),
        slot: Slot(0),
        epoch,
        keep_alive: Duration::from_secs(10),
        reconnect_spread: Duration::from_secs(5),
        addresses: vec![],
    }))
}

fn query(n: u128, fence: u64) -> GatewayMessage {
    GatewayMessage::Query {
        operations: vec![(operation(n), Fence(fence))],
    }
}

fn cancel(n: u128, fence: u64, epoch: u64) -> GatewayMessage {
    GatewayMessage::Cancel {
        operation: operation(n),
        fence: Fence(fence),
        epoch: Epoch(epoch),
    }
}

fn state_of(messages: &[AgentMessage]) -> &OperationState {
    match messages {
        [AgentMessage::Report { state, .. }] => state,
        other => panic!("not one report: {other:?}"),
    }
}

#[test]
fn accepted_waits_a_moment_for_what_follows_and_comes_first() {
    let (mut stage, link) = Stage::up();
    stage.send(link, 1, command(1, 1));
    assert!(stage.persist());
    stage.collect();
    assert!(stage.said.is_empty() && stage.starts() == 1);
    let due = stage.session.poll_timeout().unwrap();
    assert!(due <= stage.now + Duration::from_millis(20));
    stage.session.handle_timeout(due);
    stage.collect();
    assert!(matches!(stage.said[..], [AgentMessage::Accepted { .. }]));
    stage.said.clear();
    stage.send(link, 1, command(2, 1));
    assert!(stage.persist());
    stage.session.handle_outcome(operation(2), success());
    stage.settle();
    assert!(matches!(
        stage.said[..],
        [AgentMessage::Accepted { .. }, AgentMessage::Finished { .. }]
    ));
    stage.said.clear();
    stage.send(link, 1, command(3, 1));
    assert!(stage.persist());
    stage.collect();
    assert!(stage.said.is_empty());
    let piece = Progress {
        sequence: 0,
        percent: None,
        message: String::new(),
        channel: protocol::operation::Channel::None,
        output: Bytes::new(),
    };
    assert!(stage.session.handle_progress(operation(3), piece).is_some());
    stage.collect();
    assert!(matches!(stage.said[..], [AgentMessage::Accepted { .. }]));
}

#[test]
fn nothing_is_said_and_nothing_starts_before_it_is_durable() {
    let (mut stage, link) = Stage::up();
    stage.send(link, 1, command(1, 1));
    stage.collect();
    assert!(stage.said.is_empty() && stage.starts() == 0);
    stage.settle();
    assert!(matches!(stage.said[..], [AgentMessage::Accepted { .. }]));
    assert_eq!(stage.starts(), 1);
    stage.said.clear();
    stage.session.handle_outcome(operation(1), success());
    stage.collect();
    assert!(stage.said.is_empty());
    stage.settle();
    assert!(matches!(stage.said[..], [AgentMessage::Finished { .. }]));
    assert!(matches!(
        stage
            .outputs
            .iter()
            .rfind(|output| matches!(output, Output::Reply { .. })),
        Some(Output::Reply { last: true, .. })
    ));
}

#[test]
fn each_reason_to_refuse_has_its_refusal() {
    let (mut stage, link) = Stage::up();
    let unknown = Command {
        kind: "nothing".into(),
        ..command(1, 1)
    };
    assert!(matches!(
        stage.refusal(link, 1, unknown),
        Refusal::UnknownKind { .. }
    ));
    let bad = Command {
        input: Bytes::from_static(b"bad"),
        ..command(1, 1)
    };
    assert!(matches!(
        stage.refusal(link, 1, bad),
        Refusal::InvalidInput { .. }
    ));
    let late = Command {
        deadline_ms: NOW_MS,
        ..command(1, 1)
    };
    assert_eq!(stage.refusal(link, 1, late), Refusal::DeadlinePassed);
    for n in 1..=3 {
        stage.ask(link, 1, command(n, 5));
    }
    assert!(matches!(
        stage.refusal(link, 1, command(4, 1)),
        Refusal::Busy { .. }
    ));
    let seen = Fence(5);
    assert_eq!(
        stage.refusal(link, 1, command(1, 4)),
        Refusal::StaleFence { seen }
    );
    stage.control(link, GatewayMessage::NewEpoch { epoch: Epoch(9) });
    let seen = Epoch(9);
    assert_eq!(
        stage.refusal(link, 8, command(1, 9)),
        Refusal::StaleEpoch { seen }
    );
    assert_eq!(stage.disk.epoch(), Epoch(9));
    stage.session.handle_stop();
    stage.settle();
    assert_eq!(stage.said.pop(), Some(AgentMessage::Status { capacity: 0 }));
    assert_eq!(stage.refusal(link, 9, command(7, 1)), Refusal::Stopping);
    assert_eq!(stage.starts(), 3);
}

#[test]
fn a_full_journal_takes_no_new_work_until_results_are_stored() {
    let (mut stage, link) = Stage::up();
    for n in 0..limits::JOURNAL_OPEN_MAX as u128 {
        stage.ask(link, 1, command(n, 1));
        stage.session.handle_outcome(operation(n), success());
    }
    stage.settle();
    let next = limits::JOURNAL_OPEN_MAX as u128;
    assert_eq!(
        stage.refusal(link, 1, command(next, 1)),
        Refusal::JournalFull
    );
    let operations = vec![operation(0)];
    stage.control(link, GatewayMessage::Forget { operations });
    let answers = stage.ask(link, 1, command(next, 1));
    assert!(matches!(answers[..], [AgentMessage::Accepted { .. }]));
    let AgentMessage::Hello(hello) = ({
        stage.said.clear();
        stage.connect();
        stage.said.remove(0)
    }) else {
        panic!("no Hello");
    };
    assert_eq!(hello.open.len(), limits::OPERATIONS_PER_FRAME_MAX);
}

#[test]
fn a_repeated_command_joins_the_run_and_then_gets_the_stored_result() {
    let (mut stage, link) = Stage::up();
    let first = stage.send(link, 1, command(1, 1));
    stage.settle();
    let answers = stage.ask(link, 1, command(1, 2));
    assert!(matches!(
        answers[..],
        [AgentMessage::Accepted {
            fence: Fence(2),
            ..
        }]
    ));
    assert!(stage.outputs.contains(&Output::Abandon(first)));
    let progress = Progress {
        sequence: 9,
        percent: None,
        message: String::new(),
        channel: protocol::operation::Channel::None,
        output: Bytes::new(),
    };
    let (lane, message) = stage
        .session
        .handle_progress(operation(1), progress)
        .unwrap();
    assert_eq!(lane.stream, stage.streams);
    assert!(
        matches!(message, AgentMessage::Progress { fence: Fence(2), ref progress, .. }
        if progress.sequence == 0)
    );
    stage.session.handle_outcome(operation(1), success());
    stage.settle();
    let answers = stage.ask(link, 1, command(1, 2));
    assert!(matches!(
        answers[..],
        [
            AgentMessage::Accepted { .. },
            AgentMessage::Finished {
                fence: Fence(2),
                ..
            }
        ]
    ));
    assert_eq!(stage.starts(), 1);
}

#[test]
fn a_transient_failure_runs_again_only_under_a_higher_fence() {
    let (mut stage, link) = Stage::up();
    stage.ask(link, 1, command(1, 1));
    let failed = bare_outcome(OutcomeStatus::FailedTransient, "later");
    stage.session.handle_outcome(operation(1), failed);
    stage.settle();
    assert_eq!(stage.ask(link, 1, command(1, 1)).len(), 2);
    assert_eq!(stage.starts(), 1);
    assert_eq!(stage.ask(link, 1, command(1, 2)).len(), 1);
    assert_eq!(stage.starts(), 2);
}

#[test]
fn what_was_never_seen_stays_so_and_what_was_cancelled_first_never_starts() {
    let (mut stage, link) = Stage::up();
    let answer = stage.control(link, query(1, 3));
    assert_eq!(state_of(&answer), &OperationState::NeverSeen);
    let seen = Fence(3);
    assert_eq!(
        stage.refusal(link, 1, command(1, 3)),
        Refusal::StaleFence { seen }
    );
    stage.control(link, cancel(2, 4, 1));
    assert_eq!(stage.refusal(link, 1, command(2, 4)), Refusal::Cancelled);
    stage.crash();
    let link = stage.connect();
    assert_eq!(stage.refusal(link, 1, command(2, 4)), Refusal::Cancelled);
    assert_eq!(stage.starts(), 0);
    assert_eq!(stage.ask(link, 1, command(1, 4)).len(), 1);
    assert_eq!(stage.starts(), 1);
}

#[test]
fn a_cancel_stops_a_run_and_overtakes_a_start() {
    let (mut stage, link) = Stage::up();
    let lane = stage.send(link, 1, command(1, 1));
    stage.session.handle_reset(lane, CANCEL_STREAM);
    stage.settle();
    assert_eq!(stage.starts(), 0);
    assert!(
        matches!(&stage.said[..], [AgentMessage::Accepted { .. }, AgentMessage::Finished { outcome, .. }]
        if outcome.status == OutcomeStatus::Cancelled)
    );
    stage.ask(link, 1, command(2, 1));
    stage.control(link, cancel(2, 1, 1));
    let stop = Output::Stop {
        operation: operation(2),
        reason: StopReason::Cancelled,
    };
    assert!(stage.outputs.contains(&stop));
    // Meant for an earlier claim, or from an earlier owner.
    stage.ask(link, 2, command(3, 5));
    let answer = stage.control(link, cancel(3, 4, 2));
    assert_eq!(state_of(&answer), &OperationState::Running);
    assert!(stage.control(link, cancel(3, 5, 1)).is_empty());
    let stops = stage
        .outputs
        .iter()
        .filter(|output| matches!(output, Output::Stop { .. }));
    assert_eq!(stops.count(), 1);
}

#[test]
fn a_deadline_stops_a_run_once() {
    let (mut stage, link) = Stage::up();
    stage.ask(link, 1, command(1, 1));
    let due = stage.session.poll_timeout().unwrap();
    assert_eq!(due, stage.now + Duration::from_secs(60));
    stage.session.handle_timeout(due);
    stage.settle();
    let stop = Output::Stop {
        operation: operation(1),
        reason: StopReason::Deadline,
    };
    assert_eq!(stage.outputs.last(), Some(&stop));
    assert_eq!(stage.session.poll_timeout(), None);
}

#[test]
fn when_the_disk_is_full_commands_are_refused_and_results_wait() {
    let (mut stage, link) = Stage::up();
    stage.ask(link, 1, command(1, 1));
    stage.disk_full = true;
    assert!(matches!(
        stage.refusal(link, 2, command(2, 1)),
        Refusal::JournalFailed { .. }
    ));
    assert!(
        stage.control(link, query(3, 1)).is_empty(),
        "a tombstone that is not durable is none"
    );
    // The epoch was seen, even if it could not be written.
    let seen = Epoch(2);
    assert_eq!(
        stage.refusal(link, 1, command(2, 1)),
        Refusal::StaleEpoch { seen }
    );
    stage.said.clear();
    stage.session.handle_outcome(operation(1), success());
    stage.settle();
    assert!(stage.said.is_empty());
    let answer = stage.control(link, query(1, 1));
    assert_eq!(state_of(&answer), &OperationState::Running);
    stage.disk_full = false;
    stage.said.clear();
    let again = stage.session.poll_timeout().unwrap();
    stage.session.handle_timeout(again);
    stage.settle();
    assert!(matches!(stage.said[..], [AgentMessage::Finished { .. }]));
    assert_eq!(stage.ask(link, 2, command(2, 1)).len(), 1);
    assert_eq!(stage.starts(), 2);
}

#[test]
fn results_owed_survive_the_session_and_the_process_until_they_are_forgotten() {
    let (mut stage, link) = Stage::up();
    stage.ask(link, 1, command(1, 1));
    stage.session.handle_disconnected(link);
    stage.session.handle_outcome(operation(1), success());
    stage.settle();
    for _ in 0..2 {
        stage.said.clear();
        let link = stage.connect();
        let [
            AgentMessage::Hello(hello),
            AgentMessage::Report { state, .. },
        ] = &stage.said[..]
        else {
            panic!("{:?}", stage.said);
        };
        assert_eq!(hello.open[0].phase, Phase::Finished);
        assert!(matches!(state, OperationState::Finished(_)));
        stage.session.handle_disconnected(link);
        stage.crash();
    }
    let link = stage.connect();
    let operations = vec![operation(1)];
    stage.control(link, GatewayMessage::Forget { operations });
    assert!(stage.outputs.contains(&Output::Forgotten(operation(1))));
    assert_eq!(stage.disk.open_count(), 0);
}

#[test]
fn after_a_crash_open_operations_are_looked_up_and_never_just_repeated() {
    let (mut stage, link) = Stage::up();
    for n in 1..=3 {
        stage.ask(link, 1, command(n, 1));
    }
    stage.crash();
    stage.settle();
    let recovers = |output: &&Output| matches!(output, Output::Recover(_));
    assert_eq!(stage.outputs.iter().filter(recovers).count(), 3);
    assert_eq!(stage.starts(), 0);
    let link = stage.connect();
    stage
        .session
        .handle_recovered(operation(1), Recovered::Restart);
    stage
        .session
        .handle_recovered(operation(2), Recovered::Finished(success()));
    let message = "?".to_owned();
    stage
        .session
        .handle_recovered(operation(3), Recovered::Interrupted { message });
    stage.said.clear();
    stage.settle();
    assert_eq!(stage.starts(), 1);
    assert_eq!(
        stage.said.len(),
        2,
        "two results are reported: {:?}",
        stage.said
    );
    let answer = stage.control(link, query(1, 1));
    assert_eq!(state_of(&answer), &OperationState::Running);
}

#[test]
fn a_session_counts_up_durably_before_its_hello_and_keeps_to_the_order_of_messages() {
    let mut stage = Stage::new();
    stage.session.handle_connected(Link(0));
    stage.collect();
    assert!(stage.said.is_empty());
    stage.settle();
    assert_eq!(stage.disk.session_count(), 1);
    stage.session.handle_control(Link(0), query(1, 1));
    stage.settle();
    let code = CloseCode::UnexpectedFrame;
    assert_eq!(
        stage.outputs.last(),
        Some(&Output::Close {
            link: Link(0),
            code
        })
    );
    stage.session.handle_disconnected(Link(0));
    stage.links = 1;
    let link = stage.connect();
    assert_eq!(stage.disk.session_count(), 2);
    stage.session.handle_control(link, welcome(Epoch(1)));
    stage.settle();
    assert_eq!(stage.outputs.last(), Some(&Output::Close { link, code }));
}

#[test]
fn while_it_moves_answers_go_to_the_newer_session_and_lost_answers_are_reported() {
    let (mut stage, old) = Stage::up();
    let lane = stage.send(old, 1, command(1, 1));
    stage.settle();
    let new = stage.connect();
    stage.session.handle_disconnected(old);
    stage.session.handle_outcome(operation(1), success());
    stage.said.clear();
    stage.settle();
    assert!(matches!(stage.said[..], [AgentMessage::Report { .. }]));
    // Told on a stream whose end the gateway never acknowledged.
    let lane = Lane { link: new, ..lane };
    stage
        .session
        .handle_command(stage.now, NOW_MS, lane, Epoch(1), command(2, 1));
    stage.settle();
    stage.session.handle_outcome(operation(2), success());
    stage.settle();
    stage.said.clear();
    stage.session.handle_lane_closed(lane, false);
    stage.settle();
    assert!(matches!(stage.said[..], [AgentMessage::Report { .. }]));
}

#[test]
fn texts_and_outputs_are_cut_to_their_limits() {
    let (mut stage, link) = Stage::up();
    stage.ask(link, 1, command(1, 1));
    let mut outcome = success();
    outcome.message = "é".repeat(limits::MESSAGE_BYTES_MAX);
    outcome.output = Bytes::from(vec![7; limits::OUTPUT_BYTES_MAX + 9]);
    stage.said.clear();
    stage.session.handle_outcome(operation(1), outcome);
    stage.settle();
    let [AgentMessage::Finished { outcome, .. }] = &stage.said[..] else {
        panic!("{:?}", stage.said);
    };
    assert_eq!(outcome.message.len(), limits::MESSAGE_BYTES_MAX);
    assert_eq!(outcome.output.len(), limits::OUTPUT_BYTES_MAX);
}
