//! Any sequence of requests, words and losses against a model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::ids::{Fence, OperationId};
use protocol::link::NotDelivered;
use protocol::operation::{OpenOperation, OperationState, Phase, Refusal};

use super::tests::{
    SHARD, assign, command, demand, location, operation, outcome, outputs, target, up,
};
use super::*;
use crate::group::OperationEvent;
use crate::runtime::clock;

/// What a home must think of one agent, the slow and obvious way.
#[derive(Default)]
struct Model {
    session: Option<(Location, u64)>,
    capacity: u32,
    demand: u32,
    grants: BTreeMap<GrantId, (u32, Instant)>,
    offer: Option<GrantId>,
    /// Per operation: the fence of the last dispatch, and whether its end is still owed.
    charged: BTreeMap<OperationId, (Fence, bool)>,
}

impl Model {
    fn unused(&self) -> u32 {
        self.grants.values().map(|(unused, _)| unused).sum()
    }

    fn room(&self) -> u32 {
        let charged = u32::try_from(self.charged.len()).unwrap();
        let offered = u32::from(self.offer.is_some());
        self.capacity
            .saturating_sub(charged + self.unused() + offered)
    }

    fn wanted(&self) -> u32 {
        self.demand.saturating_sub(self.unused())
    }

    fn take(&mut self, grant: GrantId, permits: u32) -> u32 {
        if permits > 0 && self.offer.take_if(|offer| *offer == grant).is_some() {
            return 1;
        }
        let Some((unused, _)) = self.grants.get_mut(&grant) else {
            return 0;
        };
        let taken = permits.min(*unused);
        *unused -= taken;
        self.grants.retain(|_, (unused, _)| *unused > 0);
        self.demand = self.demand.saturating_sub(taken);
        taken
    }

    fn expire(&mut self, now: Instant) {
        let over: Vec<_> = self
            .grants
            .iter()
            .filter(|(_, (_, end))| *end <= now)
            .collect();
        for grant in over
            .into_iter()
            .map(|(grant, _)| *grant)
            .collect::<Vec<_>>()
        {
            self.take(grant, u32::MAX);
        }
    }

    fn settle(&mut self, operation: OperationId, fence: Fence) {
        if self
            .charged
            .get(&operation)
            .is_some_and(|(sent, _)| *sent <= fence)
        {
            self.charged.remove(&operation);
        }
    }

    fn owes(&self, operation: OperationId, fence: Fence) -> bool {
        self.charged.get(&operation) == Some(&(fence, true))
    }
}

/// One thing that happens. Small numbers, so that things meet.
#[derive(Clone, Debug)]
enum Step {
    Up {
        count: u64,
        capacity: u32,
        open: Vec<(u8, u64, Phase)>,
    },
    Down {
        older: bool,
    },
    Demand(u32),
    Return {
        nth: usize,
        unused: u32,
    },
    Dispatch {
        nth: usize,
        operation: u8,
        fence: u64,
        epoch_behind: bool,
    },
    Word {
        older: bool,
        operation: u8,
        fence: u64,
        word: Word,
    },
    Capacity(u32),
    NewEpoch,
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Word {
    Accepted,
    Finished,
    Refused,
    NotDelivered,
    Uncertain,
    ReportNeverSeen,
    ReportRunning,
    ReportFinished,
}

impl Word {
    fn event(self, operation: OperationId, fence: Fence) -> OperationEvent {
        let report = |state| OperationEvent::Report {
            operation,
            fence,
            state,
        };
        match self {
            Self::Accepted => OperationEvent::Accepted { operation, fence },
            Self::Finished => OperationEvent::Finished {
                operation,
                fence,
                outcome: outcome(),
            },
            Self::Refused => OperationEvent::Refused {
                operation,
                fence,
                refusal: Refusal::Stopping,
            },
            Self::NotDelivered => OperationEvent::NotDelivered {
                operation,
                fence,
                reason: NotDelivered::Busy,
            },
            Self::Uncertain => OperationEvent::Uncertain { operation, fence },
            Self::ReportNeverSeen => report(OperationState::NeverSeen),
            Self::ReportRunning => report(OperationState::Running),
            Self::ReportFinished => report(OperationState::Finished(outcome())),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    use Word::*;
    let phase = prop::sample::select(vec![Phase::Accepted, Phase::Running, Phase::Finished]);
    let open = prop::collection::vec((0..6u8, 1..4u64, phase), 0..4);
    let word = prop::sample::select(vec![
        Accepted,
        Finished,
        Finished,
        Refused,
        NotDelivered,
        Uncertain,
        ReportNeverSeen,
        ReportRunning,
        ReportFinished,
    ]);
    prop_oneof![
        1 => (0..4u64, 0..5u32, open)
            .prop_map(|(count, capacity, open)| Step::Up { count, capacity, open }),
        1 => any::<bool>().prop_map(|older| Step::Down { older }),
        4 => (0..6u32).prop_map(Step::Demand),
        2 => (0..3usize, 0..4u32).prop_map(|(nth, unused)| Step::Return { nth, unused }),
        8 => (0..4usize, 0..6u8, 1..4u64, prop::bool::weighted(0.1)).prop_map(
            |(nth, operation, fence, epoch_behind)| Step::Dispatch {
                nth, operation, fence, epoch_behind
            }
        ),
        8 => (prop::bool::weighted(0.1), 0..6u8, 1..4u64, word).prop_map(
            |(older, operation, fence, word)| Step::Word { older, operation, fence, word }
        ),
        1 => (0..5u32).prop_map(Step::Capacity),
        1 => Just(Step::NewEpoch),
        2 => (0..3_000u64).prop_map(Step::Wait),
    ]
}

/// A home with one agent, and the model beside it.
struct Pair {
    home: Home,
    model: Model,
    now: Instant,
    epoch: u64,
    sessions: u64,
    older: Option<Location>,
    grants: Vec<GrantId>,
}

impl Pair {
    fn new() -> Self {
        let now = clock::now();
        // The agent's limit is its capacity: what the controller makes of it is proved elsewhere.
        let config = HomeConfig {
            adaptive: false,
            ..HomeConfig::default()
        };
        let mut home = Home::new(now, SHARD, 1, config);
        home.handle_request(now, assign(1));
        Self {
            home,
            model: Model::default(),
            now,
            epoch: 1,
            sessions: 0,
            older: None,
            grants: Vec::new(),
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Up {
                count,
                capacity,
                open,
            } => self.up(count, capacity, &open),
            Step::Down { older } => self.down(older),
            Step::Demand(ready) => {
                if self.model.session.is_some() {
                    self.model.demand = ready;
                }
                self.ask(demand(target(1), ready));
            }
            Step::Return { nth, unused } => {
                let grant = self.grant(nth);
                self.model.take(grant, unused);
                self.ask(Request::ReturnPermits {
                    target: target(1),
                    grant,
                    unused,
                });
            }
            Step::Dispatch {
                nth,
                operation,
                fence,
                epoch_behind,
            } => {
                self.dispatch(nth, operation, fence, epoch_behind);
            }
            Step::Word {
                older,
                operation: number,
                fence,
                word,
            } => {
                self.word(older, operation(number), Fence(fence), word);
            }
            Step::Capacity(capacity) => {
                if let Some((location, _)) = self.model.session {
                    self.model.capacity = capacity;
                    self.say(location, OperationEvent::Capacity(capacity));
                }
            }
            Step::NewEpoch => {
                self.epoch += 1;
                self.model.grants.clear();
                self.ask(assign(self.epoch));
            }
            Step::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.model.expire(self.now);
                self.home.handle_timeout(self.now);
            }
        }
        self.check();
    }

    /// The `nth` youngest grant, or one that never was.
    fn grant(&self, nth: usize) -> GrantId {
        let grant = self.grants.iter().rev().nth(nth);
        grant.copied().unwrap_or(GrantId(u64::MAX))
    }

    fn ask(&mut self, request: Request) {
        self.home.handle_request(self.now, request);
    }

    fn say(&mut self, location: Location, event: OperationEvent) {
        self.home
            .handle_operation(self.now, location, target(1).agent, event);
    }

    fn up(&mut self, count: u64, capacity: u32, open: &[(u8, u64, Phase)]) {
        self.sessions += 1;
        let new = location(self.sessions);
        let inventory: Vec<_> = open
            .iter()
            .map(|(number, fence, phase)| OpenOperation {
                operation: operation(*number),
                fence: Fence(*fence),
                phase: *phase,
            })
            .collect();
        let session = up(1, self.sessions, capacity, inventory.clone());
        self.home.handle_session_up(self.now, new, session, count);
        if self.model.session.is_some_and(|(_, newest)| count < newest) {
            self.older = Some(new);
            return;
        }
        self.older = self.model.session.map(|(old, _)| old).or(self.older);
        let owed = self.owed();
        let told = self.ends_uncertain(&owed);
        self.model = Model {
            session: Some((new, count)),
            capacity,
            ..Model::default()
        };
        for open in inventory
            .iter()
            .filter(|open| open.phase != Phase::Finished)
        {
            let charge = self.model.charged.entry(open.operation);
            let charge = charge.or_insert((open.fence, true));
            charge.0 = charge.0.max(open.fence);
        }
        for output in told {
            self.hear_of_offers(&output);
        }
    }

    /// Nothing is offered that is not free, and nothing is withdrawn that was not offered.
    fn hear_of_offers(&mut self, output: &HomeOutput) {
        match output {
            HomeOutput::Event(Event::Offered { grant, epoch, .. }) => {
                assert!(self.model.room() > 0, "over-offered");
                assert_eq!(self.model.wanted(), 0, "offered while somebody waits");
                assert_eq!(*epoch, Epoch(self.epoch));
                let before = self.model.offer.replace(*grant);
                assert!(before.is_none() && !self.grants.contains(grant));
                self.grants.push(*grant);
            }
            HomeOutput::Event(Event::Withdrawn { grant, .. }) => {
                assert_eq!(self.model.offer.take(), Some(*grant));
            }
            _ => {}
        }
    }

    fn down(&mut self, older: bool) {
        let current = self.model.session.map(|(location, _)| location);
        let Some(location) = (if older { self.older } else { current }) else {
            return;
        };
        let reason = DownReason::TimedOut;
        self.home
            .handle_session_down(self.now, location, target(1).agent, reason);
        if !older {
            let owed = self.owed();
            self.ends_uncertain(&owed);
            self.model = Model::default();
            self.older = Some(location);
        }
    }

    fn owed(&self) -> BTreeSet<OperationId> {
        let owed = self.model.charged.iter().filter(|(_, (_, owed))| *owed);
        owed.map(|(operation, _)| *operation).collect()
    }

    /// Every owed end is told as uncertain now, and nothing else is. Answers all that was told.
    fn ends_uncertain(&mut self, owed: &BTreeSet<OperationId>) -> Vec<HomeOutput> {
        let outputs = outputs(&mut self.home);
        let told: Vec<_> = outputs
            .iter()
            .filter_map(|output| match output {
                HomeOutput::Event(Event::Uncertain { operation, .. }) => Some(*operation),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), owed.len());
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), *owed);
        outputs
    }

    fn dispatch(&mut self, nth: usize, number: u8, fence: u64, epoch_behind: bool) {
        let grant = self.grant(nth);
        let (operation, fence) = (operation(number), Fence(fence));
        let stale = self
            .model
            .charged
            .get(&operation)
            .is_some_and(|(sent, _)| fence < *sent);
        // Also a dispatch under a stale epoch gives its permit back: it will not be used.
        let taken = self.model.take(grant, 1) == 1;
        let permit = taken && !epoch_behind;
        let epoch = Epoch(self.epoch - u64::from(epoch_behind));
        let command = command(number, fence.0);
        self.ask(Request::Dispatch {
            target: target(1),
            grant,
            epoch,
            command,
        });
        let first = self.home.poll_output();
        let current = self.model.session.map(|(location, _)| location);
        match first {
            Some(HomeOutput::ToSession(to, SessionCommand::Dispatch { .. })) => {
                assert!(
                    permit && !stale && Some(to) == current,
                    "sent without a permit"
                );
                self.model.charged.insert(operation, (fence, true));
            }
            Some(HomeOutput::Event(Event::NotDelivered { reason, .. })) => {
                assert!(!permit || stale, "a covered dispatch was refused: {reason}");
            }
            other => panic!("a dispatch was answered with {other:?}"),
        }
    }

    fn word(&mut self, older: bool, operation: OperationId, fence: Fence, word: Word) {
        let current = self.model.session.map(|(location, _)| location);
        let Some(location) = (if older { self.older } else { current }) else {
            return;
        };
        let expected = !older && self.model.owes(operation, fence);
        self.say(location, word.event(operation, fence));
        if current.is_none() {
            return;
        }
        let told = self.home.poll_output();
        let is_report = matches!(told, Some(HomeOutput::Event(Event::Report { .. })));
        let is_grant = matches!(told, Some(HomeOutput::Event(Event::Granted { .. })));
        let mut first_hand = !is_report && !is_grant && told.is_some();
        match word {
            Word::Finished => self.model.settle(operation, fence),
            Word::ReportNeverSeen | Word::ReportFinished => self.model.settle(operation, fence),
            Word::Refused | Word::NotDelivered if expected => self.model.settle(operation, fence),
            Word::Uncertain if expected => {
                self.model.charged.insert(operation, (fence, false));
            }
            Word::ReportRunning if !older => {
                if let Some(charge) = self.model.charged.get_mut(&operation) {
                    charge.1 |= charge.0 == fence;
                }
            }
            _ => {}
        }
        if matches!(
            word,
            Word::ReportRunning | Word::ReportNeverSeen | Word::ReportFinished
        ) {
            assert!(is_report);
            first_hand = expected;
        }
        assert_eq!(first_hand, expected, "{word:?} came out as {told:?}");
        assert!(!is_grant, "a word that frees nothing led to a grant");
    }

    /// Nothing is over-issued, nothing waits while there is room, and room is offered.
    fn check(&mut self) {
        for output in outputs(&mut self.home) {
            self.hear_of_offers(&output);
            match output {
                HomeOutput::Event(Event::Granted {
                    grant,
                    permits,
                    epoch,
                    ttl,
                    ..
                }) => {
                    assert!(permits <= self.model.room(), "over-issued");
                    assert!(permits <= self.model.wanted(), "more than was asked for");
                    assert_eq!(epoch, Epoch(self.epoch));
                    let fresh = self.model.grants.insert(grant, (permits, self.now + ttl));
                    assert!(fresh.is_none() && !self.grants.contains(&grant));
                    self.grants.push(grant);
                }
                HomeOutput::Event(
                    Event::Finished { .. }
                    | Event::Refused { .. }
                    | Event::NotDelivered { .. }
                    | Event::Uncertain { .. },
                ) => panic!("an end that nobody caused: {output:?}"),
                _ => {}
            }
        }
        let waiting = self.model.room().min(self.model.wanted());
        assert_eq!(waiting, 0, "permits are free and wanted");
        let room = self.model.session.is_some() && self.model.room() > 0;
        assert!(self.model.offer.is_some() || !room, "room is not offered");
        let next = self.model.grants.values().map(|(_, end)| *end).min();
        assert_eq!(self.home.poll_timeout(), next);
    }

    /// When everything has ended and every grant is over, every permit is free.
    fn finish(mut self) {
        let Some((location, _)) = self.model.session else {
            assert!(self.home.members.is_empty());
            return;
        };
        self.apply(Step::Demand(0));
        self.apply(Step::Capacity(4));
        for (operation, (fence, _)) in std::mem::take(&mut self.model.charged) {
            self.say(location, Word::ReportFinished.event(operation, fence));
        }
        self.check();
        self.apply(Step::Wait(2_000));
        self.apply(Step::Demand(9));
        let offered = u32::from(self.model.offer.is_some());
        assert_eq!(self.model.unused() + offered, 4, "a permit leaked");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_home_agrees_with_its_model(steps in prop::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        pair.apply(Step::Up { count: 0, capacity: 3, open: Vec::new() });
        for step in steps {
            pair.apply(step);
        }
        pair.finish();
    }
}
