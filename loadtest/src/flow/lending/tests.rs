//! The rules of the owner of a limit and of those that it lends to, together.

use proptest::prelude::*;
use protocol::limits::{CREDIT_LEASE, CREDIT_PERIOD};

use super::*;

const MARGIN: Duration = control::lending::parent::MARGIN;

/// A child, and what goes on there.
struct Group {
    child: Child,
    incarnation: u64,
    work: u32,
    wants: u32,
    reports: u64,
    /// It says nothing and hears nothing.
    is_gone: bool,
}

impl Group {
    fn new() -> Self {
        Self {
            child: Child::new(Incarnation(1)),
            incarnation: 1,
            work: 0,
            wants: 0,
            reports: 0,
            is_gone: false,
        }
    }

    fn report(&mut self, now: Instant) -> Option<Report> {
        let used = Use {
            in_use: self.work,
            wants: self.wants,
            awaited: self.wants > 0,
        };
        let report = self.child.poll_report(now, self.reports + 1, used)?;
        self.reports += 1;
        Some(report)
    }

    fn want(&mut self, now: Instant, wants: u32) {
        self.wants = wants;
        self.child.hurry(now);
    }

    fn acquire(&mut self, now: Instant) -> bool {
        let has_room = self.work < self.child.credit(now);
        match has_room {
            true => self.work += 1,
            false => self.child.hurry(now),
        }
        has_room
    }

    /// Its next owner has counted what runs.
    fn restart(&mut self, now: Instant) {
        self.incarnation += 1;
        self.reports = 0;
        self.child = Child::new(Incarnation(self.incarnation));
        self.is_gone = false;
        if self.work > 0 {
            self.child.hurry(now);
        }
    }
}

/// A parent and its children on one clock, on links that lose nothing.
struct Family {
    now: Instant,
    parent: Parent,
    children: Vec<Group>,
}

impl Family {
    fn new(limit: u32, children: u16) -> Self {
        let now = clock::now();
        Self {
            now,
            parent: Parent::new(now, Term(1), limit, now, 0..children),
            children: (0..children).map(|_| Group::new()).collect(),
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(50);
            let now = self.now;
            for (id, child) in (0..).zip(&mut self.children) {
                if !child.is_gone
                    && let Some(report) = child.report(now)
                {
                    self.parent.handle_report(now, id, &report);
                }
            }
            self.parent.handle_timeout(now);
            while let Some((id, lease)) = self.parent.poll_lease() {
                let child = &mut self.children[usize::from(id)];
                if !child.is_gone {
                    child.child.handle_lease(now, &lease);
                }
            }
            if self.parent.poll_ask(now) {
                let all = self.children.iter_mut();
                all.for_each(|child| child.child.hurry(now));
            }
        }
    }

    fn seconds(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    fn want(&mut self, child: usize, wants: u32) {
        self.children[child].want(self.now, wants);
    }

    fn credits(&self) -> Vec<u32> {
        let credits = self
            .children
            .iter()
            .map(|child| child.child.credit(self.now));
        credits.collect()
    }

    fn use_all(&mut self, child: usize) -> u32 {
        let mut taken = 0;
        while self.children[child].acquire(self.now) {
            taken += 1;
        }
        taken
    }
}

#[test]
fn credits_follow_demand_within_seconds_and_add_up_to_the_limit() {
    let mut family = Family::new(12, 3);
    (0..3).for_each(|child| family.want(child, 1));
    family.seconds(3);
    assert_eq!(family.credits(), [4, 4, 4], "what nobody wants is spread");
    family.want(0, 100);
    family.want(1, 0);
    family.want(2, 0);
    family.seconds(4);
    assert_eq!(family.credits(), [12, 0, 0], "nobody else wants any");
    assert_eq!(family.use_all(0), 12);
    // Two want more than there is: both get half, once the first gave back.
    family.want(1, 100);
    family.seconds(3);
    assert_eq!(family.credits()[1], 0, "all is in use");
    family.children[0].work = 0;
    family.seconds(4);
    let credits = family.credits();
    assert_eq!((credits[0], credits[1]), (6, 6), "{credits:?}");
}

#[test]
fn the_first_one_that_wants_any_is_lent_some_within_half_a_second() {
    let mut family = Family::new(1, 16);
    family.want(9, 1);
    family.pass(Duration::from_millis(500));
    assert_eq!(family.credits()[9], 1);
    assert_eq!(family.use_all(9), 1);
    family.want(9, 0);
    family.want(2, 1);
    family.seconds(2);
    assert_eq!(family.credits()[2], 0, "it is in use");
    family.children[9].work = 0;
    family.seconds(3);
    assert_eq!((family.credits()[2], family.credits()[9]), (1, 0));
}

#[test]
fn who_uses_nothing_is_silent_and_so_is_the_parent() {
    let mut family = Family::new(5, 2);
    family.want(0, 3);
    family.seconds(3);
    family.want(0, 0);
    family.seconds(6);
    assert_eq!(family.parent.lent(), 0);
    let said: Vec<u64> = family.children.iter().map(|child| child.reports).collect();
    family.seconds(60);
    let later: Vec<u64> = family.children.iter().map(|child| child.reports).collect();
    assert_eq!(said, later);
    assert!(
        family
            .parent
            .has_rested(family.now, Duration::from_secs(60))
    );
}

/// What cannot be divided moves on, so that nobody waits for ever while others have work without end.
#[test]
fn of_more_children_than_permits_each_has_its_turn() {
    let mut family = Family::new(1, 3);
    (0..3).for_each(|child| family.want(child, 1 + 7 * u32::try_from(child).unwrap()));
    let mut had = [0; 3];
    for _ in 0..600 {
        family.pass(Duration::from_millis(100));
        for (child, had) in had.iter_mut().enumerate() {
            // Work of a tenth of a second, one after the other.
            family.children[child].work = 0;
            *had += family.use_all(child);
        }
        let running: u32 = family.children.iter().map(|child| child.work).sum();
        assert!(running <= 1);
    }
    assert!(had.iter().all(|had| *had > 100), "{had:?} in a minute");
}

#[test]
fn what_a_lost_child_held_comes_back_only_with_its_next_incarnation() {
    let mut family = Family::new(6, 2);
    family.want(0, 10);
    family.seconds(3);
    assert!(family.use_all(0) >= 5);
    let used = family.children[0].work;
    // It is gone. Its work goes on, and time alone frees nothing.
    family.children[0].is_gone = true;
    family.want(1, 10);
    family.seconds(60);
    assert!(family.credits()[1] <= 6 - used);
    assert!(
        !family.children[0].acquire(family.now),
        "its lease has ended"
    );
    // Its next owner counted two operations.
    family.children[0].work = 2;
    family.children[0].restart(family.now);
    family.children[0].wants = 0;
    family.seconds(3);
    assert_eq!(family.credits()[1], 4);
}

#[test]
fn a_next_incarnation_is_heard_after_the_lease_of_the_one_before() {
    let mut family = Family::new(6, 2);
    family.want(0, 10);
    family.seconds(3);
    assert_eq!(family.credits()[0], 6);
    let before = family.children[0].child.ends_at().unwrap();
    family.children[0].wants = 0;
    family.children[0].restart(family.now);
    family.want(1, 10);
    while family.now < before {
        assert_eq!(family.credits()[1], 0, "the one before may still grant");
        family.pass(Duration::from_millis(50));
    }
    family.pass(MARGIN + 3 * CREDIT_PERIOD);
    assert_eq!(family.credits()[1], 6);
}

#[test]
fn a_new_parent_lends_nothing_until_it_has_heard_of_everyone() {
    let mut family = Family::new(6, 2);
    family.want(0, 9);
    family.seconds(3);
    let used = family.use_all(0);
    let now = family.now;
    family.parent = Parent::new(now, Term(2), 6, now + CREDIT_LEASE + MARGIN, 0..2);
    family.children[1].is_gone = true;
    family.seconds(20);
    assert_eq!(family.parent.unknown().collect::<Vec<_>>(), [1]);
    assert!(family.credits()[0] <= used);
    family.children[1].is_gone = false;
    family.children[0].work = 0;
    family.seconds(3);
    assert_eq!(family.credits()[0], 6);
}

// ——— whatever is lost, late, repeated or restarted ———

const LIMIT: u32 = 7;
const CHILDREN: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    /// Deliver a message in flight, drop it, or deliver it and keep it.
    Report(usize, u8),
    Lease(usize, u8),
    Ask(usize),
    Acquire(usize, u8),
    Release(usize),
    Rest(usize),
    RestartParent,
    RestartChild(usize),
    Limit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let child = || 0..usize::from(CHILDREN);
    prop_oneof![
        6 => (0..1500_u64).prop_map(Step::Pass),
        8 => (any::<usize>(), 0..4_u8).prop_map(|(n, how)| Step::Report(n, how)),
        8 => (any::<usize>(), 0..4_u8).prop_map(|(n, how)| Step::Lease(n, how)),
        3 => child().prop_map(Step::Ask),
        6 => (child(), 1..9_u8).prop_map(|(n, count)| Step::Acquire(n, count)),
        4 => child().prop_map(Step::Release),
        2 => child().prop_map(Step::Rest),
        1 => Just(Step::RestartParent),
        1 => child().prop_map(Step::RestartChild),
        1 => (1..=LIMIT).prop_map(Step::Limit),
    ]
}

/// Children, owners of them that were replaced, and the work on their agents, which outlives them all.
struct Chaos {
    now: Instant,
    parent: Parent,
    term: u64,
    groups: Vec<Group>,
    reports: Vec<(u16, Report)>,
    leases: Vec<(u16, Lease)>,
    asked: bool,
    limit: u32,
}

impl Chaos {
    fn new() -> Self {
        let now = clock::now();
        Self {
            now,
            parent: Parent::new(now, Term(1), LIMIT, now, 0..CHILDREN),
            term: 1,
            groups: (0..CHILDREN).map(|_| Group::new()).collect(),
            reports: Vec::new(),
            leases: Vec::new(),
            asked: false,
            limit: LIMIT,
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
            Step::Report(n, how) if !self.reports.is_empty() => {
                let place = n % self.reports.len();
                let (child, report) = self.reports[place];
                if how > 0 {
                    self.parent.handle_report(now, child, &report);
                }
                if how < 3 {
                    self.reports.swap_remove(place);
                }
            }
            Step::Lease(n, how) if !self.leases.is_empty() => {
                let place = n % self.leases.len();
                let (child, lease) = self.leases[place];
                if how > 0 {
                    let group = &mut self.groups[usize::from(child)];
                    group.child.handle_lease(now, &lease);
                }
                if how < 3 {
                    self.leases.swap_remove(place);
                }
            }
            Step::Report(..) | Step::Lease(..) => {}
            // An ask may come at any time, for whatever reason.
            Step::Ask(child) => self.groups[child].child.hurry(now),
            Step::Acquire(child, count) => {
                let group = &mut self.groups[child];
                group.want(now, u32::from(count));
                for _ in 0..count {
                    group.acquire(now);
                }
            }
            Step::Release(child) => {
                let group = &mut self.groups[child];
                group.work = group.work.saturating_sub(1);
            }
            Step::Rest(child) => {
                let group = &mut self.groups[child];
                (group.wants, group.work) = (0, 0);
            }
            Step::RestartParent => {
                self.term += 1;
                let quiet = now + CREDIT_LEASE + MARGIN;
                self.parent = Parent::new(now, Term(self.term), self.limit, quiet, 0..CHILDREN);
            }
            Step::RestartChild(child) => self.groups[child].restart(now),
            Step::Limit(limit) => {
                self.limit = limit;
                self.parent.set_limit(now, limit);
            }
        }
        self.exchange();
    }

    fn exchange(&mut self) {
        let now = self.now;
        for (id, group) in (0..).zip(&mut self.groups) {
            if let Some(report) = group.report(now) {
                self.reports.push((id, report));
            }
        }
        self.parent.handle_timeout(now);
        while let Some(lease) = self.parent.poll_lease() {
            self.leases.push(lease);
        }
        self.asked |= self.parent.poll_ask(now);
    }

    /// What children may use: each its credit, or its work where that is more.
    fn usable(&self) -> u32 {
        let usable = |group: &Group| group.child.credit(self.now).max(group.work);
        self.groups.iter().map(usable).sum()
    }

    /// Nothing is lost and nothing is late.
    fn calm(&mut self) {
        let now = self.now;
        self.exchange();
        for (child, report) in std::mem::take(&mut self.reports) {
            self.parent.handle_report(now, child, &report);
        }
        self.exchange();
        for (child, lease) in std::mem::take(&mut self.leases) {
            let group = &mut self.groups[usize::from(child)];
            group.child.handle_lease(now, &lease);
        }
        if std::mem::take(&mut self.asked) {
            let all = self.groups.iter_mut();
            all.for_each(|group| group.child.hurry(now));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_sum_never_exceeds_the_limit(steps in prop::collection::vec(step(), 1..250)) {
        let mut chaos = Chaos::new();
        for step in &steps {
            chaos.step(step);
            prop_assert!(chaos.usable() <= LIMIT, "{} of {LIMIT} after {step:?}", chaos.usable());
        }
    }

    /// And when all is well again, what there is can be used, and what nobody uses goes back.
    #[test]
    fn nothing_is_lost_for_ever(steps in prop::collection::vec(step(), 1..150)) {
        let mut chaos = Chaos::new();
        for step in &steps {
            chaos.step(step);
        }
        for group in &mut chaos.groups {
            group.work = 0;
            group.want(chaos.now, 9);
        }
        // What cannot be divided is on its way from one to another at times.
        let mut most = 0;
        for step in 0..250 {
            chaos.now += Duration::from_millis(100);
            chaos.calm();
            if step >= 190 {
                most = most.max(chaos.usable());
            }
        }
        prop_assert_eq!(most, chaos.limit);
        chaos.groups.iter_mut().for_each(|group| group.wants = 0);
        for _ in 0..80 {
            chaos.now += Duration::from_millis(100);
            chaos.calm();
        }
        prop_assert_eq!(chaos.parent.lent(), 0);
        let silent = chaos.groups.iter().all(|group| group.child.poll_timeout().is_none());
        prop_assert!(silent);
    }
}
