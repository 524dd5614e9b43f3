//! `drover agents …`

use clap::Subcommand;
use control::api::model::access::{CreatedToken, Rekey};
use control::api::model::agents::Agent;

use super::client::Client;
use super::{Output, print, resolve};
use crate::config::value;
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List agents
    List {
        /// Only this group (name or id)
        #[arg(long)]
        group: Option<String>,
        /// Only these: connected, disconnected or revoked
        #[arg(long)]
        state: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show one agent
    Show {
        /// Id, its beginning, or hostname
        agent: String,
    },
    /// Lock an agent out: its session closes now and its key is worth nothing any more
    Revoke {
        /// Id, its beginning, or hostname
        agent: String,
    },
    /// Make a token with which the agent gets a new key and certificate under its old id
    Rekey {
        /// Id, its beginning, or hostname
        agent: String,
        /// How long the token can be used: 15m, 24h
        #[arg(long, value_name = "TIME", value_parser = value::seconds)]
        ttl: Option<std::time::Duration>,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List {
            group,
            state,
            limit,
        } => {
            let mut query = Vec::new();
            query.extend(group.map(|group| ("group", group)));
            query.extend(state.map(|state| ("state", state)));
            let agents: Vec<Agent> = client.list(&["v1", "agents"], &query, limit).await?;
            print::value(output, &agents, |agents| list(agents, !query.is_empty()))
        }
        Command::Show { agent } => {
            let id = resolve::agent(client, &agent).await?.to_string();
            let agent: Agent = client.get(&["v1", "agents", &id], &[]).await?;
            print::value(output, &agent, show)
        }
        Command::Revoke { agent } => {
            let id = resolve::agent(client, &agent).await?.to_string();
            let agent: Agent = client
                .post(
                    &["v1", "agents", &id, "revoke"],
                    &serde_json::json!({}),
                    &super::fresh_key(),
                )
                .await?;
            print::value(output, &agent, |agent| {
                format!(
                    "{} ({}) is revoked; its session is being closed\n",
                    agent.id, agent.hostname
                )
            })
        }
        Command::Rekey { agent, ttl } => {
            let id = resolve::agent(client, &agent).await?.to_string();
            let request = Rekey {
                ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
            };
            let token: CreatedToken = client
                .post(
                    &["v1", "agents", &id, "rekey"],
                    &request,
                    &super::fresh_key(),
                )
                .await?;
            print::value(output, &token, |token| {
                format!(
                    "{}\n\nOn the host, before {}:\n  drover agent join --server HOST:PORT --token {}\n",
                    token.token, token.info.expires_at, token.token
                )
            })
        }
    }
}

/// `narrowed`: only some were asked for.
fn list(agents: &[Agent], narrowed: bool) -> String {
    print::table(
        ["ID", "HOSTNAME", "STATE", "GROUP", "IN USE", "DRIVERS"],
        agents.iter().map(|agent| {
            [
                agent.id.to_string(),
                agent.hostname.clone(),
                print::word(&agent.state),
                agent.group.name.clone(),
                format!("{}/{}", agent.in_use, agent.capacity),
                agent.kinds.join(","),
            ]
        }),
        match narrowed {
            true => "no agent fits these filters",
            false => "no agents; let one in with `drover tokens create`",
        },
    )
}

fn show(agent: &Agent) -> String {
    let labels: Vec<String> = agent
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    print::facts(&[
        ("id", Some(agent.id.to_string())),
        ("hostname", Some(agent.hostname.clone())),
        ("state", Some(print::word(&agent.state))),
        ("since", agent.since.map(|at| at.to_string())),
        (
            "group",
            Some(format!("{} ({})", agent.group.name, agent.group.id)),
        ),
        (
            "in use",
            Some(format!("{} of {}", agent.in_use, agent.capacity)),
        ),
        (
            "limit",
            agent
                .live
                .as_ref()
                .map(|live| format!("{} (drover limits get agent {})", live.limit, agent.id)),
        ),
        ("drivers", Some(agent.kinds.join(", "))),
        (
            "labels",
            Some(labels.join(", ")).filter(|text| !text.is_empty()),
        ),
        ("software", Some(agent.software.clone())),
        ("last seen", agent.last_seen_at.map(|at| at.to_string())),
        ("enrolled", Some(agent.created_at.to_string())),
        (
            "keys",
            Some(agent.keys.join(", ")).filter(|text| !text.is_empty()),
        ),
    ])
}
