use proptest::prelude::*;

use super::*;

const ROOM: Room = Room {
    free: 1,
    reserve: 0,
};

#[expect(clippy::disallowed_methods, reason = "a beginning for made-up clocks")]
fn epoch() -> Instant {
    Instant::now()
}

fn flow(class: Class, tenant: u32) -> Flow {
    Flow {
        class,
        tenant,
        kind: 0,
        resources: 0,
    }
}

fn take(_: &Flow, _: u32) -> Fit {
    Fit::Take
}

/// A target that serves one operation after the other; each tenant's take its own time.
struct Served {
    now: Instant,
    queues: Queues,
}

impl Served {
    fn new() -> Self {
        Self {
            now: epoch(),
            queues: Queues::new(),
        }
    }

    fn state(&mut self, flow: &Flow, demand: Demand) {
        let stated = self.queues.handle_demand(self.now, 1, flow, &demand);
        assert_eq!(stated, Ok(()));
    }

    /// Serves the next one, which takes `seconds(flow)`.
    fn serve(&mut self, seconds: impl Fn(&Flow) -> f64) -> Option<Flow> {
        let grant = self.queues.next(self.now, ROOM, take)?;
        let service = Duration::from_secs_f64(seconds(&grant.flow));
        self.now += service;
        self.queues.handle_end(&grant.flow, grant.cost, service);
        Some(grant.flow)
    }
}

#[test]
fn an_idle_target_is_eight_bytes() {
    assert_eq!(size_of::<Queues>(), 8);
    let mut served = Served::new();
    served.state(&flow(Class::Normal, 1), Demand::of(2));
    assert!(!served.queues.is_empty());
    while served.serve(|_| 1.0).is_some() {}
    assert!(served.queues.is_empty());
}

#[test]
fn higher_classes_come_first() {
    let mut served = Served::new();
    for class in Class::ALL.into_iter().rev() {
        served.state(&flow(class, 1), Demand::of(1));
    }
    let order: Vec<Class> = std::iter::from_fn(|| served.serve(|_| 1.0))
        .map(|flow| flow.class)
        .collect();
    assert_eq!(order, Class::ALL);
}

#[test]
fn the_reserve_is_for_the_system_only() {
    let mut served = Served::new();
    let none = Room {
        free: 0,
        reserve: 1,
    };
    served.state(&flow(Class::Interactive, 1), Demand::of(1));
    assert!(served.queues.next(served.now, none, take).is_none());
    served.state(&flow(Class::System, 1), Demand::of(1));
    let grant = served.queues.next(served.now, none, take);
    assert_eq!(grant.map(|grant| grant.flow.class), Some(Class::System));
}

#[test]
fn a_class_gets_its_assured_share_and_lends_what_it_does_not_use() {
    let mut served = Served::new();
    for class in [Class::Interactive, Class::Normal, Class::Background] {
        served.state(&flow(class, 1), Demand::of(100_000));
    }
    let mut counts = [0_u32; 4];
    for _ in 0..10_000 {
        let flow = served.serve(|_| 0.01).expect("all wait");
        counts[flow.class.place()] += 1;
    }
    assert!((5_900..=6_100).contains(&counts[1]), "{counts:?}");
    assert!((2_900..=3_100).contains(&counts[2]), "{counts:?}");
    assert!((900..=1_100).contains(&counts[3]), "{counts:?}");
    // Interactive work alone with background work takes all but the tenth.
    served.state(&flow(Class::Normal, 1), Demand::of(0));
    let mut background = 0;
    for _ in 0..10_000 {
        let flow = served.serve(|_| 0.01).expect("two wait");
        background += u32::from(flow.class == Class::Background);
    }
    assert!((900..=1_100).contains(&background), "{background}");
}

#[test]
fn who_waits_a_minute_counts_as_one_class_higher() {
    let age = |class: Class, seconds| class.aged(Duration::from_secs(seconds));
    assert_eq!(age(Class::Background, 59), Class::Background);
    assert_eq!(age(Class::Background, 60), Class::Normal);
    assert_eq!(age(Class::Background, 100_000), Class::Interactive);
    assert_eq!(age(Class::System, 100_000), Class::System);
    let mut served = Served::new();
    served.state(&flow(Class::Background, 1), Demand::of(9));
    served.now += Duration::from_secs(121);
    served.state(&flow(Class::Interactive, 1), Demand::of(9));
    let first = served.serve(|_| 1.0).map(|flow| flow.class);
    assert_eq!(first, Some(Class::Background));
    let second = served.serve(|_| 1.0).map(|flow| flow.class);
    assert_eq!(second, Some(Class::Interactive), "the wait begins anew");
}

#[test]
fn tenants_share_service_time_by_weight_however_long_their_operations_are() {
    let mut served = Served::new();
    let seconds = |flow: &Flow| [0.0, 8.0, 1.0, 1.0][flow.tenant as usize];
    for tenant in 1..=3 {
        let mut flow = flow(Class::Normal, tenant);
        flow.kind = tenant;
        let weight = if tenant == 3 { 2 } else { 1 };
        let demand = Demand {
            weight,
            ..Demand::of(100_000)
        };
        served.state(&flow, demand);
    }
    let mut time = [0.0; 4];
    for _ in 0..4000 {
        let flow = served.serve(seconds).expect("all wait");
        time[flow.tenant as usize] += seconds(&flow);
    }
    let total: f64 = time.iter().sum();
    for (tenant, share) in [(1, 0.25), (2, 0.25), (3, 0.5)] {
        let got: f64 = time[tenant] / total;
        assert!((got - share).abs() < 0.02, "{tenant}: {got}");
    }
}

#[test]
fn kinds_of_one_tenant_share_and_deadlines_order_the_rest() {
    let mut served = Served::new();
    let of = |kind, resources| Flow {
        kind,
        resources,
        ..flow(Class::Normal, 1)
    };
    let later = served.now + Duration::from_secs(9);
    let at = |deadline| Demand {
        deadline,
        ..Demand::of(1)
    };
    served.state(&of(1, 1), at(None));
    served.state(&of(1, 2), at(Some(later)));
    served.state(&of(1, 3), at(Some(served.now)));
    served.state(&of(2, 1), at(None));
    let order: Vec<_> = std::iter::from_fn(|| served.serve(|_| 1.0))
        .map(|flow| (flow.kind, flow.resources))
        .collect();
    let places = |wanted| order.iter().position(|got| *got == wanted);
    assert_eq!(order.len(), 4);
    assert!(places((2, 1)) <= Some(1), "kinds take turns: {order:?}");
    assert!(places((1, 3)) < places((1, 2)) && places((1, 2)) < places((1, 1)));
}

#[test]
fn servers_state_the_same_processes_and_are_served_in_turn() {
    let (now, mut queues) = (epoch(), Queues::new());
    let flow = flow(Class::Normal, 1);
    for (server, count) in [(1, 4), (2, 6), (3, 5)] {
        let stated = queues.handle_demand(now, server, &flow, &Demand::of(count));
        assert_eq!(stated, Ok(()));
    }
    assert_eq!(queues.demand(&flow), 6, "the greatest, not the sum");
    let servers: Vec<u32> =
        std::iter::from_fn(|| queues.next(now, ROOM, take).map(|grant| grant.server)).collect();
    assert_eq!(servers, [1, 2, 3, 1, 2, 2]);
}

#[test]
fn a_server_without_room_is_passed_over_and_a_gone_one_forgotten() {
    let (now, mut queues) = (epoch(), Queues::new());
    let flow = flow(Class::Normal, 1);
    for server in [1, 2] {
        let stated = queues.handle_demand(now, server, &flow, &Demand::of(9));
        assert_eq!(stated, Ok(()));
    }
    let only_two = |_: &Flow, server: u32| match server {
        2 => Fit::Take,
        _ => Fit::OtherServer,
    };
    for _ in 0..3 {
        let grant = queues.next(now, ROOM, only_two);
        assert_eq!(grant.map(|grant| grant.server), Some(2));
    }
    assert!(queues.next(now, ROOM, |_, _| Fit::OtherServer).is_none());
    queues.handle_server_gone(2);
    assert!(queues.next(now, ROOM, only_two).is_none());
    queues.handle_server_gone(1);
    assert!(queues.is_empty());
}

#[test]
fn a_parked_queue_is_asked_again_only_when_it_is_woken() {
    let mut served = Served::new();
    let (parked, other) = (flow(Class::Interactive, 1), flow(Class::Normal, 2));
    served.state(&parked, Demand::of(9));
    served.state(&other, Demand::of(9));
    let mut asked = 0;
    for _ in 0..3 {
        let grant = served.queues.next(served.now, ROOM, |flow, _| {
            if *flow == parked {
                asked += 1;
                return Fit::Park;
            }
            Fit::Take
        });
        assert_eq!(grant.map(|grant| grant.flow), Some(other));
    }
    assert_eq!(asked, 1);
    served.queues.handle_wake(&parked);
    assert_eq!(served.serve(|_| 1.0), Some(parked));
}

#[test]
fn a_tenant_that_comes_back_has_saved_nothing_up() {
    let mut served = Served::new();
    served.state(&flow(Class::Normal, 1), Demand::of(1000));
    for _ in 0..100 {
        served.serve(|_| 1.0);
    }
    served.state(&flow(Class::Normal, 2), Demand::of(1000));
    let turns: Vec<u32> = (0..10)
        .filter_map(|_| served.serve(|_| 1.0))
        .map(|flow| flow.tenant)
        .collect();
    let second = turns.iter().filter(|tenant| **tenant == 2).count();
    assert!((4..=6).contains(&second), "{turns:?}");
}

#[test]
fn there_is_a_limit_to_queues_and_servers() {
    let (now, mut queues) = (epoch(), Queues::new());
    let of = |resources| Flow {
        resources,
        ..flow(Class::Normal, 1)
    };
    for resources in 0..1024 {
        let stated = queues.handle_demand(now, 1, &of(resources), &Demand::of(1));
        assert_eq!(stated, Ok(()));
    }
    let more = queues.handle_demand(now, 1, &of(1024), &Demand::of(1));
    assert_eq!(more, Err(Full));
    for server in 2..=64 {
        let stated = queues.handle_demand(now, server, &of(0), &Demand::of(1));
        assert_eq!(stated, Ok(()));
    }
    let more = queues.handle_demand(now, 65, &of(0), &Demand::of(1));
    assert_eq!(more, Err(Full));
    assert_eq!(queues.handle_demand(now, 1, &of(9), &Demand::of(0)), Ok(()));
    let room = queues.handle_demand(now, 1, &of(1024), &Demand::of(1));
    assert_eq!(room, Ok(()));
}

/// What happens to a target whose one server states one queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    State(u32),
    Next(Room, Fit),
    Wake,
    /// The oldest permit is over: it was used for so many seconds, or not at all.
    End(u64),
    /// The same of another flow, of which nothing waits any more.
    EndOther(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let room = |free, reserve| Room { free, reserve };
    let fit = prop_oneof![
        4 => Just(Fit::Take),
        1 => Just(Fit::Park),
        1 => Just(Fit::OtherServer),
    ];
    prop_oneof![
        (0..6_u32).prop_map(Step::State),
        ((0..2_u32, 0..2_u32), fit).prop_map(move |((f, r), fit)| Step::Next(room(f, r), fit)),
        Just(Step::Wake),
        (0..4_u64).prop_map(Step::End),
        (1..3_u32, 0..2_u32).prop_map(|(tenant, kind)| Step::EndOther(tenant, kind)),
    ]
}

/// A second queue comes and goes: from then on there is a tree.
fn make_tree(queues: &mut Queues, now: Instant) {
    if queues.is_empty() {
        return;
    }
    let other = flow(Class::Background, 9);
    for count in [1, 0] {
        let stated = queues.handle_demand(now, 7, &other, &Demand::of(count));
        assert_eq!(stated, Ok(()));
    }
    assert!(matches!(queues.0.as_deref(), Some(Waiting::Many(_))));
}

proptest! {
    #[test]
    fn one_queue_is_served_as_a_tree_would_and_becomes_one(
        system in any::<bool>(),
        weight in 1..5_u32,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let now = epoch();
        let class = if system { Class::System } else { Class::Normal };
        let first = flow(class, 1);
        let of = |count| Demand { weight, ..Demand::of(count) };
        let (mut one, mut tree) = (Queues::new(), Queues::new());
        let mut open = std::collections::VecDeque::new();
        for step in steps {
            match step {
                Step::State(count) => {
                    prop_assert_eq!(one.handle_demand(now, 1, &first, &of(count)), Ok(()));
                    prop_assert_eq!(tree.handle_demand(now, 1, &first, &of(count)), Ok(()));
                    make_tree(&mut tree, now);
                }
                Step::Next(room, fit) => {
                    let granted = one.next(now, room, |_, _| fit);
                    prop_assert_eq!(granted, tree.next(now, room, |_, _| fit));
                    open.extend(granted);
                }
                Step::Wake => {
                    one.handle_wake(&first);
                    tree.handle_wake(&first);
                }
                Step::EndOther(tenant, kind) => {
                    let other = Flow { tenant, kind, resources: 7, ..first };
                    for queues in [&mut one, &mut tree] {
                        queues.handle_end(&other, Cost::of(1.0), Duration::from_secs(3));
                    }
                }
                Step::End(seconds) => {
                    let Some(grant) = open.pop_front() else { continue };
                    let service = Duration::from_secs(seconds);
                    one.handle_end(&grant.flow, grant.cost, service);
                    tree.handle_end(&grant.flow, grant.cost, service);
                }
            }
            prop_assert_eq!(one.demand(&first), tree.demand(&first));
            prop_assert_eq!(one.is_empty(), tree.is_empty());
        }
        // Others come: another server, another tenant, another kind of the same tenant.
        let tenant = flow(class, 2);
        let kind = Flow { kind: 5, ..first };
        for (server, flow) in [(2, &first), (1, &tenant), (1, &kind)] {
            prop_assert_eq!(one.handle_demand(now, server, flow, &of(9)), Ok(()));
            prop_assert_eq!(tree.handle_demand(now, server, flow, &of(9)), Ok(()));
            make_tree(&mut tree, now);
        }
        one.handle_wake(&first);
        tree.handle_wake(&first);
        for _ in 0..40 {
            let granted = one.next(now, ROOM, take);
            prop_assert_eq!(granted, tree.next(now, ROOM, take));
        }
        prop_assert!(one.is_empty() && tree.is_empty());
    }
}

#[test]
fn a_queue_alone_is_charged_what_its_operations_took() {
    let mut served = Served::new();
    let alone = flow(Class::Normal, 1);
    served.state(&alone, Demand::of(50));
    (0..40).for_each(|_| assert!(served.serve(|_| 5.0).is_some()));
    let grant = served.queues.next(served.now, ROOM, take);
    let cost = grant.map(|grant| grant.cost.0);
    assert!(
        cost.is_some_and(|cost| (4.9..=5.1).contains(&cost)),
        "{cost:?}"
    );
}

#[test]
fn a_server_that_is_gone_takes_its_only_queue_with_it() {
    let mut served = Served::new();
    served.state(&flow(Class::Normal, 1), Demand::of(5));
    served.queues.handle_server_gone(2);
    assert!(!served.queues.is_empty(), "another server's");
    served.queues.handle_server_gone(1);
    assert!(served.queues.is_empty());
}
