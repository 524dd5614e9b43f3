//! The bounded queue against the whole one, and what the gateway is told of demand.

use proptest::prelude::*;
use protocol::ids::{SessionId, ShardId, Slot};
use uuid::Uuid;

use super::*;
use crate::clock;
use crate::process::pause::{PauseKey, PauseScope};

const AGENT: AgentId = AgentId(Uuid::from_u128(1));

fn target() -> Target {
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

fn connected() -> Fleet {
    let mut fleet = Fleet::default();
    fleet.admit(target());
    fleet.connect(target(), session(1), UnixMs(1));
    fleet
}

fn place(class: u8, at: u64, number: u128) -> Place {
    let id = ProcessId(Uuid::from_u128(number));
    (Class::from_sql(class), UnixMs(at), id)
}

fn add(fleet: &mut Fleet, place: Place) {
    fleet.count_ready(AGENT, 1);
    fleet.enqueue(AGENT, place);
}

fn told(fleet: &mut Fleet) -> Option<u32> {
    fleet.demand(AGENT).map(|request| match request {
        Request::Demand { lines, .. } => lines.iter().map(|line| line.ready).sum(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn what_is_claimed_on_an_offer_is_no_demand() {
    let mut fleet = connected();
    fleet.offered(AGENT, GrantId(7), Epoch(1));
    assert_eq!(fleet.take_on_offer(AGENT), None, "nothing is ready");
    add(&mut fleet, place(2, 5, 0));
    add(&mut fleet, place(2, 5, 1));
    let taken = fleet.take_on_offer(AGENT);
    assert_eq!(
        taken,
        Some((target(), GrantId(7), Epoch(1), place(2, 5, 0)))
    );
    assert_eq!(fleet.take_on_offer(AGENT), None, "an offer is one permit");
    assert_eq!(told(&mut fleet), Some(1));
    fleet.settle(AGENT, true);
    assert_eq!(
        told(&mut fleet),
        None,
        "the gateway still knows of the other"
    );
}

#[test]
fn offers_end_with_their_session_and_when_they_are_withdrawn() {
    let mut fleet = connected();
    add(&mut fleet, place(2, 5, 0));
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
    assert_eq!(told(&mut fleet), None);
    for n in 0..3 {
        add(&mut fleet, place(2, 5, n));
    }
    assert_eq!(told(&mut fleet), Some(3));
    assert_eq!(told(&mut fleet), None);
    // A dispatch lowers the figure at the gateway by itself.
    assert_eq!(fleet.take(AGENT, 2).len(), 2);
    fleet.settle(AGENT, false);
    fleet.settle(AGENT, false);
    assert_eq!(told(&mut fleet), None);
    // What is gone otherwise is taken back.
    fleet.uncount_ready(AGENT, Some(place(2, 5, 2)));
    assert_eq!(told(&mut fleet), Some(0));
}

#[test]
fn a_new_session_is_told_everything_anew_and_no_session_nothing() {
    let mut fleet = connected();
    add(&mut fleet, place(2, 5, 1));
    assert_eq!(told(&mut fleet), Some(1));
    assert!(
        !fleet.disconnect(target(), SessionId(9), UnixMs(2)),
        "another session"
    );
    assert!(fleet.disconnect(target(), SessionId(1), UnixMs(2)));
    assert_eq!(told(&mut fleet), None);
    assert_eq!(fleet.connected().values().sum::<u64>(), 0);
    fleet.connect(target(), session(2), UnixMs(3));
    assert_eq!(told(&mut fleet), Some(1));
    assert_eq!(fleet.connected().values().sum::<u64>(), 1);
}

#[test]
fn agents_are_asked_at_growing_intervals_while_they_have_a_session() {
    let mut fleet = connected();
    let process = ProcessId(Uuid::from_u128(5));
    let start = clock::monotonic();
    let known = (Fence(1), StepId::default(), State::Unknown);
    fleet.activate(AGENT, process, known, Duration::ZERO, start);
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

fn paused(keys: &[PauseKey]) -> Pauses {
    Pauses::new(keys)
}

#[test]
fn a_paused_agent_takes_nothing_and_its_demand_is_withdrawn() {
    let mut fleet = connected();
    add(&mut fleet, place(2, 5, 0));
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
    assert!(fleet.take(AGENT, 3).is_empty());
    assert_eq!(fleet.ready_stored(), 1, "nothing of it was rewritten");
    // The pause of its group as well, and of no other one.
    let group = PauseKey::of_id(PauseScope::Group, target().group.0);
    assert!(
        fleet.set_pauses(paused(&[group])).is_empty(),
        "paused as before"
    );
    let other = PauseKey::of_id(PauseScope::Group, Uuid::from_u128(99));
    assert_eq!(fleet.set_pauses(paused(&[other])), [AGENT]);
    assert_eq!(told(&mut fleet), Some(1));
    assert!(fleet.take_on_offer(AGENT).is_some(), "and goes on");
}

#[test]
fn a_pause_of_a_tenant_reads_the_queues_anew_and_an_empty_answer_ends_the_asking() {
    let mut fleet = connected();
    add(&mut fleet, place(2, 5, 0));
    add(&mut fleet, place(2, 5, 1));
    assert_eq!(told(&mut fleet), Some(2));
    let key = PauseKey::of_name(PauseScope::Tenant, "acme");
    assert_eq!(fleet.set_pauses(paused(&[key])), [AGENT]);
    assert_eq!(told(&mut fleet), Some(0));
    assert!(fleet.wants_refill(AGENT));
    // All that is stored is paused.
    fleet.refill_begins(AGENT);
    fleet.ran_dry(AGENT);
    assert!(!fleet.wants_refill(AGENT), "it would ask for ever");
    // Something new that came while the store was asked makes it ask again.
    fleet.distrust_demand(AGENT);
    fleet.refill_begins(AGENT);
    add(&mut fleet, place(2, 6, 2));
    fleet.ran_dry(AGENT);
    assert!(fleet.wants_refill(AGENT));
    fleet.set_pauses(Pauses::default());
    assert!(fleet.wants_refill(AGENT));
}

#[derive(Clone, Debug)]
enum Op {
    Add(u8, u64),
    Take(u32),
    /// The oldest claim went through.
    Claimed,
    /// The store refused the oldest claim.
    Failed,
    /// Somebody cancelled one that waits.
    Cancel(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1_u8..4, 0_u64..20).prop_map(|(class, at)| Op::Add(class, at)),
        4 => (1_u32..4).prop_map(Op::Take),
        3 => Just(Op::Claimed),
        1 => Just(Op::Failed),
        1 => any::<usize>().prop_map(Op::Cancel),
    ]
}

proptest! {
    #[test]
    fn the_bounded_queue_gives_what_the_whole_one_would(
        ops in prop::collection::vec(any_op(), 1..200),
    ) {
        let mut fleet = connected();
        // What the store has ready, and what of it is on its way to be claimed.
        let mut stored = BTreeSet::new();
        let mut claiming: Vec<Place> = Vec::new();
        for (number, op) in (0..).zip(ops) {
            match op {
                Op::Add(class, at) => {
                    let place = place(class, at, number);
                    stored.insert(place);
                    add(&mut fleet, place);
                }
                Op::Take(permits) => {
                    let waiting = stored.iter().filter(|place| !claiming.contains(place));
                    let waiting: Vec<Place> = waiting.copied().collect();
                    if fleet.wants_refill(AGENT) {
                        fleet.refill(AGENT, waiting.iter().copied().take(READY_KEPT));
                    }
                    let taken = fleet.take(AGENT, permits);
                    prop_assert!(waiting.is_empty() || !taken.is_empty());
                    prop_assert_eq!(&taken[..], &waiting[..taken.len()]);
                    claiming.extend(taken);
                }
                Op::Claimed if !claiming.is_empty() => {
                    let place = claiming.remove(0);
                    stored.remove(&place);
                    fleet.uncount_ready(AGENT, Some(place));
                    fleet.settle(AGENT, false);
                }
                Op::Failed if !claiming.is_empty() => {
                    let place = claiming.remove(0);
                    fleet.settle(AGENT, false);
                    fleet.enqueue(AGENT, place);
                }
                Op::Cancel(at) => {
                    let waiting = stored.iter().filter(|place| !claiming.contains(place));
                    let waiting: Vec<Place> = waiting.copied().collect();
                    if !waiting.is_empty() {
                        let place = waiting[at % waiting.len()];
                        stored.remove(&place);
                        fleet.uncount_ready(AGENT, Some(place));
                    }
                }
                Op::Claimed | Op::Failed => {}
            }
            let member = fleet.get(AGENT).unwrap();
            prop_assert!(member.ready.len() <= READY_KEPT);
            prop_assert_eq!(member.ready.len(), fleet.ready_kept);
            prop_assert_eq!(fleet.ready_stored(), stored.len() as u64);
        }
    }
}
