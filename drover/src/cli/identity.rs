//! `drover identity`: what servers on other machines are given. It works on the data directory itself, whether
//! or not a server runs on it; no API is asked.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use control::identity::Identity;

use super::{Global, print};
use crate::data_dir::{self, IDENTITY};
use crate::fault::{Exit, Fault, chain};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make the identity of an agent server on another machine: a folder to move into its data directory
    AgentServer {
        /// The folder to make; it must not be there yet
        dir: PathBuf,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Result<Exit, Fault> {
    let Command::AgentServer { dir } = command;
    let data = data_dir::path(global.data_dir.as_deref());
    let identity = make(&data, &dir)?;
    let made = serde_json::json!({ "dir": dir, "domain": identity.domain() });
    print::value(global.output, &made, |_| {
        format!(
            "{dir} is the identity of an agent server of {domain}. It holds a private key: move it, leave no copy.\n\
             \n\
             On the agent server's machine it belongs into the data directory, as {IDENTITY}:\n\
             \n\
             \x20 drover serve --profile agent-server --data-dir DATA    # DATA/{IDENTITY} is this folder\n",
            dir = dir.display(),
            domain = identity.domain(),
        )
    })
}

fn make(data: &Path, dir: &Path) -> Result<Identity, Fault> {
    let identity = Identity::open(&data.join(IDENTITY));
    let identity = identity.map_err(|error| Fault::new(chain(&error)))?;
    identity
        .make_agent_server(dir)
        .map_err(|error| Fault::new(chain(&error)))?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use control::identity::AgentServerIdentity;

    use super::*;

    #[test]
    fn what_is_made_is_what_an_agent_server_loads() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("elsewhere");
        let fault = make(data.path(), &dir).unwrap_err();
        assert!(
            fault.what.contains("first start of `drover serve`"),
            "{fault}"
        );
        assert!(!dir.exists());
        Identity::open_or_create(&data.path().join(IDENTITY), "cloud.example").unwrap();
        make(data.path(), &dir).unwrap();
        AgentServerIdentity::load(&dir, "cloud.example").unwrap();
        assert!(make(data.path(), &dir).is_err(), "it is there already");
    }
}
