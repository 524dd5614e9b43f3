//! T1, T2, T3: more servers never make it worse, hosts are used up, nothing is in vain.

use loadtest::flow::{Kind, RuleName, Scenario};

use crate::{fresh_seed, seeds, table};

const SERVERS: [usize; 6] = [1, 2, 4, 8, 16, 32];

fn goodputs(rule: RuleName, gamma: f64, seed: u64) -> Vec<f64> {
    let of = |servers: usize| rule.run(&table(seed, gamma, servers)).goodput();
    SERVERS.iter().map(|servers| of(*servers)).collect()
}

/// T1, T2 and T3 for one thrash factor: over three fixed seeds and a fresh one. A figure scatters by
/// half a point from seed to seed, so T1 is about their mean.
fn saturated(gamma: f64, least: f64) {
    let mut best = 0.0_f64;
    for servers in SERVERS {
        let mut goodputs = Vec::new();
        for seed in seeds() {
            let score = RuleName::Drover.run(&table(seed, gamma, servers));
            assert!(score.waste() <= 0.001, "{servers}: {}", score.waste());
            assert_eq!(score.over_issue, 0);
            goodputs.push(score.goodput());
        }
        println!("drover, γ = {gamma}, {servers} servers: {goodputs:.3?}");
        let mean = goodputs.iter().sum::<f64>() / 4.0;
        assert!(
            mean >= 0.99 * best,
            "{servers} servers: {mean} after {best}"
        );
        best = best.max(mean);
        let least = match servers {
            // Not enough workers for 128 slots.
            1 | 2 => 0.25 * servers as f64,
            // 140 workers for 128 slots, and a worker waits for messages as well.
            4 => least - 0.01,
            _ => least,
        };
        assert!(goodputs.iter().all(|g| *g >= least), "{goodputs:?}");
    }
}

#[test]
fn adding_servers_never_lowers_goodput_where_hosts_thrash_little() {
    saturated(0.05, 0.97);
}

#[test]
fn adding_servers_never_lowers_goodput_where_hosts_thrash() {
    saturated(0.25, 0.93);
}

/// If the curves of other rules do not bend, the test proves nothing.
#[test]
fn senders_that_decide_for_themselves_lose_by_more_servers_in_the_same_world() {
    let cattle = goodputs(RuleName::Cattle, 0.25, 1);
    println!("cattle, γ = 0.25: {cattle:.3?}");
    assert!(cattle[3] > 0.65, "it works with eight servers: {cattle:?}");
    assert!(cattle[4] <= 0.8 * cattle[3], "not with more: {cattle:?}");
    assert!(cattle[5] <= 0.55, "{cattle:?}");
    for rule in [RuleName::Aimd, RuleName::Gradient, RuleName::Bucket] {
        let score = rule.run(&table(1, 0.25, 16));
        let (goodput, waste) = (score.goodput(), score.waste());
        println!("{}: {goodput:.3}, waste {waste:.2}", rule.name());
        assert!(goodput <= 0.6, "{}: {goodput}", rule.name());
        assert!(waste >= 0.3, "{}: {waste}", rule.name());
    }
}

#[test]
fn a_costly_refusal_ruins_cattle_and_is_nothing_to_drover() {
    for gamma in [0.05, 0.25] {
        let costly = |servers| Scenario {
            refusal_cost: 0.1,
            ..table(1, gamma, servers)
        };
        let cattle = [16, 32].map(|servers| RuleName::Cattle.run(&costly(servers)).goodput());
        let drover = RuleName::Drover.run(&costly(16)).goodput();
        println!("refusals of 0.1 s, γ = {gamma}: cattle {cattle:.3?}, drover {drover:.3}");
        assert!(cattle[0] <= 0.35, "{cattle:?}");
        assert!(drover >= 0.93, "{drover}");
    }
}

#[test]
fn heavy_tails_and_mixed_kinds_cost_little() {
    let seed = fresh_seed();
    let kinds = [0.5, 2.0, 8.0].map(|mean| Kind {
        mean,
        share: 1.0 / 3.0,
    });
    let heavy = Scenario {
        variation: 2.0,
        // Durations that scatter so much take longer to tell.
        warm_up: 900.0,
        ..table(seed, 0.05, 8)
    };
    let mixed = Scenario {
        kinds: kinds.to_vec(),
        ..table(seed, 0.05, 8)
    };
    // Of the heavy ones, 4 % of the work is in operations that take longer than a sender waits.
    for (name, scenario, least) in [("heavy tails", heavy, 0.88), ("mixed kinds", mixed, 0.95)] {
        let score = RuleName::Drover.run(&scenario);
        println!("{name}: {:.3}, waste {:.5}", score.goodput(), score.waste());
        assert!(score.goodput() >= least, "{name}: {}", score.goodput());
        assert!(score.waste() <= 0.001, "{name}: {}", score.waste());
    }
}
