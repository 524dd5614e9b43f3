//! What was asked, what was promised and what happened: the account that a run is judged by.
//!
//! A process is *accepted* when the API has answered with its id. From then on it must end, and a
//! succeeded one must have had its effect exactly once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use protocol::ids::{OperationId, ProcessId};
use serde::Serialize;

/// How a process ended, as the API says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// `succeeded`.
    Succeeded,
    /// `failed` or `cancelled`.
    Failed,
}

/// A process that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    /// When it should have been sent.
    pub due: Instant,
    /// When its end was heard of.
    pub ended: Instant,
}

#[derive(Default)]
struct Account {
    /// Accepted processes: when each should have been sent.
    open: HashMap<ProcessId, Instant>,
    /// Ends seen before the acceptance was (the event stream can be faster than the reply).
    early: HashMap<ProcessId, (End, Instant)>,
    ended: HashMap<ProcessId, End>,
    effects: HashMap<OperationId, u32>,
    /// Each end, where that was asked for.
    trace: Option<Vec<Traced>>,
    attempted: u64,
    accepted: u64,
    succeeded: u64,
    failed: u64,
}

/// The account of one run. Shared by the workload, the watcher and the simulated hypervisors.
pub struct Ledger {
    account: Mutex<Account>,
    round_trips: Mutex<Histogram<u64>>,
}

/// The sums of an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Totals {
    /// Processes that the workload tried to create.
    pub attempted: u64,
    /// Processes that the API accepted.
    pub submitted: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Accepted and never ended, or succeeded without an effect.
    pub lost: u64,
    /// Effects beyond the first, over all operations.
    pub duplicate_effects: u64,
    /// Operations that had an effect.
    pub effects: u64,
}

/// The longest round trip that the histogram tells apart.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(3600);

impl Default for Ledger {
    fn default() -> Self {
        Self {
            account: Mutex::default(),
            round_trips: Mutex::new(new_histogram(ROUND_TRIP_MAX)),
        }
    }
}

/// A bounded histogram in microseconds with three significant digits.
pub fn new_histogram(max: Duration) -> Histogram<u64> {
    let max = u64::try_from(max.as_micros())
        .unwrap_or(u64::MAX / 2)
        .max(2);
    #[expect(
        clippy::unwrap_used,
        reason = "1 <= max / 2 and 3 digits are within the crate's bounds"
    )]
    Histogram::new_with_bounds(1, max, 3).unwrap()
}

impl Ledger {
    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The workload is about to try `count` creations.
    pub fn attempting(&self, count: u64) {
        self.account().attempted += count;
    }

    /// The API has accepted a process that should have been sent at `intended`.
    pub fn accepted(&self, process: ProcessId, intended: Instant) {
        let mut account = self.account();
        account.accepted += 1;
        let early = account.early.remove(&process);
        account.open.insert(process, intended);
        drop(account);
        if let Some((end, at)) = early {
            self.ended(process, end, at);
        }
    }

    /// The API says that a process has ended. Repetitions are ignored. The round trip counts from
    /// the time at which the process *should* have been sent, so that a stall of the server is not
    /// hidden by the requests that it delayed (coordinated omission).
    pub fn ended(&self, process: ProcessId, end: End, at: Instant) {
        let mut account = self.account();
        let Some(intended) = account.open.remove(&process) else {
            if !account.ended.contains_key(&process) {
                account.early.insert(process, (end, at));
            }
            return;
        };
        account.ended.insert(process, end);
        if let Some(trace) = &mut account.trace {
            let due = intended;
            trace.push(Traced { due, ended: at });
        }
        match end {
            End::Succeeded => account.succeeded += 1,
            End::Failed => account.failed += 1,
        }
        drop(account);
        let micros = at.saturating_duration_since(intended).as_micros();
        self.round_trips
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// From now on each end is kept: [`Ledger::traced`].
    pub fn trace(&self) {
        self.account().trace.get_or_insert_default();
    }

    /// The ends since [`Ledger::trace`], in the order in which they were heard of.
    pub fn traced(&self) -> Vec<Traced> {
        self.account().trace.clone().unwrap_or_default()
    }

    /// A simulated hypervisor has had an effect; returns how often this operation now has.
    pub fn effect(&self, operation: OperationId) -> u32 {
        let mut account = self.account();
        let count = account.effects.entry(operation).or_default();
        *count += 1;
        *count
    }

    /// Whether the hypervisor has had this effect.
    pub fn has_effect(&self, operation: OperationId) -> bool {
        self.account().effects.contains_key(&operation)
    }

    /// Accepted processes that have not ended yet.
    pub fn open(&self) -> Vec<ProcessId> {
        let mut open: Vec<_> = self.account().open.keys().copied().collect();
        open.sort_unstable();
        open
    }

    /// Every process that the API accepted, and how it ended.
    pub fn accepted_all(&self) -> HashMap<ProcessId, Option<End>> {
        let account = self.account();
        let open = account.open.keys().map(|process| (*process, None));
        let ended = account.ended.iter();
        open.chain(ended.map(|(process, end)| (*process, Some(*end))))
            .collect()
    }

    /// Processes that ended otherwise than well.
    pub fn failed(&self) -> Vec<ProcessId> {
        let account = self.account();
        let failed = account.ended.iter().filter(|(_, end)| **end == End::Failed);
        let mut failed: Vec<_> = failed.map(|(process, _)| *process).collect();
        failed.sort_unstable();
        failed
    }

    /// Accepted processes that have not ended yet, counted.
    pub fn open_count(&self) -> usize {
        self.account().open.len()
    }

    /// The sums that cost nothing to know: without what is lost, double or had an effect.
    pub fn totals_quick(&self) -> Totals {
        let account = self.account();
        Totals {
            attempted: account.attempted,
            submitted: account.accepted,
            succeeded: account.succeeded,
            failed: account.failed,
            ..Totals::default()
        }
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        let account = self.account();
        let without_effect = account
            .ended
            .iter()
            .filter(|(process, end)| {
                **end == End::Succeeded
                    && !account
                        .effects
                        .contains_key(&OperationId::new(**process, 0))
            })
            .count();
        Totals {
            attempted: account.attempted,
            submitted: account.accepted,
            succeeded: account.succeeded,
            failed: account.failed,
            lost: (account.open.len() + without_effect) as u64,
            duplicate_effects: account
                .effects
                .values()
                .map(|n| u64::from(n.saturating_sub(1)))
                .sum(),
            effects: account.effects.len() as u64,
        }
    }

    /// The round trips so far, in microseconds.
    pub fn round_trips(&self) -> Histogram<u64> {
        self.round_trips
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn process(n: u128) -> ProcessId {
        ProcessId(Uuid::from_u128(n))
    }

    #[test]
    fn a_succeeded_process_without_an_effect_is_lost() {
        let ledger = Ledger::default();
        let now = crate::clock::now();
        ledger.accepted(process(1), now);
        ledger.ended(process(1), End::Succeeded, now);
        assert_eq!(ledger.totals().lost, 1);
        ledger.effect(OperationId::new(process(1), 0));
        assert_eq!(ledger.totals().lost, 0);
    }

    #[test]
    fn a_second_effect_is_a_duplicate_and_an_open_process_is_lost() {
        let ledger = Ledger::default();
        ledger.accepted(process(1), crate::clock::now());
        assert_eq!(ledger.effect(OperationId::new(process(1), 0)), 1);
        assert_eq!(ledger.effect(OperationId::new(process(1), 0)), 2);
        let totals = ledger.totals();
        assert_eq!((totals.lost, totals.duplicate_effects), (1, 1));
    }

    #[test]
    fn an_end_that_overtakes_the_acceptance_is_kept() {
        let ledger = Ledger::default();
        let now = crate::clock::now();
        ledger.ended(process(1), End::Failed, now);
        ledger.accepted(process(1), now);
        ledger.ended(process(1), End::Failed, now);
        let totals = ledger.totals();
        assert_eq!((totals.submitted, totals.failed, totals.lost), (1, 1, 0));
        assert_eq!(ledger.round_trips().len(), 1);
    }

    #[test]
    fn ends_are_kept_once_that_was_asked_for() {
        let ledger = Ledger::default();
        let due = crate::clock::now();
        let ended = due + Duration::from_secs(1);
        for n in [1, 2] {
            ledger.accepted(process(n), due);
            ledger.ended(process(n), End::Succeeded, ended);
            ledger.trace();
        }
        assert_eq!(ledger.traced(), [Traced { due, ended }]);
    }
}
