//! The real agent: one identity, one journal, one socket, until it is told to stop.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::agent::Welcome;
use protocol::ids::AgentId;
use tokio_util::sync::CancellationToken;

use crate::SOFTWARE;
use crate::config::AgentConfig;
use crate::daemon::{Agent, AgentError, AgentParts, Observer};
use crate::driver::simulated::DirectoryEffects;
use crate::driver::{Drivers, ExecDriver, SimulatedDriver};
use crate::identity::{Identity, IdentityError};
use crate::journal::{self, Journal};
use crate::session::Profile;
use crate::tls::{TlsError, Trust};
use crate::transport;

/// The journal's file in the state directory.
pub const JOURNAL_FILE: &str = "journal.log";
/// Where the `simulated` driver keeps its effects.
const EFFECTS_DIR: &str = "simulated";

/// The agent could not run, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] journal::OpenError),
    /// Its certificate or roots.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its socket.
    #[error("no UDP socket could be opened: {0}")]
    Socket(std::io::Error),
    /// The simulated driver's directory.
    #[error("the simulated driver has no place for its effects: {0}")]
    Effects(std::io::Error),
    /// It could not go on.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs the agent whose state directory the configuration names, until `shutdown`.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    let identity = Identity::load(&config.state_dir)?;
    let observer = Arc::new(Keeper::new(&config.state_dir)?);
    let journal = Journal::open(&config.state_dir.join(JOURNAL_FILE))?;
    let trust = Arc::new(Trust::new(&identity.roots)?);
    let endpoint = transport::endpoint().map_err(RunError::Socket)?;
    let drivers = drivers(&config).map_err(RunError::Effects)?;
    tracing::info!(agent = %identity.agent, kinds = ?drivers.kinds().collect::<Vec<_>>(),
        capacity = config.capacity, state_dir = %config.state_dir.display(), "agent starts");
    let agent = Agent::new(AgentParts {
        identity,
        trust,
        endpoint: endpoint.clone(),
        journal,
        drivers: Arc::new(drivers),
        profile: Arc::new(Profile {
            capacity: config.capacity,
            hostname: config.hostname,
            software: SOFTWARE.to_owned(),
            labels: config.labels.into_iter().collect(),
        }),
        servers: config.servers,
        observer,
        stop_grace: config.stop_grace,
    })?;
    let result = Box::pin(agent.run(shutdown)).await;
    // The goodbye is on its way; give it the time it needs.
    endpoint.wait_idle().await;
    Ok(result?)
}

/// Keeps the slot and the addresses that gateways tell, so that the next start goes straight there
/// even if the configured servers are gone.
struct Keeper {
    dir: PathBuf,
    known: Arc<Mutex<Identity>>,
}

impl Keeper {
    fn new(dir: &Path) -> Result<Self, IdentityError> {
        Ok(Self {
            dir: dir.to_owned(),
            known: Arc::new(Mutex::new(Identity::load(dir)?)),
        })
    }
}

impl Observer for Keeper {
    fn session_up(&self, agent: AgentId, welcome: &Welcome, _took: Duration) {
        let (slot, addresses) = (welcome.slot, welcome.addresses.clone());
        let (dir, known) = (self.dir.clone(), Arc::clone(&self.known));
        // Writes files: not on the agent's own task.
        tokio::task::spawn_blocking(move || {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let news = !addresses.is_empty() && addresses != known.addresses;
            if slot == known.slot && !news {
                return;
            }
            known.slot = slot;
            if news {
                known.addresses = addresses;
            }
            // A re-key may have replaced the file meanwhile: that one counts.
            let on_disk = Identity::load(&dir).map(|on_disk| on_disk.key == known.key);
            if on_disk.is_ok_and(|same| same)
                && let Err(error) = known.save(&dir)
            {
                tracing::warn!(%agent, %error, "could not keep the gateways' addresses");
            }
        });
    }
}

fn drivers(config: &AgentConfig) -> std::io::Result<Drivers> {
    let drivers = Drivers::new().with("exec", ExecDriver::new(config.programs.clone()));
    if !config.simulated {
        return Ok(drivers);
    }
    let effects = DirectoryEffects::new(&config.state_dir.join(EFFECTS_DIR))?;
    Ok(drivers.with("simulated", SimulatedDriver::new(Arc::new(effects))))
}
