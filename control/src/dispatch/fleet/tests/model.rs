//! The open, bounded queues of one agent against all of its lines in a store.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::flow::Class;

use super::super::queues::LINES_OPEN;
use super::*;

/// The store, and what a server on it has taken.
#[derive(Default)]
struct Store {
    ready: BTreeMap<Arc<Line>, BTreeSet<Place>>,
    /// On their way to be claimed.
    claiming: Vec<(Arc<Line>, Taken)>,
}

impl Store {
    fn len(&self) -> usize {
        self.ready.values().map(BTreeSet::len).sum()
    }

    fn is_claiming(&self, place: &Place) -> bool {
        self.claiming.iter().any(|(_, taken)| taken.place == *place)
    }

    /// How many there are of each line, as the counts of the store say it.
    fn counts(&self) -> Vec<ReadyCount> {
        let lines = self.ready.iter().filter(|(_, ready)| !ready.is_empty());
        let counts = lines.map(|(line, ready)| ReadyCount {
            agent: AGENT,
            line: Arc::clone(line),
            ready: u32::try_from(ready.len()).unwrap(),
        });
        counts.collect()
    }

    /// Whether it is ready still.
    fn has(&self, line: &Arc<Line>, place: &Place) -> bool {
        self.ready
            .get(line)
            .is_some_and(|ready| ready.contains(place))
    }

    /// Those of a line that nobody is claiming.
    fn waiting(&self, line: &Arc<Line>) -> Vec<Place> {
        let all = self.ready.get(line).into_iter().flatten();
        let all = all.filter(|place| !self.is_claiming(place));
        all.copied().collect()
    }

    /// As the store answers, with what is being claimed left out as the engine does.
    fn find(&self, want: Want) -> Found {
        let lines = want.lines.into_iter().map(|(line, limit)| {
            let all = self.ready.get(&line).into_iter().flatten();
            let read: Vec<Place> = all.copied().take(limit as usize).collect();
            let all = read.len() < limit as usize;
            let read = read.into_iter().filter(|place| !self.is_claiming(place));
            FoundLine {
                line,
                places: read.map(|place| (place, LATER)).collect(),
                all,
            }
        });
        let others = want.others.map(|others| {
            let lines = self.ready.iter().filter(|(_, ready)| !ready.is_empty());
            let lines = lines.map(|(line, _)| line);
            let lines =
                lines.filter(|line| others.after.as_ref().is_none_or(|after| *line > after));
            lines.take(others.limit as usize).cloned().collect()
        });
        Found {
            agent: want.agent,
            lines: lines.collect(),
            others,
        }
    }
}

/// Answers until nothing is wanted any more.
fn refill(fleet: &mut Fleet, store: &Store) {
    let mut answers = 0;
    while fleet.wants_refill(AGENT) {
        let want = fleet.refill_begins(AGENT).unwrap();
        fleet.refill(store.find(want));
        answers += 1;
        assert!(answers < 200, "it asks for ever");
    }
}

/// As a heartbeat does.
fn news(fleet: &mut Fleet, store: &Store) {
    fleet.correct_ready(&BTreeSet::from([AGENT]), store.counts());
    // No more is here than there.
    for queue in fleet.get(AGENT).unwrap().queues.open().values() {
        let stored = store.ready.get(&queue.line).map_or(0, BTreeSet::len);
        let claiming = store.claiming.iter();
        let claiming = claiming.filter(|(line, _)| *line == queue.line).count();
        let here = queue.ready.len();
        assert!(here == 0 || here + claiming <= stored, "{:?}", queue.line);
    }
}

fn check(fleet: &Fleet, store: &Store) {
    let member = fleet.get(AGENT).unwrap();
    let open = member.queues.open();
    assert!(open.len() <= LINES_OPEN);
    let kept: usize = open.values().map(|queue| queue.ready.len()).sum();
    assert!(kept <= READY_KEPT);
    assert_eq!(kept, member.queues.kept());
    assert_eq!(member.ready_stored as usize, store.len());
    // What is in memory of a line is what comes first of it, beside what others took.
    for queue in open.values() {
        let waiting = store.waiting(&queue.line);
        let here = queue.ready.keys().copied();
        let here: Vec<Place> = here.filter(|at| store.has(&queue.line, at)).collect();
        assert_eq!(here[..], waiting[..here.len()], "{:?}", queue.line);
    }
    check_sums(fleet);
}

fn check_sums(fleet: &Fleet) {
    let members = || fleet.members.values();
    let kept: usize = members().map(|member| member.queues.kept()).sum();
    assert_eq!(fleet.ready_kept, kept);
    assert!(kept <= READY_KEPT_TOTAL + fleet.members.len() * (READY_FLOOR + LINES_OPEN));
    let away = members().filter(|member| member.session.is_none());
    let away: u64 = away.map(|member| u64::from(member.ready_stored)).sum();
    let stored: u64 = members().map(|member| u64::from(member.ready_stored)).sum();
    let census = fleet.census(&BTreeMap::new());
    assert_eq!(
        (fleet.ready_stored(), census.ready_without_session),
        (stored, away)
    );
    let open = members().flat_map(|member| member.queues.open().values());
    let open: BTreeSet<&Line> = open.map(|queue| &*queue.line).collect();
    assert_eq!(fleet.lines.len(), open.len());
    for member in members().filter(|member| member.session.is_none() || member.paused) {
        assert_eq!(member.queues.kept(), 0, "{:?}", member.target);
    }
}

/// More lines than can be open at once.
fn line(number: u8) -> Arc<Line> {
    let class = [Class::Interactive, Class::Normal, Class::Background];
    worker(class[usize::from(number) % 3], &format!("work{number}"))
}

#[derive(Clone, Debug)]
enum Op {
    Add(u8, u64),
    /// A grant for the line with this place among those that are open.
    Take(usize, u32),
    /// The oldest claim went through.
    Claimed,
    /// The store refused the oldest claim.
    Failed,
    /// Somebody cancelled one that waits.
    Cancel(u8, usize),
    /// The demand is told.
    Tell,
    /// The engine's regular look.
    Look,
    /// The session is lost, or comes back.
    Session,
    /// Something is paused and resumed.
    Pause,
    /// The agent is paused or resumed.
    PauseAgent,
    /// Another server takes one, even of those that are being claimed here; a heartbeat says so at once.
    Others(u8, usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0_u8..7, 0_u64..20).prop_map(|(line, at)| Op::Add(line, at)),
        4 => (any::<usize>(), 1_u32..4).prop_map(|(at, permits)| Op::Take(at, permits)),
        3 => Just(Op::Claimed),
        1 => Just(Op::Failed),
        1 => (0_u8..7, any::<usize>()).prop_map(|(line, at)| Op::Cancel(line, at)),
        3 => Just(Op::Tell),
        1 => Just(Op::Look),
        1 => Just(Op::Session),
        1 => Just(Op::Pause),
        1 => Just(Op::PauseAgent),
        2 => (0_u8..7, any::<usize>()).prop_map(|(line, at)| Op::Others(line, at)),
    ]
}

fn take(fleet: &mut Fleet, store: &mut Store, (at, permits): (usize, u32)) {
    refill(fleet, store);
    if !fleet.get(AGENT).unwrap().takes_work() {
        return;
    }
    let open = fleet.get(AGENT).unwrap().queues.open();
    let lines: Vec<_> = open
        .iter()
        .map(|(id, queue)| (*id, Arc::clone(&queue.line)))
        .collect();
    if lines.is_empty() {
        assert!(
            store
                .ready
                .values()
                .flatten()
                .all(|place| store.is_claiming(place))
        );
        return;
    }
    let (id, line) = &lines[at % lines.len()];
    let waiting = store.waiting(line);
    let taken = fleet.take(AGENT, *id, permits);
    assert!(waiting.is_empty() || !taken.is_empty(), "{line:?} starves");
    let places = taken.iter().map(|taken| taken.place);
    let places: Vec<Place> = places.filter(|at| store.has(line, at)).collect();
    assert_eq!(places, waiting[..places.len()]);
    store
        .claiming
        .extend(taken.into_iter().map(|taken| (Arc::clone(line), taken)));
}

fn step(fleet: &mut Fleet, store: &mut Store, number: u128, op: Op) {
    match op {
        Op::Add(of, at) => {
            let (line, place) = (line(of), place(at, number));
            store
                .ready
                .entry(Arc::clone(&line))
                .or_default()
                .insert(place);
            add(fleet, &line, place);
        }
        Op::Take(at, permits) => take(fleet, store, (at, permits)),
        Op::Claimed if !store.claiming.is_empty() => {
            let (line, taken) = store.claiming.remove(0);
            // Nothing, where others took it.
            if store.ready.get_mut(&line).unwrap().remove(&taken.place) {
                fleet.uncount_ready(AGENT, Some((&line, taken.place)));
            }
            fleet.settle(AGENT, taken.line, false);
        }
        Op::Failed if !store.claiming.is_empty() => {
            let (_, taken) = store.claiming.remove(0);
            fleet.settle(AGENT, taken.line, false);
            fleet.put_back(AGENT, &taken);
        }
        Op::Cancel(of, at) => {
            let line = line(of);
            let waiting = store.waiting(&line);
            if !waiting.is_empty() {
                let place = waiting[at % waiting.len()];
                store.ready.get_mut(&line).unwrap().remove(&place);
                fleet.uncount_ready(AGENT, Some((&line, place)));
            }
        }
        Op::Tell => {
            if let Some(lines) = stated(fleet) {
                assert!(lines.len() <= LINES_OPEN && lines.values().all(|ready| *ready > 0));
            }
        }
        Op::Look => fleet.look_again(AGENT),
        Op::Session => {
            if !fleet.disconnect(target(), SessionId(1), UnixMs(2)) {
                fleet.connect(target(), session(1), UnixMs(3));
            }
        }
        Op::Pause => {
            let before = fleet.pauses().clone();
            let key = PauseKey::of_name(PauseScope::Kind, "other");
            fleet.set_pauses(Pauses::new(&[key]));
            fleet.set_pauses(before);
        }
        Op::PauseAgent => {
            let key = PauseKey::of_id(PauseScope::Agent, AGENT.0);
            let resumed = fleet.get(AGENT).unwrap().paused;
            fleet.set_pauses(match resumed {
                true => Pauses::default(),
                false => Pauses::new(&[key]),
            });
        }
        Op::Others(of, at) => {
            let ready = store.ready.entry(line(of)).or_default();
            if let Some(place) = ready.iter().nth(at % ready.len().max(1)).copied() {
                ready.remove(&place);
            }
            news(fleet, store);
        }
        Op::Claimed | Op::Failed => {}
    }
}

/// Whatever happens, what is given out is what comes first; and in the end all of it is given out.
fn give_all(fleet: &mut Fleet, ops: Vec<Op>) {
    let mut store = Store::default();
    for (number, op) in (0..).zip(ops) {
        step(fleet, &mut store, number, op);
        check(fleet, &store);
    }
    fleet.set_pauses(Pauses::default());
    if fleet.get(AGENT).unwrap().session.is_none() {
        fleet.connect(target(), session(1), UnixMs(3));
    }
    for _ in 0..10_000 {
        if store.len() == 0 {
            break;
        }
        take(fleet, &mut store, (0, 2));
        while !store.claiming.is_empty() {
            step(fleet, &mut store, 0, Op::Claimed);
        }
        stated(fleet);
        check(fleet, &store);
    }
    assert_eq!(store.len(), 0);
    while !store.claiming.is_empty() {
        step(fleet, &mut store, 0, Op::Claimed);
    }
    news(fleet, &store);
    refill(fleet, &store);
    stated(fleet);
    assert_eq!(stated(fleet), None);
    assert!(fleet.get(AGENT).unwrap().queues.open().is_empty());
}

/// How an agent takes nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stuck {
    /// Its limit is 0, or it has hung.
    Idle,
    /// It has lost its session.
    Away,
    /// It never had one.
    Gone,
}

/// An agent with more than may be kept of it, of which nothing is ever taken.
fn stick(fleet: &mut Fleet, number: u128, how: Stuck) {
    let target = Target {
        agent: AgentId(Uuid::from_u128(1000 + number)),
        ..target()
    };
    fleet.admit(target);
    if how != Stuck::Gone {
        fleet.connect(target, session(1), UnixMs(1));
    }
    for n in 0..2 * READY_KEPT {
        let line = line(u8::try_from(n % 5).unwrap());
        fleet.count_ready(target.agent, 1);
        let entry = (place(1, number * 100 + n as u128), LATER);
        fleet.enqueue(target.agent, &line, entry);
    }
    if how == Stuck::Away {
        assert!(fleet.disconnect(target, SessionId(1), UnixMs(2)));
    }
}

proptest! {
    #[test]
    fn the_bounded_queues_give_what_the_whole_ones_would(
        ops in prop::collection::vec(any_op(), 1..250),
    ) {
        give_all(&mut connected(), ops);
    }

    #[test]
    fn nobody_starves_beside_agents_that_take_nothing(
        how in prop::collection::vec(
            prop::sample::select(vec![Stuck::Idle, Stuck::Away, Stuck::Gone]),
            1..20,
        ),
        ops in prop::collection::vec(any_op(), 1..100),
    ) {
        let mut fleet = connected();
        for (number, how) in (0..).zip(how) {
            stick(&mut fleet, number, how);
        }
        give_all(&mut fleet, ops);
    }

    #[test]
    fn every_line_has_its_turn_while_others_are_stuck(
        lines in prop::collection::btree_set(0_u8..60, 5..30),
        looks in 0_usize..5,
    ) {
        let (mut fleet, mut store) = (connected(), Store::default());
        for of in &lines {
            for n in 0..3 {
                let number = u128::from(*of) * 10 + n;
                step(&mut fleet, &mut store, number, Op::Add(*of, u64::from(*of)));
            }
        }
        for _ in 0..looks {
            fleet.look_again(AGENT);
        }
        // Nothing is ever granted: every line is stated within a round of looks all the same.
        let mut seen = BTreeSet::new();
        for _ in 0..4 * lines.len() {
            refill(&mut fleet, &store);
            fleet.look_again(AGENT);
            check(&fleet, &store);
            refill(&mut fleet, &store);
            seen.extend(stated(&mut fleet).unwrap().into_keys());
        }
        prop_assert_eq!(seen.len(), lines.len());
    }
}

#[test]
fn a_thousand_stuck_agents_leave_the_next_one_its_room() {
    let mut fleet = connected();
    for number in 0..1000 {
        stick(&mut fleet, number, Stuck::Idle);
    }
    assert!(fleet.ready_kept > READY_KEPT_TOTAL);
    let mut store = Store::default();
    for n in 0..20 {
        step(&mut fleet, &mut store, n, Op::Add(0, 1));
        check(&fleet, &store);
    }
    assert_eq!(fleet.get(AGENT).unwrap().queues.kept(), READY_FLOOR);
    let of = |lines: BTreeMap<Line, u32>| lines.into_values().sum::<u32>() as usize;
    assert_eq!(stated(&mut fleet).map(of), Some(READY_FLOOR));
    // What the floor has no room for is read and given out all the same.
    for left in (0..20).step_by(READY_FLOOR).rev() {
        take(&mut fleet, &mut store, (0, 20));
        while !store.claiming.is_empty() {
            step(&mut fleet, &mut store, 0, Op::Claimed);
        }
        assert_eq!(store.len(), left);
    }
}

#[test]
fn a_stuck_line_keeps_nothing_of_the_others_out() {
    let (mut fleet, mut store) = (connected(), Store::default());
    let (stuck, other) = (
        worker(Class::Normal, "stuck"),
        worker(Class::Normal, "build"),
    );
    for n in 0..1000 {
        store
            .ready
            .entry(Arc::clone(&stuck))
            .or_default()
            .insert(place(1, n));
        add(&mut fleet, &stuck, place(1, n));
    }
    for n in 1000..1010 {
        store
            .ready
            .entry(Arc::clone(&other))
            .or_default()
            .insert(place(2, n));
        add(&mut fleet, &other, place(2, n));
        let want = fleet
            .wants_refill(AGENT)
            .then(|| fleet.refill_begins(AGENT));
        assert_eq!(want, None, "what is stuck is not read again");
        let taken = fleet.take(AGENT, number(&fleet, &other), 1);
        assert_eq!(taken[0].place, place(2, n));
        store.claiming.push((Arc::clone(&other), taken[0]));
        step(&mut fleet, &mut store, 0, Op::Claimed);
        check(&fleet, &store);
    }
}

#[test]
fn an_urgent_line_takes_the_place_of_a_less_urgent_one_that_is_stuck() {
    let (mut fleet, mut store) = (connected(), Store::default());
    for n in 0..LINES_OPEN {
        let of = u8::try_from(n * 3 + 1).unwrap();
        step(&mut fleet, &mut store, n as u128, Op::Add(of, 1));
    }
    stated(&mut fleet);
    // One of the same urgency waits for its turn.
    step(&mut fleet, &mut store, 50, Op::Add(31, 1));
    assert_eq!(fleet.lines.find(&line(31)), None);
    step(&mut fleet, &mut store, 60, Op::Add(0, 1));
    // What the store has of it besides is not known: it is read.
    refill(&mut fleet, &store);
    let lines = stated(&mut fleet).unwrap();
    assert_eq!(lines.len(), LINES_OPEN);
    assert_eq!(lines.get(&*line(0)), Some(&1));
    check(&fleet, &store);
}
