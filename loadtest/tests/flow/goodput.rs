//! T1, T2, T3: more servers never make it worse, hosts are used up, nothing is in vain.

use loadtest::flow::{Kind, RuleName, Scenario};

use crate::{FIXED, Seed, fixed, fresh_seed, table};

const SERVERS: [usize; 6] = [1, 2, 4, 8, 16, 32];

fn goodputs(rule: RuleName, gamma: f64, seed: Seed) -> Vec<f64> {
    let of = |servers: usize| rule.run(&table(seed, gamma, servers)).goodput();
    SERVERS.iter().map(|servers| of(*servers)).collect()
}

/// Part of the goodput of fewer servers that more must reach (T1): the mean over the fixed seeds, and the
/// fresh seed alone. One seed scatters by a quarter of a point for each number of servers.
const NEVER_LESS: f64 = 0.99;
const NEVER_LESS_CHANCE: f64 = 0.95;

/// What goodput has to be.
struct Least {
    /// With four servers. They have 140 workers for 128 slots, and a worker waits for messages as well, so
    /// it is luck how many hosts find one at once.
    four: f64,
    /// With more (T2).
    more: f64,
}

impl Least {
    /// Under a seed.
    fn of(&self, servers: usize, seed: Seed) -> f64 {
        match servers {
            // Not enough workers for 128 slots.
            1 | 2 => 0.25 * servers as f64,
            4 => seed.allow(self.four, self.four - 0.03),
            _ => seed.allow(self.more, self.more - 0.02),
        }
    }
}

/// T1, T2 and T3 for one thrash factor.
fn saturated(gamma: f64, least: &Least) {
    let fresh = fresh_seed();
    let never_less = [(&FIXED[..], NEVER_LESS), (&[fresh], NEVER_LESS_CHANCE)];
    for (seeds, part) in never_less {
        let mut best = 0.0_f64;
        for servers in SERVERS {
            let mut goodputs = Vec::new();
            for seed in seeds {
                let score = RuleName::Drover.run(&table(*seed, gamma, servers));
                let (goodput, waste) = (score.goodput(), score.waste());
                println!("γ = {gamma}, {servers} servers, seed {seed}: {goodput:.4}");
                assert!(waste <= 0.001, "waste of {waste}");
                assert_eq!(score.over_issue, 0);
                assert!(goodput >= least.of(servers, *seed), "{goodput}");
                goodputs.push(goodput);
            }
            let mean = goodputs.iter().sum::<f64>() / goodputs.len() as f64;
            assert!(mean >= part * best, "{servers}: {mean} after {best}");
            best = best.max(mean);
        }
    }
}

#[test]
fn adding_servers_never_lowers_goodput_where_hosts_thrash_little() {
    saturated(
        0.05,
        &Least {
            four: 0.96,
            more: 0.97,
        },
    );
}

#[test]
fn adding_servers_never_lowers_goodput_where_hosts_thrash() {
    saturated(
        0.25,
        &Least {
            four: 0.92,
            more: 0.93,
        },
    );
}

/// If the curves of other rules do not bend, the test proves nothing.
#[test]
fn senders_that_decide_for_themselves_lose_by_more_servers_in_the_same_world() {
    let cattle = goodputs(RuleName::Cattle, 0.25, fixed(1));
    println!("cattle, γ = 0.25: {cattle:.3?}");
    assert!(cattle[3] > 0.65, "it works with eight servers: {cattle:?}");
    assert!(cattle[4] <= 0.8 * cattle[3], "not with more: {cattle:?}");
    assert!(cattle[5] <= 0.55, "{cattle:?}");
    for rule in [RuleName::Aimd, RuleName::Gradient, RuleName::Bucket] {
        let score = rule.run(&table(fixed(1), 0.25, 16));
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
            ..table(fixed(1), gamma, servers)
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
    let kinds = [0.5, 2.0, 8.0].map(|mean| Kind {
        mean,
        share: 1.0 / 3.0,
    });
    for seed in [fixed(1), fresh_seed()] {
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
        let runs = [
            ("heavy tails", heavy, seed.allow(0.9, 0.83)),
            ("mixed kinds", mixed, seed.allow(0.96, 0.93)),
        ];
        for (name, scenario, least) in runs {
            let score = RuleName::Drover.run(&scenario);
            let (goodput, waste) = (score.goodput(), score.waste());
            println!("{name}, seed {seed}: {goodput:.3}, waste {waste:.5}");
            assert!(goodput >= least, "{name}: {goodput}");
            assert!(waste <= 0.001, "{name}: {waste}");
        }
    }
}
