//! `drover limits …`

use clap::{Args, Subcommand, ValueEnum};
use control::api::model::limits::{Limit, LimitScope, LiveLimit, SetLimit};

use super::client::Client;
use super::{Output, print, resolve};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List the limits that are set: by whom, why, and what is so now
    #[command(visible_alias = "ls")]
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show one limit; an agent has one also where nothing is set
    #[command(visible_alias = "show")]
    Get {
        /// What it counts
        scope: ScopeName,
        /// Which one: an agent, a group, a name; `all` for global
        key: String,
    },
    /// Set a limit, in the place of all that was set of it
    Set(SetArguments),
    /// Remove what is set of a limit
    #[command(visible_alias = "rm")]
    Remove {
        /// What it counts
        scope: ScopeName,
        /// Which one
        key: String,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct SetArguments {
    /// What it counts
    scope: ScopeName,
    /// Which one: an agent, a group, a name; `all` for global
    key: String,
    /// The limit; of an agent: its adaptive limit is never higher. 0 stops it
    #[arg(long)]
    max: Option<u32>,
    /// Agents only: the adaptive limit is never lower
    #[arg(long)]
    min: Option<u32>,
    /// Agents only: the limit is this, whatever the agent seems to take
    #[arg(long)]
    pin: Option<u32>,
    /// Tenants only: their share where several wait, 1 to 1000
    #[arg(long)]
    weight: Option<u32>,
    /// Why, for everybody whose work waits
    #[arg(long)]
    reason: String,
}

/// The scopes as words of the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ScopeName {
    /// Operations on one agent
    Agent,
    /// Operations of one sort of work on any one agent
    Work,
    /// Operations that use a shared resource
    Resource,
    /// A tenant's operations
    Tenant,
    /// Operations on all agents of a group
    Group,
    /// All operations: `global all`
    Global,
}

impl From<ScopeName> for LimitScope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Agent => Self::Agent,
            ScopeName::Work => Self::Work,
            ScopeName::Resource => Self::Resource,
            ScopeName::Tenant => Self::Tenant,
            ScopeName::Group => Self::Group,
            ScopeName::Global => Self::Global,
        }
    }
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List { limit } => {
            let limits: Vec<Limit> = client.list(&["v1", "limits"], &[], limit).await?;
            print::value(output, &limits, |limits| list(limits))
        }
        Command::Get { scope, key } => {
            let (scope, key) = named(client, scope, key).await?;
            let limit: Limit = client.get(&["v1", "limits", &scope, &key], &[]).await?;
            print::value(output, &limit, show)
        }
        Command::Set(arguments) => {
            let (scope, key) = named(client, arguments.scope, arguments.key).await?;
            let request = SetLimit {
                min: arguments.min,
                max: arguments.max,
                pin: arguments.pin,
                weight: arguments.weight,
                reason: arguments.reason,
            };
            let path = ["v1", "limits", &scope, &key];
            let limit: Limit = client.put(&path, &request).await?;
            print::value(output, &limit, |limit| {
                let mut text = format!("{} {}: {}\n", scope, limit.name, set(limit));
                for warning in &limit.warnings {
                    text.push_str(&format!("note: {}\n", print::harmless(warning)));
                }
                text
            })
        }
        Command::Remove {
            scope,
            key: name,
            reason,
        } => {
            let (scope, key) = named(client, scope, name.clone()).await?;
            let query: Vec<_> = reason
                .map(|reason| ("reason", reason))
                .into_iter()
                .collect();
            client
                .delete_with(&["v1", "limits", &scope, &key], &query)
                .await?;
            let ended = serde_json::json!({ "scope": scope, "key": key });
            print::value(output, &ended, |_| {
                format!("nothing is set of {scope} {name} any more\n")
            })
        }
    }
}

/// Agents and groups may be named by the beginning of their ids as well, as everywhere.
async fn named(client: &Client, scope: ScopeName, key: String) -> Result<(String, String), Fault> {
    let key = match scope {
        ScopeName::Agent => resolve::agent(client, &key).await?.to_string(),
        ScopeName::Group => resolve::group(client, &key).await?.to_string(),
        ScopeName::Work | ScopeName::Resource | ScopeName::Tenant | ScopeName::Global => key,
    };
    Ok((print::word(&LimitScope::from(scope)), key))
}

/// What is set, in few words.
fn set(limit: &Limit) -> String {
    let figures = [
        ("min", limit.min),
        ("max", limit.max),
        ("pin", limit.pin),
        ("weight", limit.weight),
    ];
    let set: Vec<String> = figures
        .iter()
        .filter_map(|(name, figure)| Some(format!("{name} {}", (*figure)?)))
        .collect();
    match set.is_empty() {
        true => "nothing is set".to_owned(),
        false => set.join(", "),
    }
}

fn list(limits: &[Limit]) -> String {
    print::table(
        [
            "SCOPE", "NAME", "SET", "NOW", "IN USE", "BY", "SINCE", "REASON",
        ],
        limits.iter().map(|limit| {
            let live = limit.live.as_ref();
            [
                print::word(&limit.scope),
                limit.name.clone(),
                set(limit),
                print::or_dash(live.map(|live| live.limit)),
                print::or_dash(live.map(|live| live.in_use)),
                print::or_dash(limit.by.as_ref()),
                print::or_dash(limit.at),
                print::or_dash(limit.reason.as_ref()),
            ]
        }),
        "no limit is set; agents are given what they can take",
    )
}

fn show(limit: &Limit) -> String {
    let mut text = print::facts(&[
        ("scope", Some(print::word(&limit.scope))),
        ("key", Some(limit.key.clone())),
        (
            "name",
            Some(limit.name.clone()).filter(|name| *name != limit.key),
        ),
        ("set", Some(set(limit))),
        ("by", limit.by.clone()),
        ("since", limit.at.map(|at| at.to_string())),
        ("reason", limit.reason.clone()),
        (
            "note",
            Some(limit.warnings.join("; ")).filter(|text| !text.is_empty()),
        ),
        ("now", Some(now(limit))),
        ("decided", limit.live.as_ref().and_then(decided)),
    ]);
    if let Some(live) = &limit.live
        && !live.lines.is_empty()
    {
        text.push('\n');
        text.push_str(&lines(live));
    }
    text
}

fn now(limit: &Limit) -> String {
    let Some(live) = &limit.live else {
        let why = limit
            .not_live
            .as_deref()
            .unwrap_or("the gateway did not say");
        return format!("not known: {why}");
    };
    let mut text = format!("{} in use of {}", live.in_use, live.limit);
    if let Some(capacity) = live.capacity {
        text.push_str(&format!("; the agent takes {capacity} by its own word"));
    }
    if let Some(waiting) = live.waiting.filter(|waiting| *waiting > 0) {
        text.push_str(&format!("; {waiting} wait"));
    }
    if let Some(lines) = live.parked_lines.filter(|lines| *lines > 0) {
        text.push_str(&format!("; {lines} lines wait for it"));
    }
    text
}

fn decided(live: &LiveLimit) -> Option<String> {
    let decision = live.decision.as_ref()?;
    let mut text = format!(
        "{:.1} → {:.1} {:.0} s ago: {}",
        decision.from,
        decision.to,
        std::time::Duration::from_millis(decision.age_ms).as_secs_f64(),
        decision.text
    );
    if decision.slowdown > 0.0 {
        text.push_str(&format!(
            " (operations took {:.2} × their usual time, {:.2} × without delay of its making, and {:.1} ended \
             a second)",
            decision.slowdown, decision.baseline, decision.rate
        ));
    }
    Some(text)
}

fn lines(live: &LiveLimit) -> String {
    print::table(
        ["CLASS", "TENANT", "KIND", "WORK", "WAIT", "FOR"],
        live.lines.iter().map(|line| {
            let parked = line.parked.as_ref().map(|on| {
                let scope = print::word(&on.scope);
                format!(
                    "{scope} {}: {} of {}, {} lines before",
                    on.key, on.in_use, on.limit, on.before
                )
            });
            [
                print::word(&line.class),
                line.tenant.clone(),
                line.kind.clone(),
                line.work.clone(),
                line.waiting.to_string(),
                parked.unwrap_or_else(|| "the agent".to_owned()),
            ]
        }),
        "",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limit(more: serde_json::Value) -> Limit {
        let mut value = json!({
            "scope": "agent", "key": "01900000-0000-7000-8000-000000000002", "name": "h-17",
            "min": 1, "max": 8, "pin": null, "weight": null, "by": "ann", "reason": "slow disks",
            "at": "2026-11-24T09:30:00.000Z", "live": null,
        });
        let serde_json::Value::Object(more) = more else {
            panic!("an object");
        };
        value.as_object_mut().unwrap().extend(more);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_limit_says_what_is_set_what_is_so_and_why() {
        let text = show(&limit(json!({"live": {
            "limit": 6, "in_use": 6, "capacity": 8, "running": 6, "granted": 0, "waiting": 41,
            "decision": {"why": "followed", "text": "moved towards the capacity", "from": 5.5, "to": 6.2,
                "age_ms": 3100, "slowdown": 1.07, "baseline": 1.0, "rate": 3.1},
            "lines": [
                {"class": "normal", "tenant": "acme", "kind": "exec", "work": "build", "waiting": 41,
                 "parked": {"scope": "work", "key": "build", "limit": 2, "in_use": 2, "before": 3}},
                {"class": "background", "tenant": "acme", "kind": "exec", "work": "", "waiting": 0,
                 "parked": null}],
        }})));
        for words in [
            "min 1, max 8",
            "6 in use of 6; the agent takes 8 by its own word; 41 wait",
            "5.5 → 6.2 3 s ago: moved towards the capacity (operations took 1.07 × their usual time",
            "work build: 2 of 2, 3 lines before",
            "the agent\n",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let unset = limit(
            json!({"min": null, "max": null, "by": null, "reason": null, "at": null,
            "not_live": "the agent has no session"}),
        );
        let text = show(&unset);
        assert!(
            text.contains("nothing is set") && text.contains("not known: the agent has no session")
        );
        assert!(list(&[]).contains("no limit is set"));
        let text = list(&[limit(
            json!({"scope": "tenant", "name": "acme", "weight": 5}),
        )]);
        assert!(
            text.contains("min 1, max 8, weight 5") && text.contains("slow disks"),
            "{text}"
        );
    }
}
