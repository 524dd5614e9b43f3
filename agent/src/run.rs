//! The real agent: one identity, one journal, one socket, until it is told to stop.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::SOFTWARE;
use crate::config::AgentConfig;
use crate::daemon::{Agent, AgentError, AgentParts, Unobserved};
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
        observer: Arc::new(Unobserved),
        stop_grace: config.stop_grace,
    })?;
    let result = Box::pin(agent.run(shutdown)).await;
    // The goodbye is on its way; give it the time it needs.
    endpoint.wait_idle().await;
    Ok(result?)
}

fn drivers(config: &AgentConfig) -> std::io::Result<Drivers> {
    let drivers = Drivers::new().with("exec", ExecDriver::new(config.programs.clone()));
    if !config.simulated {
        return Ok(drivers);
    }
    let effects = DirectoryEffects::new(&config.state_dir.join(EFFECTS_DIR))?;
    Ok(drivers.with("simulated", SimulatedDriver::new(Arc::new(effects))))
}
