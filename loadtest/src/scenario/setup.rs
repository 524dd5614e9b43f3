//! What every scenario is told, and the way from there to a stand, its work and a folder of results.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinHandle;

use super::site::Services;
use super::{PROCESS_DEADLINE, Site};
use crate::fleet::FleetSpec;
use crate::report::{self, Raw};
use crate::server::{Opened, ServerSpec, Usage};
use crate::stand::Stand;
use crate::workload::Workload;

/// On what a scenario runs, whatever happens there.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The shape of the deployment; of one that grows: what it becomes.
    pub site: Site,
    /// Agents.
    pub agents: usize,
    /// Service time of each operation, milliseconds.
    pub service_ms: u64,
    /// Of the workload's choices.
    pub seed: u64,
    /// How to start the processes.
    pub server: ServerSpec,
    /// Journals go here.
    pub work_dir: PathBuf,
    /// Write a dated folder under this one.
    pub results: Option<PathBuf>,
}

impl Setup {
    /// Starts the processes of the site, on these services.
    ///
    /// # Errors
    /// When no database can be made, or a process does not start.
    pub(super) async fn open(&self, services: &Services) -> anyhow::Result<Opened> {
        let target = self.site.target(services, self.server.clone()).await?;
        target.open().await
    }

    /// Lets the fleet join a deployment and waits until all have a session; how long the joining took. So many agents
    /// share a socket that dies with them; 0: none is to die. Sessions may be lost until somebody says otherwise.
    ///
    /// # Errors
    /// When agents cannot join, or have no session within two minutes.
    pub(super) async fn people(
        &self,
        opened: Opened,
        together: usize,
    ) -> anyhow::Result<(Stand, Duration)> {
        let fleet = FleetSpec {
            agents: self.agents,
            server: opened.agents.clone(),
            work_dir: self.work_dir.clone(),
            steering_hint: true,
        };
        let (stand, took) = Stand::join(opened, fleet, |_| ()).await?;
        stand.fleet.expect_losses(true);
        stand.start_fleet(together);
        stand.wait_up().await?;
        Ok((stand, took))
    }

    /// Makes so many processes a second from now on, for so long; what the API refused for good.
    pub(super) fn work(
        &self,
        stand: &Stand,
        rate: f64,
        duration: Duration,
    ) -> JoinHandle<Vec<String>> {
        let workload = Workload {
            rate,
            duration,
            service_ms: self.service_ms,
            deadline: PROCESS_DEADLINE,
        };
        stand.begin_work(workload, self.seed)
    }

    /// Writes what was found into a dated folder, if one is wanted, and beside it the raw material of the stand: with
    /// the server's usage each second, and how long it was, in seconds.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(
        &self,
        what: &str,
        found: &impl Serialize,
        (stand, samples, seconds): (&Stand, &[(f64, Usage)], f64),
    ) -> anyhow::Result<()> {
        let Some(results) = &self.results else {
            return Ok(());
        };
        let raw = Raw {
            round_trips: &stand.ledger.round_trips(),
            connects: &stand.fleet.connect_times(),
            reconnects: &stand.fleet.reconnect_times(),
            samples,
            duration: Duration::from_secs_f64(seconds),
        };
        let name = format!("{what}-{}", self.site.name());
        let folder = report::write_folder(results, &name, found, &raw)?;
        println!("written: {}", folder.display());
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn setup(site: Site) -> Setup {
        Setup {
            site,
            agents: 500,
            service_ms: 1000,
            seed: 1,
            server: ServerSpec {
                binary: "drover".into(),
                data_dir: "work/server".into(),
                arguments: Vec::new(),
                log: "work/server.log".into(),
            },
            work_dir: "work".into(),
            results: None,
        }
    }
}
