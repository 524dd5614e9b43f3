//! Targets of flow, on the production rules in the simulator. Each runs on fixed seeds and on a
//! fresh one, which is printed; `DROVER_SEED` repeats it.

#[path = "flow/crashes.rs"]
mod crashes;
#[path = "flow/following.rs"]
mod following;
#[path = "flow/goodput.rs"]
mod goodput;
#[path = "flow/sharing.rs"]
mod sharing;

use loadtest::flow::{Scenario, Tenant};

/// A seed that no run has had before, or the one that was asked for.
pub(crate) fn fresh_seed() -> u64 {
    let asked = std::env::var("DROVER_SEED").ok();
    let seed = asked.map_or_else(loadtest::clock::unix_seconds, |text| {
        text.parse().expect("DROVER_SEED is a number")
    });
    println!("the fresh seed; DROVER_SEED={seed} repeats it");
    seed
}

/// Three fixed seeds and the fresh one.
pub(crate) fn seeds() -> [u64; 4] {
    [1, 2, 3, fresh_seed()]
}

/// Four tenants of equal weight, one of which holds most of the backlog.
pub(crate) fn unequal_tenants() -> Vec<Tenant> {
    let tenant = |share| Tenant { share, weight: 1 };
    vec![tenant(0.7), tenant(0.1), tenant(0.1), tenant(0.1)]
}

/// The scenario of the table in `docs/FLOW.md`.
pub(crate) fn table(seed: u64, gamma: f64, servers: usize) -> Scenario {
    Scenario {
        seed,
        gamma,
        servers,
        ..Scenario::default()
    }
}
