//! `drover pauses …`

use clap::{Subcommand, ValueEnum};
use control::api::model::pauses::{CreatePause, Pause, PauseScope};

use super::client::Client;
use super::{Output, print, resolve};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List what is paused, by whom and why
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Pause something: what runs goes on, nothing new of it is started
    Add {
        /// What is named
        scope: ScopeName,
        /// Which one: a process's id, an agent, a group, a tenant, a kind
        key: String,
        /// Why, for everybody whose work waits
        #[arg(long)]
        reason: String,
    },
    /// End a pause
    Remove {
        /// What is named
        scope: ScopeName,
        /// Which one
        key: String,
        /// Why, for the history
        #[arg(long)]
        reason: Option<String>,
    },
}

/// The scopes as words of the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ScopeName {
    /// One process
    Process,
    /// All of an agent
    Agent,
    /// All of a group's agents
    Group,
    /// All of a tenant
    Tenant,
    /// All of a kind
    Kind,
}

impl From<ScopeName> for PauseScope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Process => Self::Process,
            ScopeName::Agent => Self::Agent,
            ScopeName::Group => Self::Group,
            ScopeName::Tenant => Self::Tenant,
            ScopeName::Kind => Self::Kind,
        }
    }
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List { limit } => {
            let pauses: Vec<Pause> = client.list(&["v1", "pauses"], &[], limit).await?;
            print::value(output, &pauses, |pauses| list(pauses))
        }
        Command::Add { scope, key, reason } => add(client, output, scope, key, reason).await,
        Command::Remove { scope, key, reason } => remove(client, output, scope, key, reason).await,
    }
}

/// Pauses something, by the name that people have for it.
pub(super) async fn add(
    client: &Client,
    output: Output,
    scope: ScopeName,
    name: String,
    reason: String,
) -> Result<Exit, Fault> {
    let key = key_of(client, scope, name.clone()).await?;
    let request = CreatePause {
        scope: scope.into(),
        key,
        reason,
    };
    let key = super::fresh_key();
    let pause: Pause = client.post(&["v1", "pauses"], &request, &key).await?;
    print::value(output, &pause, |pause| {
        let mut text = format!("{} {name} is paused\n", print::word(&pause.scope));
        for warning in &pause.warnings {
            text.push_str(&format!("note: {}\n", print::harmless(warning)));
        }
        text
    })
}

/// Ends a pause of what people call by this name.
pub(super) async fn remove(
    client: &Client,
    output: Output,
    scope: ScopeName,
    name: String,
    reason: Option<String>,
) -> Result<Exit, Fault> {
    let key = key_of(client, scope, name.clone()).await?;
    let word = print::word(&PauseScope::from(scope));
    let query: Vec<_> = reason
        .map(|reason| ("reason", reason))
        .into_iter()
        .collect();
    client
        .delete_with(&["v1", "pauses", &word, &key], &query)
        .await?;
    let ended = serde_json::json!({ "scope": word, "key": key });
    print::value(output, &ended, |_| {
        format!("{word} {name} is no longer paused\n")
    })
}

/// Agents and groups may be named by the beginning of their ids as well, as everywhere.
async fn key_of(client: &Client, scope: ScopeName, key: String) -> Result<String, Fault> {
    Ok(match scope {
        ScopeName::Agent => resolve::agent(client, &key).await?.to_string(),
        ScopeName::Group => resolve::group(client, &key).await?.to_string(),
        ScopeName::Process | ScopeName::Tenant | ScopeName::Kind => key,
    })
}

fn list(pauses: &[Pause]) -> String {
    print::table(
        ["SCOPE", "KEY", "BY", "SINCE", "REASON"],
        pauses.iter().map(|pause| {
            [
                print::word(&pause.scope),
                pause.key.clone(),
                pause.by.clone(),
                pause.at.to_string(),
                pause.reason.clone(),
            ]
        }),
        "nothing is paused",
    )
}
