//! Whether an agent has the drivers that a process needs: asked before the process is made, because
//! afterwards it could only fail.
//!
//! ```text
//!   known lately to have them ─▶ it is made: no look, on the path of every process
//!   else what its session says, or its row where it has none
//!         ├▶ nothing: it was never here ─▶ it is made
//!         └▶ made, or refused
//! ```
//!
//! What is remembered is only what agents have, so an agent that has got a driver is never refused for
//! what it was. One that has lost a driver may still be given a process for [`MEMORY`]; that one fails at
//! the agent, as it would if the agent lost it a moment later.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::ids::AgentId;

use super::Api;
use super::problem::{ApiError, ApiResult, Kind};
use crate::clock;
use crate::store::processes::NewProcess;

/// How long it is believed that an agent has what it had.
const MEMORY: Duration = Duration::from_secs(60);
/// Agents that are remembered; when there are more, all are looked at anew.
const AGENTS_MAX: usize = 131_072;
/// Drivers that a refusal names.
const NAMED_MAX: usize = 8;

/// What agents had when they were last looked at.
#[derive(Default)]
pub(super) struct Drivers(Mutex<Known>);

#[derive(Default)]
struct Known {
    agents: HashMap<AgentId, (Instant, Arc<[String]>)>,
    /// The list that was noted last: agents of one fleet mostly share it.
    last: Arc<[String]>,
}

impl Drivers {
    /// Whether the agent had all of `needed` within the last [`MEMORY`].
    fn had(&self, agent: AgentId, needed: &BTreeSet<&str>, now: Instant) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.agents.get(&agent).is_some_and(|(at, kinds)| {
            now.saturating_duration_since(*at) < MEMORY && lacking(kinds, needed).is_empty()
        })
    }

    fn note(&self, agent: AgentId, kinds: &[String], now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *known.last != *kinds {
            known.last = kinds.into();
        }
        if known.agents.len() >= AGENTS_MAX {
            known.agents.clear();
        }
        let kinds = Arc::clone(&known.last);
        known.agents.insert(agent, (now, kinds));
    }
}

/// What agents said, as far as it was looked up for one request: a batch for one agent looks once. Nothing: no
/// such agent, or it has never said which drivers it has.
pub(super) type Said = HashMap<AgentId, Option<Announced>>;

/// Which drivers an agent has, by its own word.
pub(super) struct Announced {
    hostname: String,
    kinds: Vec<String>,
}

/// Refuses a process whose agent has said which drivers it has, and lacks one that the process needs. `at` is
/// prefixed to the name of the field. A repeated request is not refused: its process is there already.
pub(super) async fn check(
    api: &Api,
    process: &NewProcess,
    said: &mut Said,
    at: &str,
) -> ApiResult<()> {
    let needed = needed(process);
    if api.drivers.had(process.agent, &needed, clock::monotonic()) {
        return Ok(());
    }
    let announced = match said.entry(process.agent) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => place.insert(look(api, process.agent).await?),
    };
    let Some(Announced { hostname, kinds }) = announced else {
        return Ok(());
    };
    let lacking = lacking(kinds, &needed);
    if lacking.is_empty() {
        return Ok(());
    }
    if let Some(key) = &process.idempotency
        && api.store.knows_key(key, clock::now()).await?
    {
        return Ok(());
    }
    Err(ApiError::in_field(
        Kind::Unprocessable,
        &format!("{at}kind"),
        refusal(process, hostname, &lacking, kinds),
    ))
}

/// What an agent says now or said last. Whether there is such an agent is decided where the process is made.
async fn look(api: &Api, agent: AgentId) -> ApiResult<Option<Announced>> {
    let Some(row) = api.store.agent(agent).await? else {
        return Ok(None);
    };
    // The row may be older than the session.
    let view = api.engine.agents(vec![agent]).await?.pop();
    let session = view.and_then(|view| view.session);
    let kinds = session.map_or(row.kinds, |session| session.kinds);
    if kinds.is_empty() {
        return Ok(None);
    }
    api.drivers.note(agent, &kinds, clock::monotonic());
    Ok(Some(Announced {
        hostname: row.hostname,
        kinds,
    }))
}

/// The drivers of its steps, and of what undoes them: work that cannot be undone is not begun.
fn needed(process: &NewProcess) -> BTreeSet<&str> {
    let Some(plan) = &process.plan else {
        return BTreeSet::from([process.kind.as_str()]);
    };
    let operations = plan
        .steps
        .iter()
        .flat_map(|step| [Some(&step.work), step.undo.as_ref()]);
    operations
        .flatten()
        .map(|work| work.operation.as_str())
        .collect()
}

fn lacking<'a>(has: &[String], needed: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let missing = |name: &&str| !has.iter().any(|has| has == name);
    needed.iter().copied().filter(missing).collect()
}

fn refusal(process: &NewProcess, hostname: &str, lacking: &[&str], has: &[String]) -> String {
    let drivers = if lacking.len() == 1 {
        "driver"
    } else {
        "drivers"
    };
    let has: Vec<&str> = has.iter().map(String::as_str).collect();
    let (lacks, has) = (named(lacking), named(&has));
    // A kind that is not declared is a driver's name, or a slip.
    let why = match process.plan {
        Some(_) => format!("which the kind `{}` needs", process.kind),
        None => "and no kind of that name is declared (drover kinds list)".to_owned(),
    };
    format!(
        "the agent {hostname} has no {drivers} {lacks}, {why}; it has {has}. Choose another agent or kind, or \
         give it the {drivers} on its host; what it has told is shown by: drover agents show {}",
        process.agent
    )
}

fn named(names: &[&str]) -> String {
    let mut text: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    if text.len() > NAMED_MAX {
        let more = text.len() - NAMED_MAX;
        text.truncate(NAMED_MAX);
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use protocol::ids::AgentId;

    use super::*;

    const AGENT: AgentId = AgentId(uuid::Uuid::from_u128(1));

    #[test]
    fn what_an_agent_has_is_believed_for_a_while_and_what_it_lacks_never() {
        let drivers = Drivers::default();
        let now = clock::monotonic();
        let exec = BTreeSet::from(["exec"]);
        assert!(!drivers.had(AGENT, &exec, now), "nothing is known");
        drivers.note(AGENT, &["exec".to_owned(), "disk".to_owned()], now);
        assert!(drivers.had(AGENT, &exec, now));
        assert!(drivers.had(AGENT, &exec, now + MEMORY / 2));
        assert!(!drivers.had(AGENT, &exec, now + MEMORY), "it is old");
        assert!(!drivers.had(AGENT, &BTreeSet::from(["exec", "net"]), now));
        let other = AgentId(uuid::Uuid::from_u128(2));
        drivers.note(other, &["net".to_owned()], now);
        assert!(!drivers.had(other, &exec, now), "each has its own");
        assert!(drivers.had(AGENT, &exec, now));
    }

    #[test]
    fn agents_with_the_same_drivers_share_one_list_and_the_memory_has_an_end() {
        let drivers = Drivers::default();
        let now = clock::monotonic();
        for n in 0..=AGENTS_MAX as u128 {
            drivers.note(AgentId(uuid::Uuid::from_u128(n)), &["exec".to_owned()], now);
        }
        let known = drivers.0.lock().unwrap();
        assert_eq!(known.agents.len(), 1, "it began anew when it was full");
        // One of the agent, and one to compare with.
        assert_eq!(Arc::strong_count(&known.last), 2);
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = named(&names);
        assert!(text.starts_with("`d0`, `d1`") && text.ends_with("`d7`, 2 more"));
        assert_eq!(named(&["exec"]), "`exec`");
    }
}
