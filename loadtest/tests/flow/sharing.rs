//! T5: tenants and classes get their shares; and shared devices.

use gateway::flow::fair::Class;
use loadtest::flow::{Kind, Lending, RuleName, Scenario, Tenant, lend};

use crate::{fixed, fresh_seed, seeds, table, unequal_tenants};

/// 60 service times of 2 s.
const WINDOW: f64 = 120.0;

fn worst(indices: Vec<f64>) -> f64 {
    assert!(indices.len() >= 10, "{} windows", indices.len());
    indices.into_iter().fold(1.0, f64::min)
}

#[test]
fn tenants_get_equal_service_whatever_part_of_the_backlog_is_theirs() {
    for seed in seeds() {
        let scenario = Scenario {
            tenants: unequal_tenants(),
            ..table(seed, 0.05, 8)
        };
        let drover = RuleName::Drover.run(&scenario);
        let jain = worst(drover.jain(&[1; 4], WINDOW));
        let cattle = worst(RuleName::Cattle.run(&scenario).jain(&[1; 4], WINDOW));
        println!("seed {seed}: drover {jain:.4}, cattle {cattle:.4}");
        assert!(jain >= 0.99, "{jain}");
        assert!(
            cattle <= 0.6,
            "first come, first served is not fair: {cattle}"
        );
        assert!(drover.goodput() >= 0.97, "{}", drover.goodput());
    }
}

#[test]
fn weights_count_and_slow_operations_win_nothing() {
    let seed = fresh_seed();
    let tenant = |share, weight| Tenant { share, weight };
    let kind = |mean, share| Kind { mean, share };
    let scenario = Scenario {
        tenants: vec![tenant(0.5, 1), tenant(0.25, 2), tenant(0.25, 3)],
        kinds: vec![kind(1.0, 0.8), kind(6.0, 0.2)],
        ..table(seed, 0.05, 8)
    };
    let score = RuleName::Drover.run(&scenario);
    let jain = worst(score.jain(&[1, 2, 3], WINDOW));
    println!("seed {seed}: weighted {jain:.4}");
    assert!(jain >= 0.99, "{jain}");
}

#[test]
fn no_class_starves_and_the_urgent_ones_start_first() {
    let classes = [
        (Class::Interactive, 0.3),
        (Class::Normal, 0.3),
        (Class::Background, 0.4),
    ];
    for seed in seeds() {
        let scenario = Scenario {
            classes: classes.to_vec(),
            tenants: unequal_tenants(),
            ..table(seed, 0.05, 8)
        };
        let score = RuleName::Drover.run(&scenario);
        println!("seed {seed}: longest gaps {:.1?} s", score.starved);
        for place in 1..4 {
            assert!(score.starved[place] <= 60.0, "{:?}", score.starved);
        }
        let jain = worst(score.jain(&[1; 4], WINDOW));
        println!("weighted over all classes: {jain:.4}");
        assert!(score.goodput() >= 0.97, "{}", score.goodput());
    }
    let scenario = Scenario {
        classes: vec![(Class::Interactive, 0.02), (Class::Background, 0.98)],
        outstanding: 1000,
        ..table(fixed(1), 0.05, 8)
    };
    let score = RuleName::Drover.run(&scenario);
    let wait = |class| score.wait(class, 0.99).expect("it started some");
    let (urgent, background) = (wait(Class::Interactive), wait(Class::Background));
    println!("99 % start within {urgent:.1} s, in the background within {background:.1} s");
    assert!(urgent < 5.0 && background > 10.0, "{urgent}, {background}");
}

/// Four hosts of 8 slots share a device of 16: the device's own limit is found as well.
#[test]
fn a_device_behind_several_hosts_is_kept_busy_and_not_overloaded() {
    let scenario = Scenario {
        storage: Some((4, 16.0)),
        ..table(fixed(1), 0.25, 8)
    };
    let drover = RuleName::Drover.run(&scenario);
    let cattle = RuleName::Cattle.run(&scenario);
    println!(
        "shared device: drover {:.3}, waste {:.5}; cattle {:.3}",
        drover.goodput(),
        drover.waste(),
        cattle.goodput()
    );
    assert!(drover.goodput() >= 0.9, "{}", drover.goodput());
    assert!(drover.waste() <= 0.001, "{}", drover.waste());
    assert!(cattle.goodput() < drover.goodput());
}

/// A limit over eight homes whose demand moves every half minute.
#[test]
fn credits_follow_demand_from_home_to_home_and_never_exceed_the_limit() {
    for (busy, least) in [(8, 0.97), (2, 0.85)] {
        for loses_one_in in [0, 50] {
            let setting = Lending {
                seed: fresh_seed().number,
                homes: 8,
                limit: 64,
                busy,
                moves_every: 30.0,
                mean: 2.0,
                loses_one_in,
            };
            let lent = lend(&setting);
            println!("{busy} of 8 homes busy, one in {loses_one_in} lost: {lent:?}");
            assert!(lent.most <= 64, "{lent:?}");
            assert!(lent.used >= least, "{lent:?}");
        }
    }
}
