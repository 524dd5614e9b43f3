//! Lines, servers and limits that several agents share: rules one by one, then any sequence of steps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::flow::{Class, Demand, Limit, LimitKey, Line};
use protocol::ids::{Fence, OperationId, ServerId};
use protocol::operation::{OpenOperation, Outcome, OutcomeStatus, Phase, Refusal};

use super::tests::{SHARD, assign, command, location, operation, outcome, outputs, target, up};
use super::*;
use crate::group::OperationEvent;
use crate::runtime::clock;

const CAPACITY: u32 = 4;

fn line(class: Class, work: &str) -> Line {
    Line {
        class,
        tenant: "acme".to_owned(),
        kind: "exec".to_owned(),
        work: work.to_owned(),
        resources: Vec::new(),
    }
}

fn demand(number: u32, line: &Line, ready: u32) -> Demand {
    Demand {
        number,
        line: line.clone(),
        ready,
        deadline_ms: 0,
        weight: 1,
    }
}

fn limit(key: LimitKey, max: u32) -> Limit {
    Limit {
        key,
        min: 1,
        max,
        pin: None,
    }
}

fn of_group(max: u32) -> Limit {
    limit(LimitKey::Group(target(0).group), max)
}

fn of_work(work: &str, max: u32) -> Limit {
    limit(LimitKey::Work(work.to_owned()), max)
}

/// Permits that were granted: whose agent, which server, which of its lines, how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Granted {
    agent: u8,
    server: u32,
    line: u32,
    grant: GrantId,
    permits: u32,
}

struct Scene {
    home: Home,
    now: Instant,
    epoch: u64,
}

impl Scene {
    fn new(adaptive: bool, agents: u8) -> Self {
        let now = clock::now();
        let config = HomeConfig {
            offers: false,
            adaptive,
            ..HomeConfig::default()
        };
        let mut home = Home::new(now, SHARD, 1, config);
        home.handle_request(now, assign(1));
        let mut scene = Self {
            home,
            now,
            epoch: 1,
        };
        for agent in 0..agents {
            scene.up(agent, 1, Vec::new());
        }
        scene
    }

    fn up(&mut self, agent: u8, count: u64, open: Vec<OpenOperation>) -> Vec<Granted> {
        let session = u64::from(agent) + 100 * count;
        let up = up(agent, session, CAPACITY, open);
        self.home
            .handle_session_up(self.now, location(session), up, count);
        self.granted()
    }

    fn down(&mut self, agent: u8, count: u64) -> Vec<Granted> {
        let session = u64::from(agent) + 100 * count;
        let reason = DownReason::TimedOut;
        let id = target(agent).agent;
        self.home
            .handle_session_down(self.now, location(session), id, reason);
        self.granted()
    }

    fn ask(&mut self, request: Request) -> Vec<Granted> {
        self.home.handle_request(self.now, request);
        self.granted()
    }

    fn demand(&mut self, agent: u8, server: u32, lines: Vec<Demand>) -> Vec<Granted> {
        self.ask(Request::Demand {
            target: target(agent),
            server: ServerId(server),
            lines,
        })
    }

    fn limits(&mut self, limits: Vec<Limit>) -> Vec<Granted> {
        self.ask(Request::SetLimits { limits })
    }

    fn dispatch(&mut self, granted: Granted, number: u8) -> Vec<Granted> {
        self.ask(Request::Dispatch {
            target: target(granted.agent),
            grant: granted.grant,
            epoch: Epoch(self.epoch),
            command: command(number, 1),
        })
    }

    fn say(&mut self, agent: u8, count: u64, event: OperationEvent) -> Vec<Granted> {
        let session = u64::from(agent) + 100 * count;
        let id = target(agent).agent;
        self.home
            .handle_operation(self.now, location(session), id, event);
        self.granted()
    }

    fn finish(&mut self, agent: u8, number: u8, outcome: Outcome) -> Vec<Granted> {
        let finished = OperationEvent::Finished {
            operation: operation(number),
            fence: Fence(1),
            outcome,
        };
        self.say(agent, 1, finished)
    }

    fn granted(&mut self) -> Vec<Granted> {
        outputs(&mut self.home)
            .into_iter()
            .filter_map(|output| match output {
                HomeOutput::Event(Event::Granted {
                    target,
                    server,
                    line,
                    grant,
                    permits,
                    ..
                }) => Some(Granted {
                    agent: target.agent.to_bytes()[0],
                    server: server.0,
                    line,
                    grant,
                    permits,
                }),
                _ => None,
            })
            .collect()
    }
}

fn permits(granted: &[Granted]) -> u32 {
    granted.iter().map(|granted| granted.permits).sum()
}

#[test]
fn the_more_urgent_line_goes_first_and_grants_name_the_servers_own_number() {
    let mut scene = Scene::new(false, 1);
    let lines = vec![
        demand(8, &line(Class::Background, ""), 9),
        demand(3, &line(Class::Interactive, ""), 3),
    ];
    let granted = scene.demand(0, 5, lines);
    let told: Vec<_> = granted
        .iter()
        .map(|g| (g.server, g.line, g.permits))
        .collect();
    assert_eq!(told, [(5, 3, 3), (5, 8, 1)]);
}

#[test]
fn durations_are_compared_within_the_kind_of_the_line_whatever_the_driver() {
    let mut scene = Scene::new(true, 1);
    let define = Line {
        kind: "vm-create.define".to_owned(),
        ..line(Class::Normal, "")
    };
    let granted = scene.demand(0, 1, vec![demand(0, &define, 1)]);
    scene.dispatch(granted[0], 1);
    let mut charges = scene.home.members[0].ledger.charges();
    let kind = charges.next().and_then(|charge| charge.kind);
    assert_eq!(kind, Some(lines::number("vm-create.define")));
}

#[test]
fn servers_that_state_the_same_processes_are_not_given_them_twice() {
    let mut scene = Scene::new(false, 1);
    let normal = line(Class::Normal, "");
    let first = scene.demand(0, 1, vec![demand(0, &normal, 2)]);
    assert_eq!(permits(&first), 2);
    let second = scene.demand(0, 2, vec![demand(0, &normal, 2)]);
    assert_eq!(
        permits(&second),
        0,
        "both wait already with the first server"
    );
    let more = scene.demand(0, 2, vec![demand(0, &normal, 3)]);
    assert_eq!((permits(&more), more[0].server), (1, 2));
}

#[test]
fn a_groups_limit_holds_over_all_its_agents_and_wakes_who_waits() {
    let mut scene = Scene::new(false, 2);
    scene.limits(vec![of_group(3)]);
    let normal = line(Class::Normal, "");
    let first = scene.demand(0, 1, vec![demand(0, &normal, 2)]);
    let second = scene.demand(1, 1, vec![demand(0, &normal, 2)]);
    assert_eq!((permits(&first), permits(&second)), (2, 1));
    scene.dispatch(first[0], 1);
    let woken = scene.finish(0, 1, outcome());
    assert_eq!(
        (permits(&woken), woken[0].agent),
        (1, 1),
        "the other agent's"
    );
}

#[test]
fn a_sort_of_work_has_a_limit_of_its_own_on_every_agent() {
    let mut scene = Scene::new(false, 2);
    scene.limits(vec![of_work("migrate", 1)]);
    for agent in [0, 1] {
        let lines = vec![
            demand(0, &line(Class::Interactive, "migrate"), 3),
            demand(1, &line(Class::Normal, "light"), 9),
        ];
        let granted = scene.demand(agent, 1, lines);
        let told: Vec<_> = granted.iter().map(|g| (g.line, g.permits)).collect();
        assert_eq!(
            told,
            [(0, 1), (1, 3)],
            "one migration, and light work beside it"
        );
    }
}

#[test]
fn a_limit_that_is_raised_wakes_and_one_that_is_lowered_drains() {
    let mut scene = Scene::new(false, 1);
    scene.limits(vec![of_group(1)]);
    let normal = line(Class::Normal, "");
    let one = scene.demand(0, 1, vec![demand(0, &normal, 4)]);
    assert_eq!(permits(&one), 1);
    let more = scene.limits(vec![of_group(3)]);
    assert_eq!(permits(&more), 2);
    for (granted, number) in [(one[0], 1), (more[0], 2), (more[0], 3)] {
        scene.dispatch(granted, number);
    }
    scene.limits(vec![of_group(1)]);
    assert_eq!(permits(&scene.finish(0, 1, outcome())), 0);
    assert_eq!(permits(&scene.finish(0, 2, outcome())), 0);
    assert_eq!(permits(&scene.finish(0, 3, outcome())), 1);
    assert_eq!(permits(&scene.limits(Vec::new())), 0, "nobody waits");
}

#[test]
fn what_an_agent_out_of_reach_has_started_still_counts_for_its_group() {
    let mut scene = Scene::new(false, 2);
    scene.limits(vec![of_group(1)]);
    let normal = line(Class::Normal, "");
    let granted = scene.demand(0, 1, vec![demand(0, &normal, 1)]);
    scene.dispatch(granted[0], 1);
    scene.down(0, 1);
    assert_eq!(permits(&scene.demand(1, 1, vec![demand(0, &normal, 1)])), 0);
    let open = OpenOperation {
        operation: operation(1),
        fence: Fence(1),
        phase: Phase::Running,
    };
    assert_eq!(permits(&scene.up(0, 2, vec![open])), 0, "it still runs");
    let finished = OperationEvent::Finished {
        operation: operation(1),
        fence: Fence(1),
        outcome: outcome(),
    };
    let woken = scene.say(0, 2, finished);
    assert_eq!((permits(&woken), woken[0].agent), (1, 1));
}

#[test]
fn an_inventory_without_an_operation_frees_what_it_held() {
    let mut scene = Scene::new(false, 2);
    scene.limits(vec![of_group(1)]);
    let normal = line(Class::Normal, "");
    let granted = scene.demand(0, 1, vec![demand(0, &normal, 1)]);
    scene.dispatch(granted[0], 1);
    scene.down(0, 1);
    scene.demand(1, 1, vec![demand(0, &normal, 1)]);
    let woken = scene.up(0, 2, Vec::new());
    assert_eq!((permits(&woken), woken[0].agent), (1, 1));
}

#[test]
fn a_revoked_agents_operations_hold_nothing() {
    let mut scene = Scene::new(false, 2);
    scene.limits(vec![of_group(1)]);
    let normal = line(Class::Normal, "");
    let granted = scene.demand(0, 1, vec![demand(0, &normal, 1)]);
    scene.dispatch(granted[0], 1);
    scene.down(0, 1);
    scene.demand(1, 1, vec![demand(0, &normal, 1)]);
    let agent = target(0).agent;
    let woken = scene.ask(Request::RevokeAgent { agent });
    assert_eq!((permits(&woken), woken[0].agent), (1, 1));
}

#[test]
fn a_new_epoch_grants_the_demand_anew_under_the_same_limits() {
    let mut scene = Scene::new(false, 1);
    scene.limits(vec![of_group(2)]);
    let normal = line(Class::Normal, "");
    assert_eq!(permits(&scene.demand(0, 1, vec![demand(0, &normal, 9)])), 2);
    scene.epoch = 2;
    assert_eq!(permits(&scene.ask(assign(2))), 2);
}

#[test]
fn an_agents_limit_follows_what_it_can_take() {
    let mut scene = Scene::new(true, 1);
    let normal = line(Class::Normal, "");
    let granted = scene.demand(0, 1, vec![demand(0, &normal, 9)]);
    assert_eq!(permits(&granted), 2, "an unknown agent begins with little");
    let pinned = Limit {
        pin: Some(3),
        ..limit(LimitKey::Agent(target(0).agent), 9)
    };
    assert_eq!(
        permits(&scene.limits(vec![pinned])),
        1,
        "an operator's word"
    );
    let busy = OperationEvent::Refused {
        operation: operation(1),
        fence: Fence(1),
        refusal: Refusal::Busy {
            retry_after: Duration::ZERO,
        },
    };
    scene.limits(Vec::new());
    scene.dispatch(granted[0], 1);
    scene.say(0, 1, busy);
    let known = scene.home.members[0].controller.known_limit();
    assert_eq!(known, Some(1), "less after a refusal");
    scene.down(0, 1);
    scene.up(0, 2, Vec::new());
    let known = scene.home.members[0].controller.known_limit();
    assert_eq!(
        known,
        Some(1),
        "the next session begins with what was known"
    );
}

#[test]
fn an_operation_that_failed_says_nothing_about_its_agent() {
    let mut scene = Scene::new(true, 1);
    let normal = line(Class::Normal, "");
    let granted = scene.demand(0, 1, vec![demand(0, &normal, 1)]);
    scene.dispatch(granted[0], 1);
    let failed = Outcome {
        status: OutcomeStatus::FailedPermanent,
        ..outcome()
    };
    scene.finish(0, 1, failed);
    assert_eq!(scene.home.members[0].controller.known_limit(), None);
}

/// One thing that happens, with numbers small enough to meet.
#[derive(Clone, Debug)]
enum Step {
    Demand {
        agent: u8,
        server: u32,
        ready: [u32; 3],
    },
    Dispatch {
        nth: usize,
    },
    Return {
        nth: usize,
        unused: u32,
    },
    Finish {
        nth: usize,
    },
    Down {
        agent: u8,
        keeps: bool,
    },
    Limits {
        group: u32,
        work: u32,
    },
    NewEpoch,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3u8, 1..3u32, prop::array::uniform3(0..4u32))
            .prop_map(|(agent, server, ready)| Step::Demand { agent, server, ready }),
        8 => (0..4usize).prop_map(|nth| Step::Dispatch { nth }),
        2 => (0..4usize, 0..3u32).prop_map(|(nth, unused)| Step::Return { nth, unused }),
        8 => (0..9usize).prop_map(|nth| Step::Finish { nth }),
        2 => (0..3u8, any::<bool>()).prop_map(|(agent, keeps)| Step::Down { agent, keeps }),
        2 => (1..8u32, 1..3u32).prop_map(|(group, work)| Step::Limits { group, work }),
        1 => Just(Step::NewEpoch),
        2 => (0..3_000u64).prop_map(Step::Wait),
    ]
}

/// What the home must know, the slow and obvious way.
struct Pair {
    scene: Scene,
    counts: [u64; 3],
    /// Unused permits and operations: agent, and whether they are migrations.
    unused: Vec<(Granted, bool, Instant)>,
    running: BTreeMap<OperationId, (u8, bool)>,
    next: u128,
    group: u32,
    work: u32,
}

impl Pair {
    fn new() -> Self {
        Self {
            scene: Scene::new(false, 3),
            counts: [1; 3],
            unused: Vec::new(),
            running: BTreeMap::new(),
            next: 0,
            group: u32::MAX,
            work: u32::MAX,
        }
    }

    fn lines() -> [Line; 3] {
        [
            line(Class::Interactive, "migrate"),
            line(Class::Normal, "light"),
            line(Class::Background, ""),
        ]
    }

    fn apply(&mut self, step: Step) {
        let granted = match step {
            Step::Demand {
                agent,
                server,
                ready,
            } => {
                let all = Self::lines();
                let lines = (0..).zip(&all).zip(ready);
                let lines = lines.map(|((number, line), ready)| demand(number, line, ready));
                let lines = lines.collect();
                self.scene.demand(agent, server, lines)
            }
            Step::Dispatch { nth } => self.dispatch(nth),
            Step::Return { nth, unused } => self.take_back(nth, unused),
            Step::Finish { nth } => self.finish(nth),
            Step::Down { agent, keeps } => self.down(agent, keeps),
            Step::Limits { group, work } => {
                (self.group, self.work) = (group, work);
                self.scene
                    .limits(vec![of_group(group), of_work("migrate", work)])
            }
            Step::NewEpoch => {
                self.unused.clear();
                self.scene.epoch += 1;
                self.scene.ask(assign(self.scene.epoch))
            }
            Step::Wait(milliseconds) => {
                self.scene.now += Duration::from_millis(milliseconds);
                let now = self.scene.now;
                self.unused.retain(|(_, _, end)| *end > now);
                self.scene.home.handle_timeout(now);
                self.scene.granted()
            }
        };
        self.take_up(&granted);
    }

    fn take_up(&mut self, granted: &[Granted]) {
        for granted in granted {
            let end = self.scene.now + protocol::limits::GRANT_TTL;
            self.unused.push((*granted, granted.line == 0, end));
        }
        if granted.is_empty() {
            return;
        }
        // Limits may have been lowered below what is in use, but nothing was granted beyond them.
        let used: u32 = self
            .unused
            .iter()
            .map(|(granted, ..)| granted.permits)
            .sum();
        let running = u32::try_from(self.running.len()).unwrap();
        assert!(used + running <= self.group, "over-issued to the group");
        for granted in granted {
            let agent = granted.agent;
            let of = |migrates: bool| {
                let unused = self
                    .unused
                    .iter()
                    .filter(|(granted, is, _)| granted.agent == agent && (*is || !migrates));
                let unused: u32 = unused.map(|(granted, ..)| granted.permits).sum();
                let running = self.running.values();
                let running = running.filter(|(of, is)| *of == agent && (*is || !migrates));
                unused + u32::try_from(running.count()).unwrap()
            };
            assert!(of(false) <= CAPACITY, "over-issued to the agent");
            if granted.line == 0 {
                assert!(of(true) <= self.work, "over-issued to the sort of work");
            }
        }
    }

    fn dispatch(&mut self, nth: usize) -> Vec<Granted> {
        let Some((granted, migrates, _)) = self.unused.get_mut(nth) else {
            return Vec::new();
        };
        let (sent, migrates) = (*granted, *migrates);
        granted.permits -= 1;
        self.unused.retain(|(granted, ..)| granted.permits > 0);
        self.next += 1;
        let number = u8::try_from(self.next % 250).unwrap();
        self.running
            .insert(operation(number), (sent.agent, migrates));
        self.scene.dispatch(sent, number)
    }

    fn take_back(&mut self, nth: usize, count: u32) -> Vec<Granted> {
        let Some((granted, ..)) = self.unused.get_mut(nth) else {
            return Vec::new();
        };
        let given = *granted;
        granted.permits -= count.min(granted.permits);
        self.unused.retain(|(granted, ..)| granted.permits > 0);
        self.scene.ask(Request::ReturnPermits {
            target: target(given.agent),
            grant: given.grant,
            unused: count,
        })
    }

    fn finish(&mut self, nth: usize) -> Vec<Granted> {
        let Some((id, (agent, _))) = self.running.iter().nth(nth) else {
            return Vec::new();
        };
        let (id, agent) = (*id, *agent);
        self.running.remove(&id);
        let finished = OperationEvent::Finished {
            operation: id,
            fence: Fence(1),
            outcome: outcome(),
        };
        let count = self.counts[usize::from(agent)];
        self.scene.say(agent, count, finished)
    }

    /// A session is lost and the next one begins, with what runs or with nothing.
    fn down(&mut self, agent: u8, keeps: bool) -> Vec<Granted> {
        let count = &mut self.counts[usize::from(agent)];
        self.unused.retain(|(granted, ..)| granted.agent != agent);
        let granted = self.scene.down(agent, *count);
        *count += 1;
        let count = *count;
        self.take_up(&granted);
        if !keeps {
            self.running.retain(|_, (of, _)| *of != agent);
        }
        let open = self.running.iter().filter(|(_, (of, _))| *of == agent);
        let open = open.map(|(operation, _)| OpenOperation {
            operation: *operation,
            fence: Fence(1),
            phase: Phase::Running,
        });
        let open = open.collect();
        self.scene.up(agent, count, open)
    }

    /// When everybody is done, nothing is held, and every place can be granted again.
    fn end(mut self) {
        for agent in 0..3 {
            for server in [1, 2] {
                let granted = self.scene.demand(agent, server, Vec::new());
                self.take_up(&granted);
            }
        }
        while !self.running.is_empty() {
            let granted = self.finish(0);
            assert_eq!(granted, [], "nobody waits");
        }
        self.scene.now += protocol::limits::GRANT_TTL;
        self.scene.home.handle_timeout(self.scene.now);
        assert!(self.scene.home.shared.is_idle(), "a shared permit leaked");
        assert!(self.scene.home.lines.is_unused(), "a line leaked");
        self.scene.limits(vec![of_group(12)]);
        self.unused.clear();
        let plain = line(Class::Normal, "");
        for agent in 0..3 {
            let granted = self.scene.demand(agent, 1, vec![demand(0, &plain, 9)]);
            assert_eq!(permits(&granted), CAPACITY, "a permit leaked");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn shared_limits_are_never_exceeded_and_leak_nothing(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut pair = Pair::new();
        for step in steps {
            pair.apply(step);
        }
        pair.end();
    }
}
