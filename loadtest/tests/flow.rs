//! Targets of flow, on the production rules in the simulator. Each runs on fixed seeds and on a
//! fresh one, which is printed; `DROVER_SEED` repeats it.
//!
//! The fixed seeds are held to the targets; they give the same figures in every run. The fresh one may
//! be unlucky: it is held to a bound ([`Seed::allow`]) that no rule in order misses by chance.

#[path = "flow/crashes.rs"]
mod crashes;
#[path = "flow/following.rs"]
mod following;
#[path = "flow/goodput.rs"]
mod goodput;
#[path = "flow/retries.rs"]
mod retries;
#[path = "flow/sharing.rs"]
mod sharing;

use loadtest::flow::{Scenario, Tenant};

/// What a run is made of.
#[derive(Clone, Copy)]
pub(crate) struct Seed {
    pub(crate) number: u64,
    is_fresh: bool,
}

impl Seed {
    /// The target under a fixed seed, the bound for chance under the fresh one. That bound is at
    /// least eight standard deviations from the mean of many seeds (40 to 300), and twice as far from
    /// it as the worst of them: by an exponential tail as it was seen, less than 1 of 10⁵.
    pub(crate) fn allow(self, target: f64, chance: f64) -> f64 {
        match self.is_fresh {
            true => chance,
            false => target,
        }
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fresh = if self.is_fresh { " (fresh)" } else { "" };
        write!(f, "{}{fresh}", self.number)
    }
}

/// A seed that no run has had before, or the one that was asked for.
pub(crate) fn fresh_seed() -> Seed {
    let asked = std::env::var("DROVER_SEED").ok();
    let number = asked.map_or_else(loadtest::clock::unix_seconds, |text| {
        text.parse().expect("DROVER_SEED is a number")
    });
    println!("the fresh seed; DROVER_SEED={number} repeats it");
    Seed {
        number,
        is_fresh: true,
    }
}

/// The fixed seeds.
pub(crate) const FIXED: [Seed; 3] = [fixed(1), fixed(2), fixed(3)];

/// A seed of every run.
pub(crate) const fn fixed(number: u64) -> Seed {
    Seed {
        number,
        is_fresh: false,
    }
}

/// Three fixed seeds and the fresh one.
pub(crate) fn seeds() -> [Seed; 4] {
    let [first, second, third] = FIXED;
    [first, second, third, fresh_seed()]
}

/// Four tenants of equal weight, one of which holds most of the backlog.
pub(crate) fn unequal_tenants() -> Vec<Tenant> {
    let tenant = |share| Tenant { share, weight: 1 };
    vec![tenant(0.7), tenant(0.1), tenant(0.1), tenant(0.1)]
}

/// The scenario of the table in `docs/FLOW.md`.
pub(crate) fn table(seed: Seed, gamma: f64, servers: usize) -> Scenario {
    Scenario {
        seed: seed.number,
        gamma,
        servers,
        ..Scenario::default()
    }
}
