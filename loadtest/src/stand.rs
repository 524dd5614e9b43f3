//! A test stand: a deployment, a fleet that has joined it, and the account of what happens between the two.

pub(crate) mod deaths;

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::clock;
use crate::fleet::{Fleet, FleetSpec};
use crate::ledger::Ledger;
use crate::server::{Opened, Subject};
use crate::workload::{self, Workload};

/// The fleet must be up within this.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// All processes must have ended so long after the load has.
const SETTLE_WITHIN: Duration = Duration::from_secs(300);
/// An agent that is on its way from one agent server to another is asked again for so long.
const TELLS_WITHIN: Duration = Duration::from_secs(60);
/// Of each sort of failure.
const EXAMPLES: usize = 3;
/// Ends that the stream has not told are asked for this often.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Everything that runs but the work. The ends of processes are written into the ledger as the API tells them.
pub(crate) struct Stand {
    pub(crate) subject: Subject,
    pub(crate) api: Api,
    pub(crate) fleet: Fleet,
    pub(crate) ledger: Arc<Ledger>,
    watching: CancellationToken,
}

impl Stand {
    /// Of a deployment and a fleet that is not started yet.
    pub(crate) fn new(subject: Subject, api: Api, fleet: Fleet, ledger: Arc<Ledger>) -> Self {
        let watching = CancellationToken::new();
        let watch = workload::watch(api.clone(), Arc::clone(&ledger), watching.clone());
        tokio::spawn(watch);
        Self {
            subject,
            api,
            fleet,
            ledger,
            watching,
        }
    }

    /// Lets a fleet join a deployment; how long that took. `progress` hears how many have.
    ///
    /// # Errors
    /// As [`Fleet::enrol`].
    pub(crate) async fn join(
        opened: Opened,
        fleet: FleetSpec,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<(Self, Duration)> {
        let api = opened.client()?;
        let ledger = Arc::new(Ledger::default());
        let began = clock::now();
        let fleet = Fleet::enrol(fleet, &api, Arc::clone(&ledger), progress).await?;
        let took = clock::now().duration_since(began);
        Ok((Self::new(opened.subject, api, fleet, ledger), took))
    }

    /// Starts all agents, so many on a socket that dies with them; 0: none is to die.
    pub(crate) fn start_fleet(&self, apart: usize) {
        let agents = self.fleet.ids().len();
        match apart {
            0 => self.fleet.start(0..agents),
            apart => {
                for first in (0..agents).step_by(apart) {
                    self.fleet.start_apart(first..(first + apart).min(agents));
                }
            }
        }
    }

    /// Makes processes on all agents from now on; the texts are what the API refused for good.
    pub(crate) fn begin_work(&self, workload: Workload, seed: u64) -> JoinHandle<Vec<String>> {
        let (api, ledger) = (self.api.clone(), Arc::clone(&self.ledger));
        let agents = self.fleet.ids();
        tokio::spawn(async move { workload.run(api, ledger, agents, seed).await })
    }

    /// Waits until all agents have a session.
    ///
    /// # Errors
    /// When they have not within two minutes.
    pub(crate) async fn wait_up(&self) -> anyhow::Result<()> {
        let agents = self.fleet.ids().len();
        let since = clock::now();
        while self.fleet.up() < agents {
            ensure!(
                clock::now().duration_since(since) < UP_WITHIN,
                "only {} of {agents} sessions came up",
                self.fleet.up()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until every process that was accepted has ended; whether all have.
    pub(crate) async fn settle(&self) -> bool {
        let (since, mut asked) = (clock::now(), clock::now());
        while self.ledger.open_count() > 0 {
            let now = clock::now();
            if now.duration_since(since) > SETTLE_WITHIN {
                return false;
            }
            if now.duration_since(asked) > ASK_EVERY {
                asked = now;
                self.ask_for_ends().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// Asks the API about processes whose end the stream has not told.
    pub(crate) async fn ask_for_ends(&self) {
        for process in self.ledger.open() {
            if let Ok(Some(end)) = self.api.end_of(process).await {
                self.ledger.ended(process, end, clock::now());
            }
        }
    }

    /// A few of the processes that failed or did not end, as the API tells them.
    pub(crate) async fn examples(&self) -> Vec<serde_json::Value> {
        let (failed, open) = (self.ledger.failed(), self.ledger.open());
        let mut examples = Vec::new();
        for process in failed
            .iter()
            .take(EXAMPLES)
            .chain(open.iter().take(EXAMPLES))
        {
            examples.extend(self.api.process(*process).await);
        }
        examples
    }

    /// Operations that the server believes to be claimed or running; its figures are a second old.
    pub(crate) async fn active(&self) -> Option<u64> {
        let patience = clock::now() + Duration::from_secs(20);
        loop {
            // A server drops a claim that it does not hold with a beat, and says so with a tick.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let active = self.api.metric("drover_operations_active").await.ok()??;
            if active <= 0.0 || clock::now() >= patience {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count"
                )]
                return Some(active as u64);
            }
        }
    }

    /// Permits that gateways count although nothing runs, and of how many agents that is known.
    pub(crate) async fn leaked_permits(&self) -> (u64, usize) {
        let (mut leaked, mut known) = (0, 0);
        let until = clock::now() + TELLS_WITHIN;
        for agent in self.fleet.ids().iter() {
            let mut told = self.api.permits_of(*agent).await;
            while told.is_none() && clock::now() < until {
                tokio::time::sleep(Duration::from_millis(500)).await;
                told = self.api.permits_of(*agent).await;
            }
            if let Some(permits) = told {
                leaked += permits.iter().sum::<u64>();
                known += 1;
            }
        }
        (leaked, known)
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// When a process of the deployment does not end in order.
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        self.watching.cancel();
        self.fleet.stop().await;
        self.subject.stop().await
    }
}
