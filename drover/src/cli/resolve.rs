//! Which agent or group is meant: a uuid, the beginning of an agent's, or a name.

use control::api::model::agents::{Agent, Group};
use uuid::Uuid;

use super::client::Client;
use crate::fault::{Exit, Fault};

/// The shortest beginning of an id that is taken for one.
const PREFIX_CHARS_MIN: usize = 4;
/// More agents than this are not searched through for a name.
const AGENTS_MAX: usize = 200_000;
/// More groups than this are neither listed nor searched through for a name.
pub(super) const GROUPS_MAX: usize = 10_000;

/// The id of the agent that `text` means.
pub(crate) async fn agent(client: &Client, text: &str) -> Result<Uuid, Fault> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let agents: Vec<Agent> = client.list(&["v1", "agents"], &[], AGENTS_MAX).await?;
    choose(text, &agents)
}

/// The id of the group that `text` means.
pub(crate) async fn group(client: &Client, text: &str) -> Result<Uuid, Fault> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let groups: Vec<Group> = client.list(&["v1", "groups"], &[], GROUPS_MAX).await?;
    let named = groups.iter().find(|group| group.name == text);
    named.map(|group| group.id).ok_or_else(|| {
        Fault::new(format_args!("there is no group `{text}`"))
            .advise("`drover groups list` shows every group; give its name or id")
            .exit(Exit::NotFound)
    })
}

/// A hostname goes before the beginning of an id. An agent that was revoked is meant only by id: its
/// hostname means the agent that the machine has become, or else nothing at all.
fn choose(text: &str, agents: &[Agent]) -> Result<Uuid, Fault> {
    use control::api::model::agents::AgentState::Revoked;
    let (gone, mut found): (Vec<&Agent>, Vec<&Agent>) = agents
        .iter()
        .filter(|agent| agent.hostname == text)
        .partition(|agent| agent.state == Revoked);
    if found.is_empty()
        && let Some(agent) = gone.last()
    {
        return Err(revoked(agent));
    }
    if found.is_empty() && text.len() >= PREFIX_CHARS_MIN {
        let prefix = text.to_ascii_lowercase();
        found = agents
            .iter()
            .filter(|agent| agent.id.to_string().starts_with(&prefix))
            .collect();
    }
    match found.as_slice() {
        [agent] => Ok(agent.id),
        [] => Err(Fault::new(format_args!("there is no agent `{text}`"))
            .advise(
                "`drover agents list` shows every agent; give an id, its beginning, or a hostname",
            )
            .exit(Exit::NotFound)),
        several => {
            let ids: Vec<String> = several
                .iter()
                .take(3)
                .map(|agent| agent.id.to_string())
                .collect();
            Err(Fault::new(format_args!(
                "`{text}` means {} agents: {}{}",
                several.len(),
                ids.join(", "),
                if several.len() > ids.len() {
                    ", …"
                } else {
                    ""
                }
            ))
            .advise("give more of the id")
            .exit(Exit::NotFound))
        }
    }
}

fn revoked(agent: &Agent) -> Fault {
    Fault::new(format_args!(
        "the agent `{}` was revoked and takes no work (its id: {})",
        agent.hostname, agent.id
    ))
    .advise(
        "let its machine join as a new agent: `drover tokens create` here, `drover agent join --force` \
         there; `drover agents show ID` still shows the old one",
    )
    .exit(Exit::NotFound)
}

#[cfg(test)]
mod tests {
    use control::api::model::Timestamp;
    use control::api::model::agents::{AgentState, GroupRef};

    use super::*;

    fn agent(id: u128, hostname: &str, state: AgentState) -> Agent {
        Agent {
            id: Uuid::from_u128(id),
            hostname: hostname.to_owned(),
            group: GroupRef {
                id: Uuid::nil(),
                name: "auto-0".to_owned(),
            },
            state,
            since: None,
            capacity: 4,
            in_use: 0,
            kinds: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            software: String::new(),
            last_seen_at: None,
            created_at: Timestamp(0),
            keys: Vec::new(),
            session: None,
            ready: 0,
            live: None,
        }
    }

    #[test]
    fn a_hostname_or_the_beginning_of_an_id_is_enough() {
        let agents = [
            agent(0x0190_b6b8 << 96, "hv-1", AgentState::Connected),
            agent(0x0290_b6b8 << 96, "hv-2", AgentState::Disconnected),
        ];
        assert_eq!(choose("hv-2", &agents), Ok(agents[1].id));
        assert_eq!(choose("0190", &agents), Ok(agents[0].id));
        assert_eq!(choose("0190B", &agents), Ok(agents[0].id));
        assert_eq!(choose("019", &agents).unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn a_name_that_means_several_agents_is_refused_with_their_ids() {
        let agents = [
            agent(1, "hv", AgentState::Connected),
            agent(2, "hv", AgentState::Connected),
        ];
        let fault = choose("hv", &agents).unwrap_err();
        assert!(fault.what.contains(&agents[1].id.to_string()), "{fault:?}");
    }

    #[test]
    fn the_hostname_of_a_revoked_agent_says_that_it_was_revoked() {
        let agents = [
            agent(1, "beef", AgentState::Revoked),
            agent(0xbeef << 112, "hv", AgentState::Connected),
        ];
        let fault = choose("beef", &agents).unwrap_err();
        assert!(fault.what.contains("was revoked"), "{fault:?}");
        assert!(fault.advice.unwrap().contains("agent join --force"));
        assert_eq!(choose("beef0", &agents), Ok(agents[1].id));
        assert_eq!(choose(&agents[0].id.to_string(), &agents), Ok(agents[0].id));
    }

    #[test]
    fn an_agent_that_rejoined_under_its_old_hostname_is_found() {
        let agents = [
            agent(1, "hv", AgentState::Revoked),
            agent(2, "hv", AgentState::Connected),
        ];
        assert_eq!(choose("hv", &agents), Ok(agents[1].id));
    }
}
