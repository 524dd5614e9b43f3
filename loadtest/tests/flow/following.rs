//! T4, T11, T3 over a step: the limit follows the capacity, and slow operations are not congestion.

use loadtest::flow::{Change, RuleName, Scenario};

use crate::{Seed, fixed, seeds, table};

/// Seconds that each step may take; under a fresh seed, half as much again.
const WITHIN: [f64; 3] = [60.0, 40.0, 40.0];
const CHANCE: f64 = 1.5;

/// T11 under a fresh seed: seconds.
const T11_CHANCE: f64 = 900.0;

/// Slots 8, 4, 8, 16, each for 200 s.
fn steps(seed: Seed, gamma: f64) -> Scenario {
    let changes = [(200.0, 4.0), (400.0, 8.0), (600.0, 16.0)];
    Scenario {
        changes: changes
            .map(|(at, slots)| (at, Change::Slots(slots)))
            .to_vec(),
        warm_up: 190.0,
        measured: 610.0,
        ..table(seed, gamma, 8)
    }
}

/// T4: 90 % of the new capacity within 30 mean service times of a halving and 20 of a doubling; one is
/// 2 s. (docs/FLOW.md has how the times are spread.)
#[test]
fn a_new_capacity_is_reached_within_thirty_and_twenty_service_times() {
    for gamma in [0.05, 0.25] {
        for seed in seeds() {
            let score = RuleName::Drover.run(&steps(seed, gamma));
            let settled = [200.0, 400.0, 600.0].map(|at| score.settled(at, at + 200.0, 0.9));
            let waste = score.waste();
            println!("γ = {gamma}, seed {seed}: settled after {settled:?} s, waste {waste:.5}");
            for (seconds, most) in settled.into_iter().zip(WITHIN) {
                let seconds = seconds.expect("it settles");
                let most = seed.allow(most, CHANCE * most);
                assert!(seconds <= most, "γ = {gamma}, seed {seed}: {settled:?}");
            }
            assert!(waste <= 0.01, "{waste}");
            assert_eq!(score.over_issue, 0);
        }
    }
}

#[test]
fn rules_of_senders_never_come_back_from_a_halving() {
    for rule in [RuleName::Cattle, RuleName::Bucket] {
        let score = rule.run(&steps(fixed(1), 0.25));
        let halved = score.ratio(260.0, 400.0);
        println!("{} at half the capacity: {halved:.3}", rule.name());
        assert!(halved < 0.75, "{}: {halved}", rule.name());
    }
}

#[test]
fn operations_that_legitimately_take_three_times_as_long_are_not_taken_for_congestion() {
    for seed in seeds() {
        let scenario = Scenario {
            changes: vec![(300.0, Change::Slow(3.0)), (1200.0, Change::Slow(1.0))],
            warm_up: 200.0,
            measured: 1400.0,
            ..table(seed, 0.05, 8)
        };
        let score = RuleName::Drover.run(&scenario);
        // The first minute is good by itself: what runs goes on.
        let settled = score.settled(360.0, 1200.0, 0.9);
        let after = score.ratio(900.0, 1200.0);
        let fast_again = score.ratio(1300.0, 1600.0);
        println!(
            "seed {seed}: settled after {settled:?} s, then {after:.3}, fast again {fast_again:.3}"
        );
        let most = seed.allow(600.0, T11_CHANCE);
        assert!(
            settled.is_some_and(|seconds| seconds + 60.0 <= most),
            "{settled:?}"
        );
        assert!(after >= seed.allow(0.9, 0.8), "{after}");
        // A baseline that was raised is no licence to overload.
        assert!(fast_again >= 0.9, "{fast_again}");
        assert!(score.waste() <= 0.01, "{}", score.waste());
    }
}

#[test]
fn a_capacity_that_flaps_every_twenty_seconds_costs_a_bounded_part() {
    let flaps = (0..25_u32).map(|n| {
        let slots = if n % 2 == 0 { 4.0 } else { 8.0 };
        (200.0 + 20.0 * f64::from(n), Change::Slots(slots))
    });
    let scenario = Scenario {
        changes: flaps.collect(),
        measured: 500.0,
        ..table(fixed(1), 0.05, 8)
    };
    let score = RuleName::Drover.run(&scenario);
    println!(
        "flapping: {:.3}, waste {:.5}",
        score.goodput(),
        score.waste()
    );
    assert!(score.goodput() >= 0.85, "{}", score.goodput());
    assert!(score.waste() <= 0.01, "{}", score.waste());
}
