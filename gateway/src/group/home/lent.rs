//! Limits that span homes, at one home: what is lent, and what it tells of it.

use protocol::flow::lending::{Incarnation, Lease, Report, Term};
use protocol::flow::{AgentFlow, Class, Demand, Limit, LimitKey, Line};
use protocol::ids::{Fence, GrantId, OperationId, ProcessId, ServerId};
use protocol::limits::{CREDIT_LEASE, CREDIT_PERIOD};
use protocol::operation::{OpenOperation, Phase};

use super::tests::{SHARD, assign, command, location, operation, outcome, outputs, target, up};
use super::*;
use crate::group::OperationEvent;
use crate::runtime::clock;

const POOL: &str = "pool/fast";

fn pool() -> LimitKey {
    LimitKey::Resource(POOL.to_owned())
}

fn tenant() -> LimitKey {
    LimitKey::Tenant("acme".to_owned())
}

fn line() -> Line {
    Line {
        class: Class::Normal,
        tenant: "acme".to_owned(),
        kind: "exec".to_owned(),
        work: String::new(),
        resources: vec![POOL.to_owned()],
    }
}

fn limits(keys: &[LimitKey]) -> Request {
    let limit = |key: &LimitKey| Limit {
        key: key.clone(),
        min: 0,
        max: 9,
        pin: None,
    };
    Request::SetLimits {
        limits: keys.iter().map(limit).collect(),
    }
}

struct Scene {
    home: Home,
    now: Instant,
    leases: u64,
    offers: u32,
}

impl Scene {
    /// A home with one agent of four places, under these limits.
    fn new(keys: &[LimitKey]) -> Self {
        let now = clock::now();
        let config = HomeConfig {
            adaptive: false,
            incarnation: 7,
            ..HomeConfig::default()
        };
        let mut scene = Self {
            home: Home::new(now, SHARD, 2, config),
            now,
            leases: 0,
            offers: 0,
        };
        scene.ask(limits(keys));
        scene.ask(assign(1));
        scene.up(1, Vec::new());
        scene
    }

    fn up(&mut self, session: u64, open: Vec<OpenOperation>) {
        let up = up(0, session, 4, open);
        let at = location(session);
        self.home.handle_session_up(self.now, at, up, session);
        self.granted();
    }

    fn down(&mut self, session: u64) {
        let (reason, agent) = (DownReason::TimedOut, target(0).agent);
        self.home
            .handle_session_down(self.now, location(session), agent, reason);
        outputs(&mut self.home);
    }

    /// How many permits were granted, and on which grant the last.
    fn ask(&mut self, request: Request) -> (u32, Option<GrantId>) {
        self.home.handle_request(self.now, request);
        self.granted()
    }

    fn granted(&mut self) -> (u32, Option<GrantId>) {
        let mut found = (0, None);
        for output in outputs(&mut self.home) {
            match output {
                HomeOutput::Event(Event::Granted { permits, grant, .. }) => {
                    found = (found.0 + permits, Some(grant));
                }
                HomeOutput::Event(Event::Offered { .. }) => self.offers += 1,
                _ => {}
            }
        }
        found
    }

    fn demand(&mut self, ready: u32) -> (u32, Option<GrantId>) {
        let demand = Demand {
            line: line(),
            ..Demand::of("exec", ready)
        };
        self.ask(Request::Demand {
            target: target(0),
            server: ServerId(1),
            lines: vec![demand],
        })
    }

    fn dispatch(&mut self, grant: Option<GrantId>, number: u8) {
        self.ask(Request::Dispatch {
            target: target(0),
            grant: grant.unwrap(),
            epoch: Epoch(1),
            command: command(number, 1),
        });
    }

    fn finish(&mut self, number: u8) -> u32 {
        let finished = OperationEvent::Finished {
            operation: operation(number),
            fence: Fence(1),
            outcome: outcome(),
        };
        let agent = target(0).agent;
        self.home
            .handle_operation(self.now, location(1), agent, finished);
        self.granted().0
    }

    /// What it reports by this time.
    fn reports(&mut self, after: Duration) -> Vec<(LimitKey, Report)> {
        self.now += after;
        self.home.handle_timeout(self.now);
        let events = outputs(&mut self.home).into_iter();
        let reports = events.filter_map(|output| match output {
            HomeOutput::Event(Event::Reported {
                shard: SHARD,
                shards: 2,
                reports,
            }) => Some(reports),
            _ => None,
        });
        reports.flatten().collect()
    }

    /// Lends in answer to a report; what is granted then.
    fn lend(&mut self, key: LimitKey, report: Report, credit: u32) -> u32 {
        self.leases += 1;
        let lease = Lease {
            incarnation: Incarnation(7),
            term: Term(1),
            number: self.leases,
            answers: report.number,
            credit,
            only_prolongs: false,
        };
        let leases = vec![(key, lease)];
        self.ask(Request::Lend {
            shard: SHARD,
            leases,
        })
        .0
    }

    fn flow(&mut self) -> AgentFlow {
        let (target, ticket) = (target(0), 1);
        let ask = Request::AskFlow { target, ticket };
        self.home.handle_request(self.now, ask);
        let told = outputs(&mut self.home)
            .into_iter()
            .find_map(|output| match output {
                HomeOutput::Event(Event::FlowTold { flow, .. }) => flow,
                _ => None,
            });
        *told.unwrap()
    }
}

#[test]
fn nothing_is_granted_without_credit_and_the_limits_owner_hears_of_it_at_once() {
    let mut scene = Scene::new(&[pool()]);
    assert_eq!(scene.reports(CREDIT_PERIOD), [], "nobody uses it");
    assert_eq!(scene.offers, 0, "it could not be kept");
    assert_eq!(scene.demand(3).0, 0);
    let parked = scene.flow().lines[0].parked.clone().unwrap();
    assert_eq!((parked.key, parked.limit, parked.in_use), (pool(), 9, 0));
    let reports = scene.reports(Duration::ZERO);
    let [(key, report)] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!((key, report.holds, report.wants), (&pool(), 0, 3));
    assert_eq!(scene.lend(pool(), *report, 2), 2);
    let (_, report) = scene.reports(CREDIT_PERIOD)[0];
    assert_eq!((report.holds, report.in_use, report.wants), (2, 2, 1));
}

#[test]
fn credit_ends_with_its_lease_and_what_is_in_use_drains() {
    let mut scene = Scene::new(&[pool()]);
    scene.demand(2);
    let (_, report) = scene.reports(Duration::ZERO)[0];
    scene.lend(pool(), report, 1);
    let (_, report) = scene.reports(CREDIT_PERIOD)[0];
    assert_eq!(scene.lend(pool(), report, 2), 1);
    scene.demand(2);
    // Nobody answers any more. The grants end before the lease, and are given anew until it does.
    scene.now += CREDIT_LEASE - Duration::from_millis(1);
    scene.home.handle_timeout(scene.now);
    assert_eq!(scene.demand(2).0, 2);
    scene.now += Duration::from_millis(1);
    assert_eq!(scene.demand(4).0, 0, "the credit is over");
    scene.now += protocol::limits::GRANT_TTL;
    scene.home.handle_timeout(scene.now);
    assert_eq!((scene.demand(4).0, scene.flow().granted), (0, 0));
}

#[test]
fn a_line_keeps_what_it_has_of_earlier_limits_and_asks_for_none_of_later_ones() {
    let mut scene = Scene::new(&[tenant(), pool()]);
    scene.demand(2);
    let reports = scene.reports(Duration::ZERO);
    let [(key, report)] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!(key, &pool(), "the tenant's comes after it");
    assert_eq!(scene.lend(pool(), *report, 1), 0);
    let reports = scene.reports(CREDIT_PERIOD);
    let wants = |key: LimitKey| {
        let found = reports.iter().find(|(of, _)| *of == key);
        found.map(|(_, report)| (report.holds, report.wants))
    };
    assert_eq!(
        (wants(pool()), wants(tenant())),
        (Some((1, 2)), Some((0, 2)))
    );
}

#[test]
fn what_nobody_uses_is_given_back() {
    let mut scene = Scene::new(&[pool()]);
    let (_, _) = scene.demand(1);
    let (_, report) = scene.reports(Duration::ZERO)[0];
    scene.home.handle_request(
        scene.now,
        Request::Lend {
            shard: SHARD,
            leases: vec![(
                pool(),
                Lease {
                    incarnation: Incarnation(7),
                    term: Term(1),
                    number: 1,
                    answers: report.number,
                    credit: 4,
                    only_prolongs: false,
                },
            )],
        },
    );
    let (permits, grant) = scene.granted();
    assert_eq!(permits, 1);
    scene.dispatch(grant, 1);
    assert_eq!(scene.reports(CREDIT_PERIOD)[0].1.in_use, 1);
    scene.finish(1);
    assert_eq!(scene.reports(CREDIT_PERIOD)[0].1.holds, 4);
    assert!(scene.reports(CREDIT_PERIOD)[0].1.rests());
    assert_eq!(scene.reports(10 * CREDIT_PERIOD), []);
    assert_eq!(scene.demand(1).0, 0, "it has to ask again");
    assert_eq!(scene.reports(Duration::ZERO)[0].1.wants, 1);
}

#[test]
fn other_limits_leave_what_is_lent_as_it_is() {
    let mut scene = Scene::new(&[pool()]);
    scene.demand(3);
    let (_, report) = scene.reports(Duration::ZERO)[0];
    assert_eq!(scene.lend(pool(), report, 2), 2);
    // The pool has another number now.
    assert_eq!(scene.ask(limits(&[LimitKey::Global, pool()])).0, 0);
    let reports = scene.reports(CREDIT_PERIOD);
    let of = |key: LimitKey| {
        let found = reports.iter().find(|(of, _)| *of == key);
        found.map(|(_, report)| (report.holds, report.in_use))
    };
    assert_eq!(
        (of(pool()), of(LimitKey::Global)),
        (Some((2, 2)), Some((0, 2)))
    );
    assert_eq!(scene.ask(limits(&[])).0, 1, "nothing holds it back");
    assert_eq!(scene.reports(CREDIT_PERIOD), []);
}

/// A gateway that begins: what ran on agents that are not there is told first, and counts.
#[test]
fn what_may_be_under_way_on_agents_out_of_reach_counts_from_the_first_report() {
    let charge = |agent: u8, numbers: &[u8]| Request::Charge {
        target: target(agent),
        operations: numbers.iter().map(|n| (operation(*n), line())).collect(),
    };
    let mut scene = Scene::new(&[]);
    scene.home = Home::new(scene.now, SHARD, 2, scene.home.config);
    scene.ask(limits(&[pool()]));
    scene.ask(charge(0, &[1, 2]));
    scene.ask(charge(0, &[2]));
    let elsewhere = Target {
        slot: Slot(1),
        ..target(3)
    };
    scene.ask(Request::Charge {
        target: elsewhere,
        operations: vec![(OperationId::new(ProcessId::from_bytes([9; 16]), 0), line())],
    });
    assert_eq!(scene.reports(CREDIT_PERIOD), [], "it may not know all yet");
    scene.ask(assign(1));
    let in_use = |scene: &mut Scene| scene.reports(CREDIT_PERIOD)[0].1.in_use;
    assert_eq!(in_use(&mut scene), 2);
    let open = OpenOperation {
        operation: operation(1),
        fence: Fence(1),
        phase: Phase::Running,
    };
    scene.up(1, vec![open]);
    assert_eq!(in_use(&mut scene), 1, "the other one is over");
    scene.finish(1);
    assert_eq!(in_use(&mut scene), 0);
    assert!(scene.home.shared.is_idle() && scene.home.lines.is_unused());
}

/// An operation whose line is not known, such as one that was offered a permit, counts once it is told.
#[test]
fn what_runs_is_told_with_its_line_before_a_limit_is_set() {
    let mut scene = Scene::new(&[LimitKey::Global]);
    let open = |number| OpenOperation {
        operation: operation(number),
        fence: Fence(1),
        phase: Phase::Running,
    };
    scene.down(1);
    scene.up(2, vec![open(1), open(2)]);
    assert_eq!(scene.reports(CREDIT_PERIOD), []);
    scene.ask(Request::Charge {
        target: target(0),
        operations: [1, 2, 3].map(|n| (operation(n), line())).to_vec(),
    });
    let (_, report) = scene.reports(Duration::ZERO)[0];
    assert_eq!(report.in_use, 2, "the third one is not in its inventory");
}
