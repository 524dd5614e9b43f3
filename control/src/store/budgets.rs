//! The retry budgets of a store: one set for all process servers on it, beside the tally, so that more servers
//! do not try again more. The embedded store has one process, so that all its writes pass here. On a server's store each process
//! has a set of its own, and that is not several budgets: retries come due in the sweep alone, which one process server
//! of all has the duty to do, and so one set pays for all of them. It does not hear of what succeeds in other
//! processes: retries may be fewer than a tenth, not more. When the duty goes to another process, its buckets are full.
//!
//! A retry is paid for in the very transaction in which its time has come: there is no moment in which another
//! server could find it ready before its budget was asked. What was paid in a transaction that was then not
//! committed is lost; rest gives it back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::ids::AgentId;

use super::processes::Applied;
use crate::clock::UnixMs;
use crate::process::State;
use crate::process::budget::Budgets;

/// The buckets, as several hold them.
#[derive(Clone, Default, Debug)]
pub(crate) struct RetryBudgets(Arc<Mutex<Budgets>>);

impl RetryBudgets {
    fn lock(&self) -> MutexGuard<'_, Budgets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Budgets::try_retry`].
    pub(super) fn try_retry(&self, now: UnixMs, agent: AgentId, kind: &Arc<str>) -> bool {
        self.lock().try_retry(now, agent, kind)
    }

    /// Takes what a commit has done: what has succeeded pays for retries.
    pub(super) fn take(&self, applied: &Applied) {
        let succeeded = applied.steps.iter().filter_map(|effect| {
            let now = effect.now.filter(|now| now.state == State::Succeeded)?;
            effect.before.filter(|before| before.is_active())?;
            Some((now.target, &effect.names.as_ref()?.kind))
        });
        let mut budgets = None;
        for (agent, kind) in succeeded {
            let budgets = budgets.get_or_insert_with(|| self.lock());
            budgets.succeeded(agent, kind);
        }
    }
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use std::time::Duration;

    use protocol::ids::{Fence, ProcessId};
    use protocol::operation::{Outcome, OutcomeStatus};
    use uuid::Uuid;

    use super::*;
    use crate::process::Input;
    use crate::process::budget::CAP;
    use crate::store::Store;
    use crate::store::processes::{Batch, Creation, Happened, NewProcess};

    const AGENT: AgentId = AgentId(Uuid::from_u128(7));

    async fn make(store: &Store, count: usize) -> Vec<ProcessId> {
        let new = NewProcess {
            max_attempts: 20,
            ..NewProcess::of_driver(AGENT, "exec", "{}", UnixMs(100_000_000))
        };
        let batch = Batch {
            at: UnixMs(1),
            seed: rand::random(),
            creates: vec![new; count],
            ..Batch::default()
        };
        let made = store.apply(batch).await.unwrap().creations;
        let ids = made.into_iter().map(|creation| match creation {
            Creation::Created(record) => record.id,
            other => panic!("{other:?}"),
        });
        ids.collect()
    }

    /// What a process server writes.
    async fn writes(
        store: &Store,
        server: u128,
        at: u64,
        inputs: Vec<Happened>,
        sweep: u32,
    ) -> Applied {
        let batch = Batch {
            at: UnixMs(at),
            seed: at,
            worker: Some(Uuid::from_u128(server)),
            inputs,
            sweep,
            ..Batch::default()
        };
        store.apply(batch).await.unwrap()
    }

    fn ended(id: ProcessId, fence: u64, status: OutcomeStatus) -> Happened {
        let outcome = Outcome {
            status,
            exit_code: None,
            message: String::new(),
            output: bytes::Bytes::new(),
            service_time: Duration::ZERO,
        };
        Happened::new(id, Input::Finished(Fence(fence), outcome))
    }

    async fn attempt(
        store: &Store,
        server: u128,
        at: u64,
        ids: &[ProcessId],
        status: OutcomeStatus,
    ) {
        let claims = ids.iter().map(|id| Happened::new(*id, Input::Claim));
        writes(store, server, at, claims.collect(), 0).await;
        let ends = ids.iter().map(|id| ended(*id, 1, status));
        writes(store, server, at, ends.collect(), 0).await;
    }

    /// Looks at what is due: how many may be tried again, and how many are to wait for their budget.
    async fn look(store: &Store, server: u128, at: u64) -> (usize, usize) {
        let steps = writes(store, server, at, Vec::new(), 100).await.steps;
        let ready = steps
            .iter()
            .filter(|effect| effect.now.is_some_and(|now| now.state == State::Ready));
        (
            ready.count(),
            steps.iter().filter(|effect| effect.deferred).count(),
        )
    }

    #[tokio::test]
    async fn retries_of_all_servers_are_paid_from_one_budget_and_first_starts_from_none() {
        const CAP_ALL: usize = CAP as usize;
        let (_directory, store) = crate::store::tests::fresh().await;
        let (mut retried, mut waiting) = (0, 0);
        for server in 1..=4 {
            let ids = make(&store, 6).await;
            attempt(&store, server, 2, &ids, OutcomeStatus::FailedTransient).await;
            let (ready, deferred) = look(&store, server, 5000).await;
            retried += ready;
            waiting += deferred;
        }
        assert_eq!((retried, waiting), (CAP_ALL, 4 * 6 - CAP_ALL));
        // Ten successes pay for one, whoever hears of them: no first start costs anything.
        for server in [1, 2] {
            let ids = make(&store, 5).await;
            attempt(&store, server, 5000, &ids, OutcomeStatus::Succeeded).await;
        }
        let (ready, deferred) = look(&store, 3, 30_000).await;
        assert_eq!((ready, deferred), (1, waiting - 1));
        // Why it waits is in the history of each once, however often it is deferred.
        let waits = store.events_after(0, None, 1000).await.unwrap();
        let waits = waits.iter().filter(|event| {
            event.data["note"] == "too many attempts of its kind fail at its agent: it waits"
        });
        assert_eq!(waits.count(), waiting);
    }

    crate::store::tests::conformance::suite! {
        retries_of_all_servers_are_paid_from_one_budget_and_first_starts_from_none,
    }
}
