//! What follows from a batch, without a store.

use std::sync::Arc;

use protocol::flow::Line;
use protocol::ids::{Epoch, GroupId, ServerId, SessionId, ShardId, Slot};
use protocol::link::{Event, SessionUp, Target};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::clock;
use crate::dispatch::core::{READY_PER_AGENT_MAX, READY_PER_TENANT_MAX, Recovered};
use crate::dispatch::handle::Command as Order;
use crate::process::{Class, StepId};
use crate::store::lines::ReadyCount;
use crate::store::pauses::PauseTable;
use crate::store::processes::Names;
use crate::store::workers::Beat;

const AGENT: AgentId = AgentId(Uuid::from_u128(1));
const OTHER: AgentId = AgentId(Uuid::from_u128(2));

fn process(number: u128) -> ProcessId {
    ProcessId(Uuid::from_u128(number))
}

fn now(state: State, fence: u64) -> Now {
    Now {
        target: AGENT,
        state,
        class: Class::Normal,
        fence: Fence(fence),
        step: StepId::default(),
        ready_at: None,
        due_at: None,
        deadline_at: UnixMs(900),
        created_at: UnixMs(100),
    }
}

fn line(tenant: &str) -> Arc<Line> {
    Arc::new(Line {
        tenant: tenant.to_owned(),
        kind: "exec".to_owned(),
        ..Line::default()
    })
}

fn effect(number: u128, before: State, after: Now) -> Effect {
    Effect {
        process: process(number),
        from: None,
        operation: OperationId::new(process(number), 0),
        now: Some(after),
        before: Some(before),
        place_before: None,
        names: Some(Names {
            kind: "exec".into(),
            tenant: "acme".into(),
            line_before: line("acme"),
            line: line("acme"),
        }),
        deferred: false,
        stale: false,
        refused: None,
        tell: None,
        work: None,
        instead_of: None,
    }
}

fn target(agent: AgentId) -> Target {
    Target {
        agent,
        group: GroupId(Uuid::from_u128(9)),
        slot: Slot(0),
    }
}

fn moment() -> Moment {
    Moment {
        mono: clock::monotonic(),
        wall: UnixMs(1000),
    }
}

fn core(ready: Vec<(AgentId, &str, u32)>) -> Core {
    let counts = ready.into_iter().map(|(agent, tenant, ready)| ReadyCount {
        agent,
        line: line(tenant),
        ready,
    });
    let recovered = Recovered {
        targets: vec![target(AGENT), target(OTHER)],
        waiting: Vec::new(),
        ready: counts.collect(),
        limits: crate::store::limits::LimitTable::default(),
        pauses: PauseTable::default(),
        active: Vec::new(),
        resources: Vec::new(),
        abandoned: Vec::new(),
    };
    Core::new(moment(), (ServerId(1), Uuid::from_u128(77)), recovered)
}

#[test]
fn a_queue_is_measured_from_becoming_ready_and_not_from_a_place_that_was_given_back() {
    let since = |fence, place: Option<u64>| {
        let after = now(State::Leased, fence);
        let effect = Effect {
            place_before: place.map(UnixMs),
            ..effect(1, State::Ready, after)
        };
        ready_since(&effect, after).map(|at| at.0)
    };
    // Ready from its creation; from its scheduled time; after a backoff.
    assert_eq!(since(1, Some(100)), Some(100));
    assert_eq!(since(1, Some(400)), Some(400));
    assert_eq!(since(2, Some(500)), Some(500));
    // Back at its first place after a claim that came to nothing.
    assert_eq!(since(2, Some(100)), None);
    assert_eq!(since(1, None), None);
}

fn create(core: &mut Core, agent: AgentId, tenant: &str) -> Creation {
    let (answer, mut answered) = oneshot::channel();
    let new = NewProcess {
        tenant: tenant.to_owned(),
        ..NewProcess::of_driver(agent, "exec", "{}", UnixMs(900_000))
    };
    core.handle_command(moment(), Order::Create(vec![new], answer));
    let batch = core.poll_batch(moment(), 1).unwrap();
    assert!(batch.creates.is_empty(), "it was not refused");
    core.handle_applied(moment(), Ok(Applied::default()));
    answered.try_recv().unwrap().unwrap().pop().unwrap()
}

#[test]
fn a_queue_that_is_full_turns_newcomers_away_and_says_for_how_long() {
    let tenant_max = u32::try_from(READY_PER_TENANT_MAX).unwrap();
    let mut core = core(vec![
        (AGENT, "big", READY_PER_AGENT_MAX),
        (OTHER, "acme", tenant_max),
    ]);
    let Creation::QueueFull {
        waiting,
        retry_after,
    } = create(&mut core, AGENT, "small")
    else {
        panic!("not refused for the agent's queue");
    };
    assert_eq!(waiting, READY_PER_AGENT_MAX);
    assert_eq!(
        retry_after,
        Duration::from_secs(600),
        "nothing has ended yet"
    );
    let full = create(&mut core, OTHER, "acme");
    assert!(
        matches!(full, Creation::TenantFull { waiting: 100, .. }),
        "{full:?}"
    );
    // When some have ended the wait is their pace's.
    let long_ago = moment();
    for number in 0..50 {
        let ended = effect(number, State::Running, now(State::Succeeded, 1));
        core.effect(long_ago, ended, &mut BTreeMap::new());
    }
    let Creation::TenantFull { retry_after, .. } = create(&mut core, OTHER, "acme") else {
        panic!("not refused for the tenant's queue");
    };
    assert!(retry_after < Duration::from_secs(10), "{retry_after:?}");
}

#[test]
fn only_the_server_that_sweeps_looks_at_timers() {
    let mut core = core(Vec::new());
    core.set_next_due(Some(UnixMs(900)));
    assert_eq!(core.next_due(), None, "it need not wake for it");
    assert!(core.poll_batch(moment(), 1).is_none());
    let beat = |sweeps| {
        let mut beat = Beat::default();
        beat.sweeps = sweeps;
        beat
    };
    core.handle_beat(moment(), beat(true));
    assert_eq!(core.next_due(), Some(UnixMs(900)));
    assert!(core.poll_batch(moment(), 1).unwrap().sweep > 0);
    core.handle_applied(moment(), Ok(Applied::default()));
    core.handle_beat(moment(), beat(false));
    assert!(core.poll_batch(moment(), 1).is_none());
}

/// One with a session of its agent.
fn connected(start: Moment) -> Core {
    with_session(core(Vec::new()), start)
}

fn with_session(mut core: Core, start: Moment) -> Core {
    let up = SessionUp {
        target: target(AGENT),
        session: SessionId(1),
        shard: ShardId(0),
        at_home: true,
        remote: ([127, 0, 0, 1], 1).into(),
        capacity: 4,
        kinds: Vec::new(),
        open: Vec::new(),
        hostname: String::new(),
        software: String::new(),
        labels: Vec::new(),
    };
    core.handle_event(start, Event::SessionUp(Box::new(up)));
    core
}

fn offer(number: u64) -> Event {
    Event::Offered {
        target: target(AGENT),
        grant: protocol::ids::GrantId(number),
        epoch: Epoch(1),
    }
}

/// A process becomes ready.
fn ready(core: &mut Core, at: Moment, number: u128) {
    let after = Now {
        ready_at: Some(UnixMs(100)),
        ..now(State::Ready, 0)
    };
    core.effect(
        at,
        effect(number, State::Blocked, after),
        &mut BTreeMap::new(),
    );
}

#[test]
fn a_pause_is_answered_when_what_was_claimed_before_it_is_written() {
    let start = moment();
    let mut core = connected(start);
    core.handle_event(start, offer(1));
    ready(&mut core, start, 1);
    assert!(core.poll_batch(start, 1).is_some(), "a claim");
    core.handle_event(start, offer(2));
    ready(&mut core, start, 2);
    let (answer, mut answered) = oneshot::channel();
    let pauses = PauseTable {
        version: 1,
        pauses: Vec::new(),
    };
    core.handle_command(start, Order::Pauses(pauses, answer));
    for expected in [false, true] {
        core.handle_applied(start, Ok(Applied::default()));
        assert_eq!(answered.try_recv().is_ok(), expected);
        assert_eq!(core.poll_batch(start, 2).is_some(), !expected);
    }
}

#[test]
fn a_server_that_cannot_beat_claims_nothing() {
    let start = moment();
    let mut core = connected(start);
    let claims = |core: &Core| core.pending.claims.len();
    let later = Moment {
        mono: start.mono + Duration::from_secs(9),
        ..start
    };
    core.note_time(later);
    core.handle_event(later, offer(1));
    ready(&mut core, start, 1);
    assert_eq!(claims(&core), 0, "somebody else may hold it by now");
    core.handle_beat(start, Beat::default());
    core.note_time(later);
    core.handle_event(later, offer(1));
    assert_eq!(claims(&core), 0, "that beat began long ago");
    core.handle_beat(later, Beat::default());
    core.note_time(later);
    core.handle_event(later, offer(2));
    assert_eq!(claims(&core), 1);
}

fn after(start: Moment, millis: u64) -> Moment {
    Moment {
        mono: start.mono + Duration::from_millis(millis),
        wall: start.wall.plus(Duration::from_millis(millis)),
    }
}

/// What the gateway is sent until nothing more comes. It grants whatever is stated at once, as it does where there is
/// room, and offers a place as soon as one is given back.
fn sent_to_a_gateway_with_room(core: &mut Core, at: Moment) -> Vec<Request> {
    let mut sent = Vec::new();
    while let Some(request) = core.poll_request() {
        match &request {
            Request::Demand { lines, .. } => {
                for line in lines {
                    core.handle_event(at, granted(line.number, line.ready));
                }
            }
            Request::ReturnPermits { .. } => core.handle_event(at, offer(9)),
            _ => {}
        }
        sent.push(request);
        assert!(sent.len() < 1000, "it never ends");
    }
    sent
}

fn granted(line: u32, permits: u32) -> Event {
    Event::Granted {
        target: target(AGENT),
        server: ServerId(1),
        line,
        grant: protocol::ids::GrantId(5),
        epoch: Epoch(1),
        permits,
        ttl: Duration::from_secs(5),
    }
}

/// How much is stated to be ready, of each demand among these.
fn demands(sent: &[Request]) -> Vec<u32> {
    let demands = sent.iter().filter_map(|request| match request {
        Request::Demand { lines, .. } => Some(lines.iter().map(|line| line.ready).sum()),
        _ => None,
    });
    demands.collect()
}

#[test]
fn while_the_store_is_away_permits_do_not_go_to_and_fro_and_all_is_asked_for_when_it_is_back() {
    let start = moment();
    let mut core = connected(start);
    for number in 1..=3 {
        ready(&mut core, start, number);
    }
    let Some(Request::Demand { lines, .. }) = core.poll_request() else {
        panic!("nothing is stated");
    };
    assert_eq!(lines[0].ready, 3);
    // No room comes free before the store has been away for long.
    let late = after(start, 9000);
    core.note_time(late);
    core.handle_event(late, granted(lines[0].number, 2));
    let sent = sent_to_a_gateway_with_room(&mut core, late);
    assert_eq!(demands(&sent), [0], "what was stated is taken back");
    assert_eq!(core.stats.permits_returned, 2);
    let mut sent = Vec::new();
    for second in 10..=70 {
        let at = after(start, second * 1000);
        core.note_time(at);
        core.handle_tick(at);
        sent.extend(sent_to_a_gateway_with_room(&mut core, at));
    }
    // In case a word was lost it is taken back again from time to time.
    assert_eq!((demands(&sent), sent.len()), (vec![0, 0], 2));
    assert_eq!(core.pending.claims.len(), 0);
    let back = after(start, 71_000);
    core.handle_beat(back, Beat::default());
    core.note_time(back);
    // One goes on the place that was offered meanwhile.
    assert_eq!(core.pending.claims.len(), 1);
    let sent = sent_to_a_gateway_with_room(&mut core, back);
    assert_eq!(demands(&sent), [2]);
    assert_eq!(core.pending.claims.len(), 3);
}

#[test]
fn what_could_not_be_read_is_read_again_after_half_a_second() {
    let start = moment();
    let mut core = with_session(core(vec![(AGENT, "acme", 3)]), start);
    assert_eq!(core.refill_due(), None, "nothing has failed");
    let asked = |core: &mut Core, millis| {
        let wants = core.poll_refill(after(start, millis)).unwrap_or_default();
        wants.iter().map(|want| want.agent).collect::<Vec<_>>()
    };
    for failure in 0..3 {
        let at = failure * 600;
        assert_eq!(asked(&mut core, at), [AGENT]);
        assert_eq!(asked(&mut core, at), [], "it is being asked");
        core.refill_failed(after(start, at));
        assert_eq!(core.refill_due(), Some(after(start, at + 500).mono));
        assert_eq!(asked(&mut core, at + 499), []);
    }
    assert_eq!(asked(&mut core, 1800), [AGENT]);
    core.handle_refill(Vec::new());
    assert_eq!(core.refill_due(), None);
}

#[test]
fn a_store_that_is_away_is_tried_each_second_and_one_that_fails_less_often() {
    let longest = |error: &StoreError| {
        let mut at = moment();
        let mut core = connected(at);
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            assert!(core.poll_batch(at, 1).is_some());
            core.handle_applied(at, Err(error.clone()));
            let next = core.not_before().unwrap();
            longest = longest.max(next - at.mono);
            at.mono = next;
        }
        longest
    };
    assert_eq!(longest(&StoreError::Unreachable), Duration::from_secs(1));
    assert_eq!(longest(&StoreError::Busy), Duration::from_secs(5));
}

#[test]
fn one_that_observes_passes_orders_on_and_has_nothing_to_look_after() {
    let start = moment();
    let heard_and_said = |observes: bool| {
        let mut core = connected(start);
        if observes {
            core.observe();
        }
        ready(&mut core, start, 1);
        for tell in [Tell::Cancel(Fence(1)), Tell::Query(Fence(1))] {
            let effect = Effect {
                tell: Some(tell),
                ..effect(2, State::Running, now(State::Cancelling, 1))
            };
            core.effect(start, effect, &mut BTreeMap::new());
        }
        core.handle_event(
            start,
            Event::Accepted {
                target: target(AGENT),
                operation: OperationId::new(process(3), 0),
                fence: Fence(1),
            },
        );
        let mut said = Vec::new();
        while let Some(request) = core.poll_request() {
            said.push(match request {
                Request::Cancel { .. } => "cancel",
                Request::Query { .. } => "query",
                Request::Demand { .. } => "demand",
                other => panic!("{other:?}"),
            });
        }
        core.refresh_stats();
        let refills = core.poll_refill(start).is_some();
        (core.gathered(), core.stats.active, refills, said)
    };
    let works = (1, 1, false, vec!["cancel", "query", "demand"]);
    assert_eq!(heard_and_said(false), works);
    assert_eq!(heard_and_said(true), (0, 0, false, vec!["cancel"]));
}
