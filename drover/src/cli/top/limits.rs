//! Limits and who waits under them: those that operators have set, and those of the agents at which
//! most waits. They are asked for while their page is shown; the overview does not carry them.

use std::cmp::Reverse;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::watch::Update;
use crate::cli::client::Client;
use crate::cli::print::harmless;
use crate::fault::Fault;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Limits that operators have set, and agents, that one look reads.
const READ_MAX: usize = 200;
/// Agents whose limits are asked for: those with the most that waits.
const AGENTS_SHOWN: usize = 12;

/// What the page shows. A server of another version may say more, or less.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Limits {
    /// Of the agents at which most waits, the fullest queue first.
    pub(super) agents: Vec<Limit>,
    /// What operators have set.
    pub(super) set: Vec<Limit>,
    /// Why it cannot be shown.
    pub(super) trouble: Option<String>,
}

/// A limit.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct Limit {
    pub(super) scope: String,
    pub(super) key: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) live: Option<Live>,
}

/// A limit at this moment.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct Live {
    pub(super) limit: u32,
    #[serde(default)]
    pub(super) in_use: u32,
    #[serde(default)]
    pub(super) waiting: Option<u32>,
    #[serde(default)]
    pub(super) decision: Option<Decision>,
    #[serde(default)]
    pub(super) lines: Vec<Waiting>,
}

/// The last change of an agent's limit.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct Decision {
    #[serde(default)]
    pub(super) text: String,
    pub(super) from: f64,
    pub(super) to: f64,
}

/// Processes that wait for the same permits.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct Waiting {
    pub(super) class: String,
    pub(super) tenant: String,
    pub(super) kind: String,
    pub(super) waiting: u32,
    #[serde(default)]
    pub(super) parked: Option<Parked>,
}

/// The limit that has no room for them.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(super) struct Parked {
    pub(super) scope: String,
    pub(super) key: String,
    pub(super) limit: u32,
    pub(super) in_use: u32,
}

#[derive(Deserialize)]
struct Agent {
    id: String,
    ready: u64,
    in_use: u64,
}

impl Limits {
    /// As it was read, with nothing in it that could steer a terminal.
    pub(super) fn harmless(mut self) -> Self {
        for limit in self.agents.iter_mut().chain(&mut self.set) {
            clean(limit);
        }
        self.trouble = self.trouble.map(|why| harmless(&why));
        self
    }
}

fn clean(limit: &mut Limit) {
    let mut texts = vec![&mut limit.scope, &mut limit.key, &mut limit.name];
    if let Some(live) = &mut limit.live {
        texts.extend(live.decision.iter_mut().map(|last| &mut last.text));
        for line in &mut live.lines {
            texts.extend([&mut line.class, &mut line.tenant, &mut line.kind]);
            if let Some(parked) = &mut line.parked {
                texts.extend([&mut parked.scope, &mut parked.key]);
            }
        }
    }
    for text in texts {
        *text = harmless(text);
    }
}

/// Passes on what a look shows while `shown` says so, until nobody wants it.
pub(super) async fn pass_on(
    client: Client,
    mut shown: watch::Receiver<bool>,
    to: mpsc::Sender<Result<Update, Fault>>,
) {
    while shown.wait_for(|shown| *shown).await.is_ok() {
        let limits = look(&client).await.unwrap_or_else(|fault| Limits {
            trouble: Some(fault.what),
            ..Limits::default()
        });
        let update = Update::Limits(Box::new(limits.harmless()));
        if to.send(Ok(update)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(client: &Client) -> Result<Limits, Fault> {
    let set = client.list(&["v1", "limits"], &[], READ_MAX).await?;
    let connected = [("state", "connected".to_owned())];
    let mut agents: Vec<Agent> = client.list(&["v1", "agents"], &connected, READ_MAX).await?;
    agents.retain(|agent| agent.ready > 0 || agent.in_use > 0);
    agents.sort_by_key(|agent| Reverse((agent.ready, agent.in_use)));
    let mut limits = Vec::new();
    for agent in agents.into_iter().take(AGENTS_SHOWN) {
        let path = ["v1", "limits", "agent", &agent.id];
        limits.push(client.get(&path, &[]).await?);
    }
    Ok(Limits {
        agents: limits,
        set,
        trouble: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_server_adds_is_not_in_the_way_and_nothing_steers_the_terminal() {
        let text = r#"{"scope": "agent", "key": "k", "name": "h\u001b[2J", "min": null, "new": [1],
            "live": {"limit": 6, "in_use": 5, "waiting": 41, "lines": [
                {"class": "normal", "tenant": "ac\u0007me", "kind": "exec", "work": "", "waiting": 41,
                 "parked": {"scope": "group", "key": "g\u0000", "limit": 64, "in_use": 64, "before": 3}}]}}"#;
        let limits = Limits {
            agents: vec![serde_json::from_str(text).unwrap()],
            set: vec![
                serde_json::from_str(r#"{"scope": "tenant", "key": "t", "live": null}"#).unwrap(),
            ],
            trouble: Some("no\u{1b}".to_owned()),
        };
        let shown = format!("{:?}", limits.harmless());
        for harmful in ["\\u{1b}", "\\u{7}", "\\0"] {
            assert!(!shown.contains(harmful), "{shown}");
        }
        assert!(shown.contains("waiting: Some(41)"), "{shown}");
    }
}
