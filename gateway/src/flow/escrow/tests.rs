use std::time::Instant;

use proptest::prelude::*;

use super::*;

#[expect(clippy::disallowed_methods, reason = "a beginning for made-up clocks")]
fn epoch() -> Instant {
    Instant::now()
}

/// A parent and its children on one clock, on links that lose nothing, to start with.
struct Family {
    now: Instant,
    parent: Parent,
    children: Vec<Child>,
}

impl Family {
    fn new(limit: u32, children: u32) -> Self {
        let now = epoch();
        let mut parent = Parent::new(now, Term(1), limit, []);
        for child in 0..children {
            parent.add_child(child);
        }
        let new = |_| Child::new(now, Incarnation(1), 0);
        Self {
            now,
            parent,
            children: (0..children).map(new).collect(),
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            for (id, child) in (0..).zip(&mut self.children) {
                if let Some(report) = child.poll_report(self.now) {
                    let heard = self.parent.handle_report(self.now, id, &report);
                    assert_eq!(heard, Ok(()));
                }
            }
            self.parent.handle_timeout(self.now);
            while let Some((id, lease)) = self.parent.poll_lease() {
                self.children[id as usize].handle_lease(self.now, &lease);
            }
        }
    }

    fn credits(&self) -> Vec<u32> {
        let credits = self.children.iter().map(|child| child.credit(self.now));
        credits.collect()
    }

    fn use_all(&mut self, child: usize) -> u32 {
        let now = self.now;
        let child = &mut self.children[child];
        let mut taken = 0;
        while child.acquire(now) {
            taken += 1;
        }
        taken
    }
}

#[test]
fn credits_follow_demand_within_seconds_and_add_up_to_the_limit() {
    let mut family = Family::new(12, 3);
    family.pass(Duration::from_secs(8));
    assert_eq!(family.credits(), [4, 4, 4]);
    family.children[0].set_wants(100);
    family.pass(Duration::from_secs(4));
    let credits = family.credits();
    assert_eq!(credits.iter().sum::<u32>(), 12);
    assert_eq!(credits[0], 12, "nobody else wants any: {credits:?}");
    assert_eq!(family.use_all(0), 12);
    // Two want more than there is: both get half, once the first gave back.
    family.children[1].set_wants(100);
    family.pass(Duration::from_secs(3));
    assert_eq!(family.credits()[1], 0, "all is in use");
    for _ in 0..12 {
        family.children[0].release();
    }
    family.pass(Duration::from_secs(4));
    let credits = family.credits();
    assert_eq!((credits[0], credits[1]), (6, 6), "{credits:?}");
}

#[test]
fn a_lease_ends_at_the_child_before_the_parent_counts_it_as_ended() {
    let mut family = Family::new(5, 1);
    family.pass(Duration::from_secs(8));
    assert_eq!(family.credits(), [5]);
    let now = family.now;
    let parent_counts = |parent: &mut Parent, at| !parent.handle_fenced(at, 0, Incarnation(2), 0);
    let mut at = now;
    while family.children[0].credit(at) > 0 {
        assert!(
            parent_counts(&mut family.parent, at),
            "it may still be used"
        );
        at += Duration::from_millis(1);
    }
    assert!(at <= now + LEASE);
    assert!(parent_counts(&mut family.parent, at), "a margin is left");
    assert!(!parent_counts(&mut family.parent, now + LEASE + MARGIN));
}

#[test]
fn what_a_lost_child_held_comes_back_only_after_lease_and_fence() {
    let mut family = Family::new(6, 2);
    family.children[0].set_wants(10);
    family.pass(Duration::from_secs(8));
    assert!(family.use_all(0) >= 5);
    let used = family.children[0].in_use();
    // It is gone. Its work goes on, and time alone frees nothing.
    let silent = Child::new(family.now + Duration::from_secs(9999), Incarnation(1), 0);
    let mut gone = std::mem::replace(&mut family.children[0], silent);
    family.children[1].set_wants(10);
    family.pass(Duration::from_secs(60));
    assert!(family.credits()[1] <= 6 - used);
    // Its next owner counted two operations.
    family.children[0] = Child::new(family.now, Incarnation(2), 2);
    family.pass(Duration::from_secs(3));
    assert_eq!(family.credits()[1], 4);
    assert!(!gone.acquire(family.now), "its lease has ended");
}

#[test]
fn a_child_may_be_fenced_without_a_new_owner_but_not_before_its_lease_ends() {
    let mut family = Family::new(6, 1);
    family.pass(Duration::from_secs(8));
    let (now, parent) = (family.now, &mut family.parent);
    assert!(!parent.handle_fenced(now, 0, Incarnation(2), 0));
    assert!(parent.lent() > 0);
    let later = now + LEASE + MARGIN;
    assert!(parent.handle_fenced(later, 0, Incarnation(2), 1));
    assert_eq!(parent.lent(), 1);
}

#[test]
fn a_new_parent_lends_nothing_until_it_has_heard_of_everyone() {
    let mut family = Family::new(6, 2);
    family.children[0].set_wants(9);
    family.pass(Duration::from_secs(8));
    let used = family.use_all(0);
    let now = family.now;
    family.parent = Parent::new(now, Term(2), 6, [0, 1]);
    let silent = Child::new(now + Duration::from_secs(9999), Incarnation(1), 0);
    let other = std::mem::replace(&mut family.children[1], silent);
    family.pass(Duration::from_secs(20));
    assert_eq!(family.parent.unknown().collect::<Vec<_>>(), [1]);
    assert!(family.credits()[0] <= used);
    drop(other);
    family.children[1] = Child::new(family.now, Incarnation(2), 0);
    family.pass(Duration::from_secs(3));
    assert_eq!(family.credits().iter().sum::<u32>(), 6);
}

#[test]
fn an_unknown_child_is_told_from_a_known_one() {
    let now = epoch();
    let mut parent = Parent::new(now, Term(1), 6, []);
    let report = Child::new(now, Incarnation(1), 0).poll_report(now);
    let heard = parent.handle_report(now, 7, &report.expect("the first"));
    assert_eq!(heard, Err(UnknownChild(7)));
}

// ——— whatever is lost, late, repeated or restarted ———

const LIMIT: u32 = 7;
const CHILDREN: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    /// Deliver a message in flight, drop it, or deliver it and keep it.
    Report(usize, u8),
    Lease(usize, u8),
    Acquire(usize, u8),
    Release(usize),
    RestartParent,
    RestartChild(usize),
    Limit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..1500_u64).prop_map(Step::Pass),
        8 => (any::<usize>(), 0..4_u8).prop_map(|(n, how)| Step::Report(n, how)),
        8 => (any::<usize>(), 0..4_u8).prop_map(|(n, how)| Step::Lease(n, how)),
        6 => (0..CHILDREN, 1..9_u8).prop_map(|(n, count)| Step::Acquire(n, count)),
        4 => (0..CHILDREN).prop_map(Step::Release),
        1 => Just(Step::RestartParent),
        1 => (0..CHILDREN).prop_map(Step::RestartChild),
        1 => (1..=LIMIT).prop_map(Step::Limit),
    ]
}

/// A child as the world sees it: its owner, owners that were replaced but may still run, and the
/// work on its agents, which outlives them all.
struct Group {
    owner: Child,
    incarnation: u64,
    work: u32,
}

struct World {
    now: Instant,
    parent: Parent,
    term: u64,
    groups: Vec<Group>,
    reports: Vec<(u32, Report)>,
    leases: Vec<(u32, Lease)>,
    /// The limit was at most lowered to this since everything drained.
    limit: u32,
}

impl World {
    fn new() -> Self {
        let now = epoch();
        let group = |_| Group {
            owner: Child::new(now, Incarnation(1), 0),
            incarnation: 1,
            work: 0,
        };
        let mut parent = Parent::new(now, Term(1), LIMIT, []);
        (0..3).for_each(|child| parent.add_child(child));
        Self {
            now,
            parent,
            term: 1,
            groups: (0..CHILDREN).map(group).collect(),
            reports: Vec::new(),
            leases: Vec::new(),
            limit: LIMIT,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
            Step::Report(n, how) if !self.reports.is_empty() => {
                let place = n % self.reports.len();
                let (child, report) = self.reports[place];
                if how > 0 {
                    let heard = self.parent.handle_report(self.now, child, &report);
                    assert_eq!(heard, Ok(()));
                }
                if how < 3 {
                    self.reports.swap_remove(place);
                }
            }
            Step::Lease(n, how) if !self.leases.is_empty() => {
                let place = n % self.leases.len();
                let (child, lease) = self.leases[place];
                if how > 0 {
                    let owner = &mut self.groups[child as usize].owner;
                    owner.handle_lease(self.now, &lease);
                }
                if how < 3 {
                    self.leases.swap_remove(place);
                }
            }
            Step::Report(..) | Step::Lease(..) => {}
            Step::Acquire(child, count) => {
                let group = &mut self.groups[child];
                group.owner.set_wants(u32::from(count));
                for _ in 0..count {
                    group.work += u32::from(group.owner.acquire(self.now));
                }
            }
            Step::Release(child) => {
                let group = &mut self.groups[child];
                if group.work > 0 {
                    group.work -= 1;
                    group.owner.release();
                }
            }
            Step::RestartParent => {
                self.term += 1;
                self.parent = Parent::new(self.now, Term(self.term), self.limit, 0..3);
            }
            Step::RestartChild(child) => {
                let group = &mut self.groups[child];
                group.incarnation += 1;
                let incarnation = Incarnation(group.incarnation);
                group.owner = Child::new(self.now, incarnation, group.work);
            }
            Step::Limit(limit) => {
                self.limit = limit;
                self.parent.set_limit(self.now, limit);
            }
        }
        self.exchange();
    }

    fn exchange(&mut self) {
        for (id, group) in (0..).zip(&mut self.groups) {
            if let Some(report) = group.owner.poll_report(self.now) {
                self.reports.push((id, report));
            }
        }
        self.parent.handle_timeout(self.now);
        while let Some(lease) = self.parent.poll_lease() {
            self.leases.push(lease);
        }
    }

    /// What children may use: each its credit, or its work where that is more.
    fn usable(&self) -> u32 {
        let usable = |group: &Group| group.owner.credit(self.now).max(group.work);
        self.groups.iter().map(usable).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_sum_never_exceeds_the_limit(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            prop_assert!(world.usable() <= LIMIT, "{} of {LIMIT} after {step:?}", world.usable());
        }
    }

    /// And when all is well again, what there is can be used.
    #[test]
    fn nothing_is_lost_for_ever(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        for group in &mut world.groups {
            group.owner.set_wants(9);
        }
        for _ in 0..200 {
            world.now += Duration::from_millis(100);
            world.exchange();
            for (child, report) in std::mem::take(&mut world.reports) {
                let heard = world.parent.handle_report(world.now, child, &report);
                prop_assert_eq!(heard, Ok(()));
            }
            world.exchange();
            for (child, lease) in std::mem::take(&mut world.leases) {
                let owner = &mut world.groups[child as usize].owner;
                owner.handle_lease(world.now, &lease);
            }
            for group in &mut world.groups {
                while group.work > 0 {
                    group.work -= 1;
                    group.owner.release();
                }
            }
        }
        let credits: u32 = world.groups.iter().map(|group| group.owner.credit(world.now)).sum();
        prop_assert_eq!(credits, world.limit);
    }
}
