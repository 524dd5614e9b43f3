//! Short schedules in which things break at random: is a permit ever issued twice, or lost?

use gateway::flow::fair::Class;

use super::random::Random;
use super::rules::drover::{Audit, Drover};
use super::scenario::{Change, Fault, Kind, Scenario, Tenant};
use super::world;

/// What was left of a schedule when everything had come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Crashed {
    /// Operations in flight beyond the limit under which the last of them was granted.
    pub over_issue: u32,
    /// Operations that ran more than once.
    pub repeated: u64,
    /// Operations that were refused by a host, or fenced off there.
    pub wasted: u64,
    /// What was left over.
    pub audit: Audit,
}

/// Runs the schedule of a seed: two or three servers, a few hosts, some dozens of processes, and
/// three to eight faults of every kind in the first seconds.
pub fn crash(seed: u64) -> Crashed {
    let scenario = schedule(seed);
    let (rule, world) = world::run(&scenario, Drover::new(&scenario));
    Crashed {
        over_issue: world.score.over_issue,
        repeated: world.score.repeated,
        wasted: world.score.refused + world.score.fenced,
        audit: rule.audit(),
    }
}

fn schedule(seed: u64) -> Scenario {
    let mut random = Random::new(seed ^ 0x0c7a_5e00);
    let (hosts, servers) = (1 + random.below(3), 1 + random.below(3));
    let faults = 3 + random.below(6);
    let mut changes: Vec<(f64, Change)> = (0..faults)
        .map(|_| {
            let fault = fault(&mut random, hosts, servers);
            (random.between(0.05, 6.0), Change::Fault(fault))
        })
        .collect();
    changes.push((
        random.between(0.5, 5.0),
        Change::Slots(random.between(1.0, 6.0)),
    ));
    Scenario {
        seed,
        hosts,
        servers,
        slots: random.between(1.0, 5.0),
        gamma: 0.25,
        refuse_at: 12,
        kinds: vec![
            Kind {
                mean: 0.2,
                share: 0.6,
            },
            Kind {
                mean: 0.8,
                share: 0.4,
            },
        ],
        workers: 4 + u32::try_from(random.below(12)).unwrap_or(0),
        outstanding: 16 + random.below(25),
        endless: false,
        tenants: vec![
            Tenant {
                share: 0.7,
                weight: 1,
            },
            Tenant {
                share: 0.3,
                weight: 2,
            },
        ],
        classes: vec![
            (Class::System, 0.1),
            (Class::Interactive, 0.3),
            (Class::Normal, 0.3),
            (Class::Background, 0.3),
        ],
        storage: (random.below(2) == 0).then(|| (2, random.between(2.0, 6.0))),
        changes,
        warm_up: 0.0,
        measured: 300.0,
        server_lease: random.between(0.5, 3.0),
        silence: random.between(0.2, 2.0),
        ..Scenario::default()
    }
}

fn fault(random: &mut Random, hosts: usize, servers: usize) -> Fault {
    let seconds = random.between(0.02, 4.0);
    match random.below(5) {
        0 => Fault::ServerCrash(random.below(servers), seconds),
        1 => Fault::ServerPause(random.below(servers), seconds),
        2 => Fault::OwnerCrash(seconds),
        3 => Fault::OwnerPause(seconds * 3.0),
        _ => Fault::LinkDown(random.below(hosts), seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_made_of_every_fault_and_repeat_exactly() {
        let mut kinds = [0_u32; 5];
        for seed in 0..200 {
            for (_, change) in schedule(seed).changes {
                let Change::Fault(fault) = change else {
                    continue;
                };
                kinds[match fault {
                    Fault::ServerCrash(..) => 0,
                    Fault::ServerPause(..) => 1,
                    Fault::OwnerCrash(..) => 2,
                    Fault::OwnerPause(..) => 3,
                    Fault::LinkDown(..) => 4,
                }] += 1;
            }
        }
        assert!(kinds.iter().all(|count| *count > 100), "{kinds:?}");
        assert_eq!(schedule(7), schedule(7));
        assert_eq!(crash(7), crash(7));
    }
}
