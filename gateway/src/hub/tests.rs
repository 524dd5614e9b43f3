//! The hub against what each server must hear, by hand and against a model.

mod hanging;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use protocol::close::CloseCode;
use protocol::flow::Demand;
use protocol::ids::{Epoch, Fence, GroupId, OperationId, ProcessId, SessionId, ShardId, Slot};
use protocol::link::{DownReason, NotDelivered, SecurityEvent};
use protocol::operation::{Command, OperationState, Outcome, OutcomeStatus};

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(3);

fn agent(n: u8) -> AgentId {
    AgentId::from_bytes([n; 16])
}

fn target(n: u8) -> Target {
    Target {
        agent: agent(n),
        group: GroupId::from_bytes([9; 16]),
        slot: Slot(0),
    }
}

fn operation(n: u8) -> OperationId {
    OperationId::new(ProcessId::from_bytes([n; 16]), 0)
}

fn hub(servers: &[ServerId]) -> Hub {
    let mut hub = Hub::default();
    for server in servers {
        enter(&mut hub, *server);
    }
    hub
}

/// It joins and begins to hear.
fn enter(hub: &mut Hub, server: ServerId) {
    hub.handle_join(server).unwrap();
    hub.handle_come(server);
}

fn dispatch(n: u8) -> Request {
    Request::Dispatch {
        target: target(1),
        grant: GrantId(u64::from(n)),
        epoch: Epoch(1),
        command: Box::new(Command {
            operation: operation(n),
            fence: Fence(1),
            kind: "exec".to_owned(),
            input: Bytes::new(),
            deadline_ms: 0,
        }),
    }
}

fn accepted(n: u8) -> Event {
    Event::Accepted {
        target: target(1),
        operation: operation(n),
        fence: Fence(1),
    }
}

fn finished(n: u8) -> Event {
    Event::Finished {
        target: target(1),
        operation: operation(n),
        fence: Fence(1),
        outcome: Outcome {
            status: OutcomeStatus::Succeeded,
            exit_code: None,
            message: String::new(),
            output: Bytes::new(),
            service_time: Duration::ZERO,
        },
    }
}

fn query(n: u8) -> Request {
    Request::Query {
        target: target(1),
        operations: vec![(operation(n), Fence(1))],
    }
}

fn granted(to: ServerId) -> Event {
    Event::Granted {
        target: target(1),
        server: to,
        line: 0,
        grant: GrantId(70),
        epoch: Epoch(1),
        permits: 3,
        ttl: protocol::limits::GRANT_TTL,
    }
}

fn offered(n: u8, grant: u64) -> Event {
    Event::Offered {
        target: target(n),
        grant: GrantId(grant),
        epoch: Epoch(1),
    }
}

fn demand(server: ServerId, ready: u32) -> Request {
    Request::Demand {
        target: target(1),
        server,
        lines: match ready {
            0 => Vec::new(),
            ready => vec![Demand::of("exec", ready)],
        },
    }
}

fn up(n: u8, session: u64) -> Event {
    Event::SessionUp(Box::new(SessionUp {
        target: target(n),
        session: SessionId(session),
        shard: ShardId(0),
        at_home: true,
        remote: ([127, 0, 0, 1], 1).into(),
        capacity: 2,
        kinds: vec!["exec".to_owned()],
        open: vec![protocol::operation::OpenOperation {
            operation: operation(200),
            fence: Fence(1),
            phase: protocol::operation::Phase::Running,
        }],
        hostname: "h".to_owned(),
        software: "s".to_owned(),
        labels: Vec::new(),
    }))
}

fn down(n: u8, session: u64) -> Event {
    Event::SessionDown {
        target: target(n),
        session: SessionId(session),
        reason: DownReason::ClosedHere(CloseCode::Draining),
    }
}

fn heard(hub: &mut Hub, server: ServerId) -> Vec<Event> {
    hub.handle_come(server);
    std::iter::from_fn(|| hub.poll_event(server)).collect()
}

fn said(hub: &mut Hub) -> Vec<Request> {
    std::iter::from_fn(|| hub.poll_request()).collect()
}

fn send(hub: &mut Hub, from: ServerId, request: Request) {
    hub.handle_request(from, request).unwrap();
}

#[test]
fn words_about_an_operation_go_to_who_dispatched_it_and_after_its_end_to_all() {
    let mut hub = hub(&[A, B]);
    send(&mut hub, B, dispatch(5));
    hub.handle_event(accepted(5));
    hub.handle_event(finished(5));
    assert_eq!(heard(&mut hub, B), [accepted(5), finished(5)]);
    assert!(heard(&mut hub, A).is_empty());
    hub.handle_event(finished(5));
    assert_eq!(heard(&mut hub, A), [finished(5)]);
    assert_eq!(heard(&mut hub, B), [finished(5)]);
    assert_eq!(hub.routes.len(), 0);
}

#[test]
fn whoever_asked_last_hears_the_answer_and_what_was_never_seen_is_over() {
    let mut hub = hub(&[A, B]);
    send(&mut hub, A, dispatch(5));
    send(&mut hub, B, query(5));
    hub.handle_event(accepted(5));
    let report = Event::Report {
        target: target(1),
        operation: operation(5),
        fence: Fence(1),
        state: OperationState::NeverSeen,
    };
    hub.handle_event(report.clone());
    assert_eq!(heard(&mut hub, B), [accepted(5), report]);
    assert!(heard(&mut hub, A).is_empty());
    assert_eq!(hub.routes.len(), 0);
}

#[test]
fn what_cannot_be_delivered_is_told_to_the_sender_alone() {
    let mut hub = hub(&[A, B]);
    send(&mut hub, B, dispatch(5));
    let event = Event::NotDelivered {
        target: target(1),
        operation: operation(5),
        fence: Fence(1),
        reason: NotDelivered::NoGrant,
    };
    hub.handle_event(event.clone());
    assert_eq!(heard(&mut hub, B), [event]);
    assert!(heard(&mut hub, A).is_empty());
}

#[test]
fn demand_says_whose_it_is_and_a_server_that_leaves_takes_its_own_back() {
    let mut hub = hub(&[A, B]);
    hub.handle_event(up(1, 1));
    // Whatever it calls itself.
    send(&mut hub, B, demand(A, 4));
    assert_eq!(said(&mut hub), [demand(B, 4)]);
    send(&mut hub, A, demand(A, 2));
    said(&mut hub);
    hub.handle_leave(B);
    assert_eq!(said(&mut hub), [demand(B, 0)]);
    hub.handle_event(granted(B));
    let back = Request::ReturnPermits {
        target: target(1),
        grant: GrantId(70),
        unused: 3,
    };
    assert_eq!(said(&mut hub), [back]);
    hub.handle_event(granted(A));
    assert_eq!(heard(&mut hub, A)[1..], [granted(A)]);
    // The session is gone, and with it what was stated.
    hub.handle_event(down(1, 1));
    hub.handle_leave(A);
    assert!(said(&mut hub).is_empty());
}

#[test]
fn a_server_that_drains_hears_nothing_and_what_it_had_not_read_goes_to_the_others() {
    let mut hub = hub(&[A, B]);
    send(&mut hub, A, dispatch(5));
    send(&mut hub, A, demand(A, 1));
    said(&mut hub);
    hub.handle_event(finished(5));
    hub.handle_event(granted(A));
    hub.handle_drain(A);
    assert_eq!(hub.leader(), Some(B));
    assert_eq!(heard(&mut hub, B), [finished(5)]);
    let sent = said(&mut hub);
    assert_eq!(sent[0], demand(A, 0));
    assert!(matches!(sent[1], Request::ReturnPermits { unused: 3, .. }));
    // A claim that was on its way through the store.
    send(&mut hub, A, dispatch(6));
    hub.handle_event(accepted(6));
    assert_eq!(heard(&mut hub, B), [accepted(6)]);
    assert!(heard(&mut hub, A).is_empty());
    assert_eq!(said(&mut hub), [dispatch(6)]);
    send(&mut hub, A, demand(A, 9));
    assert!(said(&mut hub).is_empty());
}

#[test]
fn offers_go_to_the_leader_and_back_when_it_leaves() {
    let mut hub = hub(&[B, A]);
    hub.handle_event(offered(1, 7));
    hub.handle_event(offered(2, 8));
    assert_eq!(heard(&mut hub, A), [offered(1, 7), offered(2, 8)]);
    // One is used.
    send(&mut hub, A, dispatch(7));
    said(&mut hub);
    hub.handle_leave(A);
    let back = Request::ReturnPermits {
        target: target(2),
        grant: GrantId(8),
        unused: 1,
    };
    assert_eq!(said(&mut hub), [back]);
    hub.handle_event(offered(2, 9));
    let withdrawn = |grant| Event::Withdrawn {
        target: target(2),
        grant: GrantId(grant),
    };
    hub.handle_event(withdrawn(8));
    hub.handle_event(withdrawn(9));
    assert_eq!(heard(&mut hub, B), [offered(2, 9), withdrawn(9)]);
}

#[test]
fn questions_of_one_number_are_told_apart() {
    let mut hub = hub(&[A, B]);
    let ask = |ticket| Request::AskFlow {
        target: target(1),
        ticket,
    };
    send(&mut hub, A, ask(1));
    send(&mut hub, B, ask(1));
    let tickets: Vec<u64> = said(&mut hub)
        .into_iter()
        .map(|request| match request {
            Request::AskFlow { ticket, .. } => ticket,
            other => panic!("{other:?}"),
        })
        .collect();
    let told = |ticket| Event::FlowTold {
        target: target(1),
        ticket,
        flow: None,
    };
    hub.handle_event(told(tickets[1]));
    assert_eq!(heard(&mut hub, B), [told(1)]);
    assert!(heard(&mut hub, A).is_empty());
    hub.handle_event(told(tickets[1]));
    assert!(heard(&mut hub, B).is_empty(), "it was answered");
    hub.handle_event(told(tickets[0]));
    assert_eq!(heard(&mut hub, A), [told(1)]);
    for n in 0..=QUESTIONS_MAX as u64 {
        send(&mut hub, A, ask(n));
        said(&mut hub);
    }
    assert_eq!(hub.questions.answered(tickets[1] + 1), None, "pushed out");
    assert!(hub.questions.answered(tickets[1] + 2).is_some());
}

#[test]
fn limits_are_told_once_by_the_one_that_leads() {
    let mut hub = hub(&[A, B]);
    let limits = |max| Request::SetLimits {
        limits: vec![Limit {
            key: protocol::flow::LimitKey::Global,
            min: 0,
            max,
            pin: None,
        }],
    };
    send(&mut hub, A, limits(1));
    send(&mut hub, A, limits(1));
    send(&mut hub, B, limits(2));
    send(&mut hub, A, limits(3));
    hub.handle_leave(A);
    send(&mut hub, B, limits(4));
    assert_eq!(said(&mut hub), [limits(1), limits(3), limits(4)]);
}

#[test]
fn whoever_comes_later_meets_the_sessions_that_are_up() {
    let mut hub = hub(&[A]);
    hub.handle_event(up(1, 1));
    hub.handle_event(up(2, 2));
    hub.handle_event(down(1, 1));
    hub.handle_join(B).unwrap();
    assert!(!hub.has_event(B), "it has not come yet");
    let met = heard(&mut hub, B);
    let [Event::SessionUp(up)] = &met[..] else {
        panic!("{met:?}");
    };
    assert_eq!((up.target, up.session), (target(2), SessionId(2)));
    assert!(up.open.is_empty(), "an inventory as old as the session");
    assert_eq!(hub.handle_join(B), Err(JoinError::Taken(B)));
}

fn admit(n: u8) -> Request {
    Request::AdmitAgent {
        target: target(n),
        keys: Vec::new(),
    }
}

#[test]
fn agents_that_the_store_no_longer_has_are_not_let_in_any_more() {
    let revoked = |hub: &mut Hub| -> Vec<AgentId> {
        let said = said(hub).into_iter();
        said.filter_map(|request| match request {
            Request::RevokeAgent { agent } => Some(agent),
            _ => None,
        })
        .collect()
    };
    let mut hub = Hub::default();
    let begin = |hub: &mut Hub, server, agents: &[u8]| {
        hub.handle_join(server).unwrap();
        for n in agents {
            send(hub, server, admit(*n));
        }
    };
    begin(&mut hub, A, &[1, 2, 3]);
    hub.handle_come(A);
    send(&mut hub, A, Request::RevokeAgent { agent: agent(3) });
    assert_eq!(revoked(&mut hub), [agent(3)], "as it said itself");
    // A has died before it said that 2 is gone, which B has read; and 4 has come since.
    begin(&mut hub, B, &[1]);
    send(&mut hub, A, admit(4));
    assert_eq!(revoked(&mut hub), []);
    hub.handle_come(B);
    assert_eq!(revoked(&mut hub), [agent(2)]);
    // That is said once.
    hub.handle_come(B);
    hub.handle_leave(A);
    begin(&mut hub, C, &[4, 1]);
    hub.handle_come(C);
    assert_eq!(revoked(&mut hub), []);
}

#[test]
fn newcomers_and_refusals_are_told_to_one() {
    let mut hub = hub(&[B, C]);
    let event = Event::Security {
        kind: SecurityEvent::KeyNotPinned,
        agent: None,
        remote: ([127, 0, 0, 1], 1).into(),
    };
    hub.handle_event(event.clone());
    assert_eq!(heard(&mut hub, B), [event]);
    assert!(heard(&mut hub, C).is_empty());
}

#[test]
fn the_gateway_is_not_read_while_somebody_has_no_room_or_nobody_is_there() {
    let mut hub = Hub::default();
    assert_eq!(hub.room(), 0);
    hub.handle_join(A).unwrap();
    assert_eq!(hub.room(), 0, "it does not hear yet");
    hub.handle_come(A);
    enter(&mut hub, B);
    hub.handle_join(C).unwrap();
    while hub.room() > 0 {
        hub.handle_event(up(1, 1));
    }
    assert_eq!(heard(&mut hub, A).len(), EVENTS_MAX);
    assert_eq!(hub.room(), 0, "the other one has not read");
    hub.handle_drain(B);
    assert!(hub.room() > 0, "and never will");
}

#[test]
fn requests_wait_for_room_and_come_back_whole_when_too_many_do() {
    let mut hub = hub(&[A]);
    for _ in 0..REQUESTS_MAX {
        send(&mut hub, A, dispatch(1));
    }
    let refused = hub.handle_request(A, dispatch(2));
    assert_eq!(refused, Err(Box::new(dispatch(2))));
    let first = hub.poll_request().unwrap();
    hub.unsent(first);
    assert!(hub.handle_request(A, dispatch(2)).is_err());
    assert_eq!(said(&mut hub).len(), REQUESTS_MAX);
    hub.handle_leave(A);
    assert_eq!(hub.handle_request(A, dispatch(3)), Ok(()));
    assert!(said(&mut hub).is_empty());
}

/// What may happen, in the model below.
#[derive(Clone, Debug)]
enum Step {
    Join(u32),
    Drain(u32),
    Leave(u32),
    Dispatch(u32, u8),
    Query(u32, u8),
    Up(u8),
    Down(u8),
    Word(u8),
    End(u8),
    Read(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let (server, thing) = (1..4_u32, 0..4_u8);
    prop_oneof![
        2 => server.clone().prop_map(Step::Join),
        1 => server.clone().prop_map(Step::Drain),
        1 => server.clone().prop_map(Step::Leave),
        4 => (server.clone(), thing.clone()).prop_map(|(s, n)| Step::Dispatch(s, n)),
        2 => (server.clone(), thing.clone()).prop_map(|(s, n)| Step::Query(s, n)),
        3 => thing.clone().prop_map(Step::Up),
        2 => thing.clone().prop_map(Step::Down),
        4 => thing.clone().prop_map(Step::Word),
        3 => thing.prop_map(Step::End),
        3 => server.prop_map(Step::Read),
    ]
}

/// Each server's own view, as it follows from what it has read.
#[derive(Default)]
struct View {
    sessions: BTreeMap<AgentId, SessionId>,
    words: usize,
}

impl View {
    fn read(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::SessionUp(up) => {
                    self.sessions.insert(up.target.agent, up.session);
                }
                Event::SessionDown {
                    target, session, ..
                } => {
                    if self.sessions.get(&target.agent) == Some(&session) {
                        self.sessions.remove(&target.agent);
                    }
                }
                _ => self.words += 1,
            }
        }
    }
}

proptest! {
    /// Whatever servers come, drain and go: those that stay agree on the sessions, and every word is read by
    /// somebody, by its server alone while that is known.
    #[test]
    fn nothing_is_lost_between_the_gateway_and_servers_that_come_and_go(steps in prop::collection::vec(step(), 1..80)) {
        let mut hub = Hub::default();
        let mut views: BTreeMap<u32, View> = BTreeMap::new();
        let mut draining = BTreeSet::new();
        let mut routes: BTreeMap<u8, u32> = BTreeMap::new();
        let mut sessions: BTreeMap<u8, u64> = BTreeMap::new();
        let (mut next, mut to_read, mut read) = (0, 0, 0);
        for step in steps {
            let alive: Vec<u32> = views.keys().copied().filter(|s| !draining.contains(s)).collect();
            // Nobody takes words while nobody is there: the gateway keeps them.
            let heard_by = |routes: &BTreeMap<u8, u32>, n| match routes.get(&n) {
                Some(_) => 1,
                None => alive.len(),
            };
            match step {
                Step::Join(s) => {
                    let fresh = hub.handle_join(ServerId(s)).is_ok();
                    hub.handle_come(ServerId(s));
                    prop_assert_eq!(fresh, !views.contains_key(&s));
                    views.entry(s).or_default();
                }
                Step::Drain(s) | Step::Leave(s) if views.contains_key(&s) => {
                    // What it has read counts; the rest must be read by the others.
                    let mut view = std::mem::take(views.get_mut(&s).unwrap());
                    let before = view.words;
                    if !draining.contains(&s) {
                        view.read(heard(&mut hub, ServerId(s)));
                    }
                    read += view.words - before;
                    routes.retain(|_, of| *of != s);
                    if matches!(step, Step::Drain(_)) {
                        hub.handle_drain(ServerId(s));
                        draining.insert(s);
                        views.insert(s, view);
                    } else {
                        hub.handle_leave(ServerId(s));
                        draining.remove(&s);
                        views.remove(&s);
                    }
                }
                Step::Dispatch(s, n) | Step::Query(s, n) if views.contains_key(&s) => {
                    let request = match step {
                        Step::Query(..) => query(n),
                        _ => dispatch(n),
                    };
                    send(&mut hub, ServerId(s), request);
                    if !draining.contains(&s) {
                        routes.insert(n, s);
                    }
                }
                Step::Up(n) if !alive.is_empty() => {
                    next += 1;
                    sessions.insert(n, next);
                    hub.handle_event(up(n, next));
                }
                Step::Down(n) if !alive.is_empty() => {
                    if let Some(session) = sessions.remove(&n) {
                        hub.handle_event(down(n, session));
                    }
                }
                Step::Word(n) if !alive.is_empty() => {
                    to_read += heard_by(&routes, n);
                    hub.handle_event(accepted(n));
                }
                Step::End(n) if !alive.is_empty() => {
                    to_read += heard_by(&routes, n);
                    routes.remove(&n);
                    hub.handle_event(finished(n));
                }
                Step::Read(s) if views.contains_key(&s) => {
                    let view = views.get_mut(&s).unwrap();
                    let before = view.words;
                    view.read(heard(&mut hub, ServerId(s)));
                    read += view.words - before;
                }
                _ => {}
            }
            said(&mut hub);
        }
        for (s, view) in &mut views {
            let before = view.words;
            view.read(heard(&mut hub, ServerId(*s)));
            read += view.words - before;
            if !draining.contains(s) {
                let expected: BTreeMap<_, _> = sessions
                    .iter()
                    .map(|(n, session)| (agent(*n), SessionId(*session)))
                    .collect();
                prop_assert_eq!(&view.sessions, &expected);
            }
        }
        prop_assert_eq!(read, to_read);
        prop_assert_eq!(hub.routes.len(), routes.len());
    }
}

#[test]
fn one_that_observes_hears_and_asks_and_neither_leads_nor_keeps_the_gateway_read() {
    let mut hub = Hub::default();
    hub.handle_observe(A).unwrap();
    hub.handle_come(A);
    assert_eq!(hub.handle_observe(A), Err(JoinError::Taken(A)));
    assert_eq!((hub.leader(), hub.servers(), hub.room()), (None, 0, 0));
    enter(&mut hub, B);
    assert_eq!((hub.leader(), hub.servers()), (Some(B), 1));
    assert_eq!(hub.room(), EVENTS_MAX);
    hub.handle_event(up(1, 1));
    hub.handle_event(Event::Offered {
        target: target(1),
        grant: GrantId(7),
        epoch: Epoch(1),
    });
    assert!(matches!(hub.poll_event(A), Some(Event::SessionUp(_))));
    assert_eq!(hub.poll_event(A), None, "the offer is the leader's");
    assert!(matches!(hub.poll_event(B), Some(Event::SessionUp(_))));
    assert!(matches!(hub.poll_event(B), Some(Event::Offered { .. })));
    hub.handle_leave(B);
    assert_eq!((hub.leader(), hub.room()), (None, 0));
}
