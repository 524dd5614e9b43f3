//! `scenario`: one deployment of any shape, real processes and real services: a fleet joins, processes are made by all
//! APIs in turn, everybody dies, and in the end every effect and every row is accounted for.
//!
//! ```text
//!   Setup:  a Site (processes, services) and a fleet ─▶ Stand (deployment, fleet, ledger) ◀── Workload (public API, open loop)
//!   Drill:  each process dies twice by kind, one stands still, agents die ─▶ lost, doubled, leaked, the store's rows
//!   Outage: a service is gone for a while                                 ─▶ sessions lost, how soon all is normal
//!   Grow:   one process on SQLite becomes many on a database              ─▶ the same agents, nothing lost, downtime
//! ```

mod audit;
mod drill;
mod grow;
mod outage;
mod setup;
mod site;
mod told;

use std::time::{Duration, Instant};

use serde::Serialize;

pub use audit::Audit;
pub use drill::{Drill, Drilled};
pub use grow::{Downtime, Grew, Grow};
pub use outage::{How, Outage, OutageFound};
pub use setup::Setup;
pub use site::{Service, Site};

use crate::clock;
use crate::report::Processes;
use crate::stand::Stand;

/// Each process is over after this long.
const PROCESS_DEADLINE: Duration = Duration::from_secs(3600);

/// What every scenario asks in the end.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Account {
    /// Processes by fate.
    pub processes: Processes,
    /// Processes that the API refused for good.
    pub refused: u64,
    /// Effects beyond the first of an operation.
    pub duplicate_effects: u64,
    /// Operations that process servers believed to be active, and permits that gateways counted, when nothing was.
    pub leaked: u64,
    /// Of how many agents the gateways told their permits.
    pub permits_told: usize,
    /// Agents that have no session.
    pub missing: usize,
    /// What the store has of it.
    pub store: Audit,
}

impl Account {
    /// Waits until all has ended, and counts.
    ///
    /// # Errors
    /// When the API cannot be asked.
    async fn close(stand: &Stand, refused: u64) -> anyhow::Result<Self> {
        stand.settle().await;
        let agents = stand.fleet.ids().len();
        let totals = stand.ledger.totals();
        let (permits, permits_told) = stand.leaked_permits().await;
        let active = stand.active().await.unwrap_or(u64::MAX);
        let stored = stand.api.processes().await?;
        Ok(Self {
            processes: totals.into(),
            refused,
            duplicate_effects: totals.duplicate_effects,
            leaked: active.saturating_add(permits),
            permits_told,
            missing: agents - stand.fleet.up().min(agents),
            store: Audit::of(&stand.ledger.accepted_all(), &stored),
        })
    }

    /// What does not hold, in words.
    fn violations(&self, agents: usize) -> Vec<String> {
        let untold = agents.saturating_sub(self.permits_told);
        let counts = [
            (self.processes.lost, "processes lost"),
            (self.processes.failed, "processes failed"),
            (self.refused, "processes refused"),
            (self.duplicate_effects, "duplicate effects"),
            (self.leaked, "permits or active operations leaked"),
            (untold as u64, "agents whose permits nobody could tell"),
            (self.missing as u64, "agents without a session"),
        ];
        let wrong = counts.into_iter().filter(|(count, _)| *count > 0);
        let mut violations: Vec<_> = wrong
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        violations.extend(self.store.violations());
        violations
    }
}

/// Says what happens, with the time since the run began.
fn say(began: Instant, what: &str) {
    let since = clock::now().duration_since(began).as_secs_f64();
    println!("{since:>7.1} s  {what}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Totals;

    /// Everything as it should be.
    pub(super) fn account() -> Account {
        let totals = Totals {
            submitted: 5000,
            succeeded: 5000,
            ..Totals::default()
        };
        Account {
            processes: totals.into(),
            refused: 0,
            duplicate_effects: 0,
            leaked: 0,
            permits_told: 500,
            missing: 0,
            store: Audit {
                stored: 5000,
                ..Audit::default()
            },
        }
    }

    #[test]
    fn an_account_holds_only_if_every_count_is_right() {
        assert!(account().violations(500).is_empty());
        let wrong: [fn(&mut Account); 8] = [
            |account| account.processes.lost = 1,
            |account| account.processes.failed = 1,
            |account| account.refused = 1,
            |account| account.duplicate_effects = 1,
            |account| account.leaked = 1,
            |account| account.permits_told = 499,
            |account| account.missing = 1,
            |account| account.store.unasked = 1,
        ];
        for change in wrong {
            let mut account = account();
            change(&mut account);
            assert_eq!(account.violations(500).len(), 1, "{account:?}");
        }
    }
}
