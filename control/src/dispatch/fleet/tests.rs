//! The bounded queues against the whole ones, and what the gateway is told of demand.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use protocol::flow::Class;
use protocol::ids::{Fence, SessionId, ShardId, Slot};
use uuid::Uuid;

use super::*;
use crate::clock;
use crate::dispatch::handle::WaitingOn;
use crate::process::pause::{PauseKey, PauseScope};
use crate::process::{State, StepId};
use crate::store::lines::FoundLine;

pub(super) const AGENT: AgentId = AgentId(Uuid::from_u128(1));

pub(super) fn target() -> Target {
    Target {
        agent: AGENT,
        group: GroupId(Uuid::from_u128(2)),
        slot: Slot(3),
    }
}

fn session(number: u64) -> SessionView {
    SessionView {
        session: SessionId(number),
        shard: ShardId(0),
        at_home: true,
        remote: ([127, 0, 0, 1], 1).into(),
        capacity: 4,
        kinds: Vec::new(),
        hostname: String::new(),
        software: String::new(),
        labels: Vec::new(),
    }
}

pub(super) fn connected() -> Fleet {
    let mut fleet = Fleet::new(ServerId(5));
    fleet.admit(target());
    fleet.connect(target(), session(1), UnixMs(1));
    fleet
}

/// A line that needs nothing but its agent.
fn plain(class: Class) -> Arc<Line> {
    Arc::new(Line {
        class,
        tenant: "acme".to_owned(),
        kind: "exec".to_owned(),
        ..Line::default()
    })
}

pub(super) fn worker(class: Class, work: &str) -> Arc<Line> {
    Arc::new(Line {
        work: work.to_owned(),
        ..Line::clone(&plain(class))
    })
}

pub(super) fn place(at: u64, number: u128) -> Place {
    (UnixMs(at), ProcessId(Uuid::from_u128(number)))
}

const LATER: UnixMs = UnixMs(1_000_000);

pub(super) fn add(fleet: &mut Fleet, line: &Arc<Line>, place: Place) {
    fleet.count_ready(AGENT, 1);
    fleet.enqueue(AGENT, line, (place, LATER));
}

/// The lines of a demand, and how many wait in each.
pub(super) fn stated(fleet: &mut Fleet) -> Option<BTreeMap<Line, u32>> {
    fleet.demand(AGENT, true).map(|request| match request {
        Request::Demand { lines, server, .. } => {
            assert_eq!(server, ServerId(5));
            let lines = lines.into_iter();
            lines.map(|line| (line.line, line.ready)).collect()
        }
        other => panic!("{other:?}"),
    })
}

fn told(fleet: &mut Fleet) -> Option<u32> {
    stated(fleet).map(|lines| lines.values().sum())
}

pub(super) fn number(fleet: &Fleet, line: &Line) -> LineId {
    fleet.lines.find(line).unwrap()
}

fn places(taken: &[Taken]) -> Vec<Place> {
    taken.iter().map(|taken| taken.place).collect()
}

#[test]
fn what_is_claimed_on_an_offer_is_no_demand() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    assert_eq!(fleet.take_on_offer(AGENT), None, "nothing is ready");
    add(&mut fleet, &line, place(5, 0));
    add(&mut fleet, &line, place(5, 1));
    let (at, grant, epoch, taken) = fleet.take_on_offer(AGENT).unwrap();
    assert_eq!((at, grant, epoch), (target(), GrantId(7), Epoch(1)));
    assert_eq!(taken.place, place(5, 0));
    assert_eq!(fleet.take_on_offer(AGENT), None, "an offer is one permit");
    assert_eq!(told(&mut fleet), Some(1));
    fleet.settle(AGENT, taken.line, true);
    assert_eq!(
        told(&mut fleet),
        None,
        "the gateway still knows of the other"
    );
}

#[test]
fn an_offer_is_for_what_needs_only_the_agent_and_if_nothing_more_urgent_waits() {
    let mut fleet = connected();
    let (build, backup) = (
        worker(Class::Interactive, "build"),
        plain(Class::Background),
    );
    add(&mut fleet, &build, place(5, 0));
    add(&mut fleet, &backup, place(1, 1));
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    assert_eq!(fleet.take_on_offer(AGENT), None, "the build goes first");
    assert_eq!(fleet.useless_offer(AGENT), None, "nobody was told yet");
    assert_eq!(told(&mut fleet), Some(2));
    // It holds the place that the build waits for.
    assert_eq!(fleet.useless_offer(AGENT), Some((target(), GrantId(7))));
    assert_eq!(fleet.useless_offer(AGENT), None);
    let taken = fleet.take(AGENT, number(&fleet, &build), 1);
    assert_eq!(places(&taken), [place(5, 0)]);
    fleet.offered(AGENT, GrantId(8), Epoch(1));
    let (.., taken) = fleet.take_on_offer(AGENT).unwrap();
    assert_eq!(taken.place, place(1, 1));
    // The gateway offers ahead of what is on its way: nothing waits, so it may keep it.
    fleet.offered(AGENT, GrantId(9), Epoch(1));
    assert_eq!(fleet.useless_offer(AGENT), None);
}

#[test]
fn offers_end_with_their_session_and_when_they_are_withdrawn() {
    let mut fleet = connected();
    add(&mut fleet, &plain(Class::Normal), place(5, 0));
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    fleet.withdrawn(AGENT, GrantId(6));
    fleet.withdrawn(AGENT, GrantId(7));
    assert_eq!(fleet.take_on_offer(AGENT), None);
    fleet.offered(AGENT, GrantId(8), Epoch(1));
    assert!(fleet.disconnect(target(), SessionId(1), UnixMs(2)));
    fleet.offered(AGENT, GrantId(9), Epoch(1));
    fleet.connect(target(), session(2), UnixMs(3));
    assert_eq!(fleet.take_on_offer(AGENT), None);
}

#[test]
fn demand_is_told_once_and_again_only_when_the_gateway_may_run_dry() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    assert_eq!(told(&mut fleet), None);
    for n in 0..3 {
        add(&mut fleet, &line, place(5, n));
    }
    assert_eq!(told(&mut fleet), Some(3));
    assert_eq!(told(&mut fleet), None);
    // A dispatch lowers the figure at the gateway by itself.
    let id = number(&fleet, &line);
    assert_eq!(fleet.take(AGENT, id, 2).len(), 2);
    fleet.settle(AGENT, id, false);
    fleet.settle(AGENT, id, false);
    assert_eq!(told(&mut fleet), None);
    // What is gone otherwise is taken back.
    fleet.uncount_ready(AGENT, Some((&line, place(5, 2))));
    assert_eq!(told(&mut fleet), Some(0));
    assert_eq!(fleet.lines.len(), 0, "the line is forgotten");
}

#[test]
fn lines_are_stated_apart_with_their_earliest_deadlines_and_their_tenants_weights() {
    let mut fleet = connected();
    let (build, plain) = (worker(Class::Normal, "build"), plain(Class::Normal));
    fleet.set_weights(BTreeMap::from([("acme".to_owned(), 7)]));
    for (n, deadline) in [(0, 900), (1, 300), (2, 600)] {
        fleet.count_ready(AGENT, 1);
        fleet.enqueue(AGENT, &build, (place(5, n), UnixMs(deadline)));
    }
    add(&mut fleet, &plain, place(5, 3));
    let Some(Request::Demand { lines, .. }) = fleet.demand(AGENT, true) else {
        panic!("nothing is told");
    };
    let found = lines.iter().map(|line| {
        let id = LineId(line.number);
        assert_eq!(**fleet.line(id).unwrap(), line.line);
        (
            line.line.work.as_str(),
            line.ready,
            line.deadline_ms,
            line.weight,
        )
    });
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    assert_eq!(found, [("", 1, LATER.0, 7), ("build", 3, 300, 7)]);
    // Another weight is told at once; the same one is not told again.
    assert_eq!(fleet.set_weights(BTreeMap::new()), [AGENT]);
    assert_eq!(told(&mut fleet), Some(4));
    assert!(fleet.set_weights(BTreeMap::new()).is_empty());
    assert_eq!(told(&mut fleet), None);
}

#[test]
fn a_grant_takes_from_its_line_only() {
    let mut fleet = connected();
    let (build, migrate) = (
        worker(Class::Normal, "build"),
        worker(Class::Normal, "migrate"),
    );
    add(&mut fleet, &build, place(1, 1));
    add(&mut fleet, &migrate, place(2, 2));
    add(&mut fleet, &migrate, place(3, 3));
    let id = number(&fleet, &migrate);
    let taken = fleet.take(AGENT, id, 5);
    assert_eq!(places(&taken), [place(2, 2), place(3, 3)]);
    assert!(fleet.take(AGENT, id, 1).is_empty());
    assert!(fleet.take(AGENT, LineId(999), 1).is_empty(), "no such line");
    // One is put back: it is the first again.
    fleet.settle(AGENT, id, false);
    fleet.put_back(AGENT, &taken[0]);
    assert_eq!(fleet.line_of(AGENT, taken[0].place.1), Some((id, 1)));
    assert_eq!(places(&fleet.take(AGENT, id, 5)), [place(2, 2)]);
}

#[test]
fn a_new_session_is_told_everything_anew_and_no_session_nothing() {
    let mut fleet = connected();
    add(&mut fleet, &plain(Class::Normal), place(5, 1));
    assert_eq!(told(&mut fleet), Some(1));
    assert!(
        !fleet.disconnect(target(), SessionId(9), UnixMs(2)),
        "another session"
    );
    assert!(fleet.disconnect(target(), SessionId(1), UnixMs(2)));
    assert_eq!(told(&mut fleet), None);
    assert_eq!(fleet.connected().values().sum::<u64>(), 0);
    fleet.connect(target(), session(2), UnixMs(3));
    read(&mut fleet, &[(&plain(Class::Normal), &[place(5, 1)])]);
    assert_eq!(told(&mut fleet), Some(1));
    assert_eq!(fleet.connected().values().sum::<u64>(), 1);
}

fn known(state: State, line: &Arc<Line>) -> Known {
    Known {
        fence: Fence(1),
        step: StepId::default(),
        state,
        line: Arc::clone(line),
    }
}

#[test]
fn agents_are_asked_at_growing_intervals_while_they_have_a_session() {
    let mut fleet = connected();
    let process = ProcessId(Uuid::from_u128(5));
    let start = clock::monotonic();
    let unknown = known(State::Unknown, &plain(Class::Normal));
    fleet.activate(AGENT, process, &unknown, Duration::ZERO, start);
    let mut asked = Vec::new();
    for second in 0..200 {
        let now = start + Duration::from_secs(second);
        if !fleet.due_questions(now).is_empty() {
            asked.push(second);
        }
    }
    assert_eq!(asked, [5, 15, 35, 75, 135, 195]);
    fleet.disconnect(target(), SessionId(1), UnixMs(2));
    let later = start + Duration::from_secs(10_000);
    assert!(fleet.due_questions(later).is_empty());
    fleet.deactivate(AGENT, process);
    assert_eq!(fleet.active(), 0);
}

#[test]
fn an_operation_knows_its_line_for_as_long_as_its_agent_may_know_it() {
    let mut fleet = connected();
    let process = ProcessId(Uuid::from_u128(5));
    let now = clock::monotonic();
    let (first, second) = (
        worker(Class::Normal, "build"),
        worker(Class::Normal, "migrate"),
    );
    let line = |fleet: &Fleet| {
        let active = fleet.get(AGENT).unwrap().active()[&process];
        Line::clone(fleet.line(active.line).unwrap())
    };
    let leased = known(State::Leased, &first);
    fleet.activate(AGENT, process, &leased, Duration::ZERO, now);
    assert_eq!(line(&fleet), *first);
    // The next step may need something else.
    let next = known(State::Leased, &second);
    fleet.activate(AGENT, process, &next, Duration::ZERO, now);
    assert_eq!((line(&fleet), fleet.lines.len()), (Line::clone(&second), 1));
    fleet.deactivate(AGENT, process);
    fleet.deactivate(AGENT, process);
    assert_eq!(fleet.lines.len(), 0);
}

fn paused(keys: &[PauseKey]) -> Pauses {
    Pauses::new(keys)
}

#[test]
fn a_paused_agent_takes_nothing_and_its_demand_is_withdrawn() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    add(&mut fleet, &line, place(5, 0));
    assert_eq!(told(&mut fleet), Some(1));
    let key = PauseKey::of_id(PauseScope::Agent, AGENT.0);
    assert_eq!(
        fleet.set_pauses(paused(std::slice::from_ref(&key))),
        [AGENT]
    );
    assert_eq!(
        told(&mut fleet),
        Some(0),
        "the gateway hears that nothing waits"
    );
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    assert_eq!(fleet.take_on_offer(AGENT), None);
    assert!(fleet.take(AGENT, number(&fleet, &line), 3).is_empty());
    assert_eq!(fleet.ready_stored(), 1, "nothing of it was rewritten");
    // The pause of its group as well, and of no other one.
    let group = PauseKey::of_id(PauseScope::Group, target().group.0);
    assert!(
        fleet.set_pauses(paused(&[group])).is_empty(),
        "paused as before"
    );
    let other = PauseKey::of_id(PauseScope::Group, Uuid::from_u128(99));
    assert_eq!(fleet.set_pauses(paused(&[other])), [AGENT]);
    read(&mut fleet, &[(&line, &[place(5, 0)])]);
    assert_eq!(told(&mut fleet), Some(1));
    assert!(fleet.take_on_offer(AGENT).is_some(), "and goes on");
}

/// The store is asked, and has these places of lines and no other ones.
fn read(fleet: &mut Fleet, has: &[(&Arc<Line>, &[Place])]) {
    assert!(fleet.wants_refill(AGENT));
    let want = fleet.refill_begins(AGENT).unwrap();
    let mut found = found_nothing(want);
    for line in &mut found.lines {
        let of = has.iter().filter(|(of, _)| **of == line.line);
        let places = of.flat_map(|(_, places)| places.iter());
        line.places.extend(places.map(|place| (*place, LATER)));
    }
    fleet.refill(found);
}

/// The store has nothing more that may be started, of any line that was asked for.
fn found_nothing(want: Want) -> Found {
    let lines = want.lines.into_iter().map(|(line, _)| FoundLine {
        line,
        places: Vec::new(),
        all: true,
    });
    Found {
        agent: want.agent,
        lines: lines.collect(),
        others: want.others.map(|_| Vec::new()),
    }
}

#[test]
fn a_pause_of_a_kind_reads_the_queues_anew_and_an_empty_answer_ends_the_asking() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    add(&mut fleet, &line, place(5, 0));
    add(&mut fleet, &line, place(5, 1));
    assert_eq!(told(&mut fleet), Some(2));
    let key = PauseKey::of_name(PauseScope::Kind, "exec");
    assert_eq!(fleet.set_pauses(paused(&[key])), [AGENT]);
    assert_eq!(told(&mut fleet), Some(0));
    assert!(fleet.wants_refill(AGENT));
    // All that is stored is paused.
    let want = fleet.refill_begins(AGENT).unwrap();
    assert_eq!(want.lines[0].0, line);
    fleet.refill(found_nothing(want));
    assert!(!fleet.wants_refill(AGENT), "it would ask for ever");
    assert_eq!(fleet.ready_stored(), 2, "they are still there");
    // Something new that came while the store was asked makes it ask again.
    fleet.look_again(AGENT);
    let want = fleet.refill_begins(AGENT).unwrap();
    add(&mut fleet, &line, place(6, 2));
    fleet.refill(found_nothing(want));
    assert!(fleet.wants_refill(AGENT));
    fleet.set_pauses(Pauses::default());
    assert!(fleet.wants_refill(AGENT));
}

#[test]
fn the_lines_of_a_paused_tenant_are_not_read_and_keep_nobody_from_an_offer() {
    let mut fleet = connected();
    let urgent = plain(Class::Interactive);
    let other = Arc::new(Line {
        tenant: "other".to_owned(),
        ..Line::clone(&plain(Class::Background))
    });
    add(&mut fleet, &urgent, place(5, 0));
    add(&mut fleet, &other, place(5, 1));
    let key = PauseKey::of_name(PauseScope::Tenant, "acme");
    fleet.set_pauses(paused(&[key]));
    let want = fleet.refill_begins(AGENT).unwrap();
    let asked: Vec<_> = want.lines.iter().map(|(line, _)| line).collect();
    assert_eq!(asked, [&other]);
    let mut found = found_nothing(want);
    found.lines[0].places.push((place(5, 1), LATER));
    fleet.refill(found);
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    let (.., taken) = fleet.take_on_offer(AGENT).unwrap();
    assert_eq!(taken.place, place(5, 1));
    assert!(!fleet.wants_refill(AGENT));
}

/// What a heartbeat says of an agent.
fn heard(fleet: &mut Fleet, agent: AgentId, counts: &[(&Arc<Line>, u32)]) -> Vec<AgentId> {
    let counts = counts.iter().map(|(line, ready)| ReadyCount {
        agent,
        line: Arc::clone(line),
        ready: *ready,
    });
    fleet.correct_ready(&BTreeSet::from([agent]), counts.collect())
}

#[test]
fn what_others_have_made_is_asked_for_and_what_they_took_is_no_longer_counted() {
    let mut fleet = connected();
    let line = worker(Class::Normal, "build");
    assert_eq!(heard(&mut fleet, AGENT, &[(&line, 3)]), [AGENT]);
    assert_eq!(fleet.ready_stored(), 3);
    assert!(fleet.correct_ready(&BTreeSet::new(), Vec::new()).is_empty());
    assert_eq!(fleet.ready_stored(), 3, "nobody has changed that");
    let want = fleet.refill_begins(AGENT).unwrap();
    assert_eq!(
        want.lines,
        [(Arc::clone(&line), u32::try_from(READY_KEPT).unwrap())]
    );
    assert_eq!(want.others, None, "all lines are known");
    fleet.refill(found_nothing(want));
    assert_eq!(fleet.ready_stored(), 0);
    assert!(!fleet.wants_refill(AGENT));
    assert_eq!(heard(&mut fleet, AGENT, &[(&line, 3)]), [AGENT]);
    assert!(heard(&mut fleet, AGENT, &[]).is_empty());
    assert_eq!(fleet.ready_stored(), 0, "they took all of it");
}

#[test]
fn what_others_took_or_cancelled_is_kept_no_longer_and_the_line_keeps_its_turn() {
    let mut fleet = connected();
    let line = worker(Class::Normal, "build");
    for n in 0..6 {
        add(&mut fleet, &line, place(5, n));
    }
    assert_eq!(told(&mut fleet), Some(6));
    let id = number(&fleet, &line);
    let taken = fleet.take(AGENT, id, 2);
    heard(&mut fleet, AGENT, &[(&line, 6)]);
    assert!(!fleet.wants_refill(AGENT), "what is being claimed is there");
    // Three of the four others are gone.
    heard(&mut fleet, AGENT, &[(&line, 3)]);
    assert_eq!((fleet.ready_stored(), fleet.ready_kept), (3, 0));
    assert_eq!(told(&mut fleet), None, "it is told when it is known");
    read(&mut fleet, &[(&line, &[place(5, 4)])]);
    assert_eq!((told(&mut fleet), fleet.ready_kept), (Some(3), 1));
    // All are gone, those that are being claimed as well.
    heard(&mut fleet, AGENT, &[]);
    assert_eq!((fleet.ready_stored(), fleet.ready_kept), (0, 0));
    assert_eq!(told(&mut fleet), Some(2));
    assert!(!fleet.wants_refill(AGENT), "there is nothing to be read");
    for taken in taken {
        fleet.settle(AGENT, taken.line, false);
    }
    assert_eq!((told(&mut fleet), fleet.lines.len()), (None, 0));
}

#[test]
fn an_emptied_line_of_a_paused_agent_is_withdrawn_at_once() {
    let mut fleet = connected();
    let line = worker(Class::Normal, "build");
    for n in 0..3 {
        add(&mut fleet, &line, place(5, n));
    }
    assert_eq!(told(&mut fleet), Some(3));
    heard(&mut fleet, AGENT, &[(&line, 1)]);
    fleet.set_pauses(paused(&[PauseKey::of_id(PauseScope::Agent, AGENT.0)]));
    assert_eq!(told(&mut fleet), Some(0));
}

#[test]
fn where_nothing_may_be_started_nothing_is_kept_and_all_of_it_is_read_later() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    let places: Vec<Place> = (0..6).map(|n| place(5, n)).collect();
    for place in &places[..4] {
        add(&mut fleet, &line, *place);
    }
    let taken = fleet.take(AGENT, number(&fleet, &line), 1);
    let want = Want {
        agent: AGENT,
        lines: vec![(Arc::clone(&line), 8)],
        others: None,
    };
    assert!(fleet.disconnect(target(), SessionId(1), UnixMs(2)));
    assert_eq!(fleet.ready_kept, 0);
    // Neither what is new, nor what comes back, nor what was read for the session that is over.
    add(&mut fleet, &line, places[4]);
    fleet.settle(AGENT, taken[0].line, false);
    fleet.put_back(AGENT, &taken[0]);
    let mut late = found_nothing(want);
    late.lines[0].places.push((places[0], LATER));
    fleet.refill(late);
    assert_eq!((fleet.ready_kept, fleet.ready_stored()), (0, 5));
    assert!(!fleet.wants_refill(AGENT));
    fleet.connect(target(), session(2), UnixMs(3));
    read(&mut fleet, &[(&line, &places[..5])]);
    assert_eq!(told(&mut fleet), Some(5));
    // A paused agent is the same.
    let key = PauseKey::of_id(PauseScope::Agent, AGENT.0);
    assert_eq!(fleet.set_pauses(paused(&[key])), [AGENT]);
    add(&mut fleet, &line, places[5]);
    assert_eq!((fleet.ready_kept, fleet.ready_stored()), (0, 6));
    assert!(!fleet.wants_refill(AGENT));
    assert_eq!(fleet.set_pauses(Pauses::default()), [AGENT]);
    read(&mut fleet, &[(&line, &places)]);
    assert_eq!(told(&mut fleet), Some(6));
}

#[test]
fn estimates_go_by_the_ends_that_all_servers_have_heard_of() {
    let mut fleet = connected();
    let start = clock::monotonic();
    let now = start + Duration::from_secs(60);
    fleet.completed(AGENT, start);
    fleet.heard_of_ends(AGENT, 1000, start);
    let each = |fleet: &Fleet| {
        let waits = fleet.waiting_on(ProcessId(Uuid::from_u128(1)), AGENT, now);
        let Some(WaitingOn::Host(queued)) = waits else {
            panic!("{waits:?}");
        };
        queued.each.unwrap()
    };
    let alone = (fleet.wait_for(AGENT, 10, now), each(&fleet));
    fleet.completed(AGENT, now);
    fleet.heard_of_ends(AGENT, 1060, now);
    let all = (fleet.wait_for(AGENT, 10, now), each(&fleet));
    assert!(
        alone.0 > 20 * all.0 && alone.1 > 20 * all.1,
        "{alone:?} {all:?}"
    );
}

#[test]
fn what_is_ready_without_a_session_is_no_longer_counted_where_nothing_is_found() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    heard(&mut fleet, AGENT, &[(&line, 3)]);
    let want = fleet.refill_begins(AGENT).unwrap();
    assert!(fleet.disconnect(target(), SessionId(1), UnixMs(2)));
    let away = |fleet: &Fleet| fleet.census(&BTreeMap::new()).ready_without_session;
    assert_eq!(away(&fleet), 3);
    fleet.refill(found_nothing(want));
    assert_eq!((fleet.ready_stored(), away(&fleet)), (0, 0));
}

#[test]
fn what_is_said_of_an_agent_that_is_not_known_yet_is_kept_for_it() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    let other = Target {
        agent: AgentId(Uuid::from_u128(9)),
        ..target()
    };
    assert!(heard(&mut fleet, other.agent, &[(&line, 3)]).is_empty());
    heard(&mut fleet, other.agent, &[(&line, 2)]);
    fleet.admit(other);
    assert_eq!(fleet.waiting_for(other.agent), 2);
    fleet.connect(other, session(2), UnixMs(1));
    assert!(fleet.wants_refill(other.agent));
    // One that has nothing any more leaves nothing behind.
    let gone = AgentId(Uuid::from_u128(10));
    heard(&mut fleet, gone, &[(&line, 3)]);
    heard(&mut fleet, gone, &[]);
    assert!(fleet.unmet.is_empty());
}

#[test]
fn an_agent_that_is_met_by_its_session_alone_is_worked_on() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    let other = Target {
        agent: AgentId(Uuid::from_u128(9)),
        ..target()
    };
    assert!(heard(&mut fleet, other.agent, &[(&line, 2)]).is_empty());
    fleet.connect(other, session(2), UnixMs(1));
    assert_eq!(fleet.waiting_for(other.agent), 2);
    assert!(fleet.wants_refill(other.agent));
    let away = fleet.census(&BTreeMap::new()).ready_without_session;
    assert_eq!((away, fleet.ready_stored()), (0, 2));
    fleet.admit(other);
    assert_eq!(fleet.waiting_for(other.agent), 2, "it is counted once");
}

#[test]
fn while_nothing_may_be_claimed_no_more_is_stated_than_what_is_on_its_way() {
    let mut fleet = connected();
    let line = plain(Class::Normal);
    for n in 0..3 {
        add(&mut fleet, &line, place(5, n));
    }
    assert_eq!(fleet.stated_agents().count(), 0);
    assert_eq!(told(&mut fleet), Some(3));
    assert_eq!(fleet.stated_agents().collect::<Vec<_>>(), [AGENT]);
    let id = number(&fleet, &line);
    assert_eq!(fleet.take(AGENT, id, 1).len(), 1);
    let withdrawn = |fleet: &mut Fleet| match fleet.demand(AGENT, false) {
        Some(Request::Demand { lines, .. }) => {
            Some(lines.iter().map(|line| line.ready).sum::<u32>())
        }
        Some(other) => panic!("{other:?}"),
        None => None,
    };
    assert_eq!(withdrawn(&mut fleet), Some(1), "its permit was granted");
    assert_eq!(withdrawn(&mut fleet), None);
    fleet.settle(AGENT, id, false);
    assert_eq!(withdrawn(&mut fleet), None, "the gateway knows");
    assert_eq!(fleet.stated_agents().count(), 0);
    assert_eq!(told(&mut fleet), Some(2));
}

#[test]
fn what_is_believed_to_be_claimed_is_told_in_parts_and_then_anew() {
    let mut fleet = connected();
    let line = worker(Class::Normal, "build");
    let now = clock::monotonic();
    for number in 1..=5 {
        let known = Known {
            fence: Fence(number),
            step: StepId::default(),
            state: State::Running,
            line: Arc::clone(&line),
        };
        let process = ProcessId(Uuid::from_u128(u128::from(number)));
        fleet.activate(AGENT, process, &known, Duration::from_secs(1), now);
    }
    let mut told = || -> Vec<u64> {
        let part = fleet.believed(2);
        part.iter().map(|(.., fence)| fence.0).collect()
    };
    assert_eq!([told(), told(), told()], [vec![1, 2], vec![3, 4], vec![5]]);
    assert_eq!(told(), [1, 2]);
}
