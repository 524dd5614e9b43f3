//! `drover dead-letters …`: what has failed and waits for somebody to do something about it.

use clap::{Args, Subcommand};
use control::api::model::Timestamp;
use control::api::model::batches::BatchAction;
use control::api::model::dead_letters::DeadLetters;
use control::api::model::processes::{OutcomeStatus, Process};
use serde::Serialize;

use super::batches::{self, How, Which, outcome};
use super::client::Client;
use super::{Output, print};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List what has failed and was not started over since, the last that failed first
    List {
        #[command(flatten)]
        which: Named,
        /// Only those that ended like this: failed_transient, deadline_exceeded, …
        #[arg(long, value_parser = outcome)]
        outcome: Option<OutcomeStatus>,
        /// Only those at which people must look
        #[arg(long)]
        needs_attention: bool,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Count them by kind and by how they ended
    Summary {
        #[command(flatten)]
        which: Named,
    },
    /// Let many go on: first with --dry-run, then with --confirm and the figure that it has shown
    Redrive {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
}

/// Which dead letters.
#[derive(Args, Clone, Debug)]
pub(crate) struct Named {
    /// Only for this agent (id or hostname)
    #[arg(long)]
    agent: Option<String>,
    /// Only for agents of this group (id or name)
    #[arg(long)]
    group: Option<String>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only those that failed before this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    finished_before: Option<Timestamp>,
    /// Only those that failed at or after this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    finished_after: Option<Timestamp>,
}

impl Named {
    fn query(self) -> Vec<(&'static str, String)> {
        let moment = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let given = [
            ("agent", self.agent),
            ("group", self.group),
            ("kind", self.kind),
            ("tenant", self.tenant),
            ("finished_before", moment(self.finished_before)),
            ("finished_after", moment(self.finished_after)),
        ];
        let given = given.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List {
            which,
            outcome,
            needs_attention,
            limit,
        } => {
            let mut query = which.query();
            query.extend(outcome.map(|status| ("outcome", print::word(&status))));
            query.extend(needs_attention.then(|| ("needs_attention", "true".to_owned())));
            let path = ["v1", "dead-letters"];
            let found: Vec<Process> = client.list(&path, &query, limit).await?;
            print::value(output, &found, |found| list(found))
        }
        Command::Summary { which } => {
            let path = ["v1", "dead-letters", "summary"];
            let found: DeadLetters = client.get(&path, &which.query()).await?;
            print::value(output, &found, summary)
        }
        Command::Redrive { which, how } => {
            let action = (BatchAction::Redrive, None);
            batches::create(client, output, action, which.into(), how).await
        }
    }
}

fn list(found: &[Process]) -> String {
    print::table(
        [
            "ID", "KIND", "TENANT", "AGENT", "FAILED", "OUTCOME", "LOOK", "SAYS",
        ],
        found.iter().map(|process| {
            let outcome = process.outcome.as_ref();
            [
                process.id.to_string(),
                process.kind.clone(),
                process.tenant.clone(),
                process.agent.to_string(),
                shown(process.finished_at),
                outcome.map_or_else(String::new, |outcome| print::word(&outcome.status)),
                looked_at(process.needs_attention),
                outcome.map_or_else(String::new, |outcome| outcome.message.clone()),
            ]
        }),
        "nothing has failed that is still kept, or all of it was started over\n",
    )
}

fn summary(found: &DeadLetters) -> String {
    let mut text = print::table(
        [
            "COUNT", "KIND", "OUTCOME", "LOOK", "AGENTS", "LAST", "NEWEST", "SAYS",
        ],
        found.groups.iter().map(|group| {
            [
                group.count.to_string(),
                group.kind.clone(),
                word(group.outcome.as_ref()),
                looked_at(group.needs_attention),
                group.agents.to_string(),
                group.newest_at.to_string(),
                group.newest.to_string(),
                group.message.clone(),
            ]
        }),
        "nothing has failed that is still kept, or all of it was started over\n",
    );
    if found.more {
        text.push_str(&format!("the newest {}; there are more\n", found.counted));
    }
    text
}

fn word<T: Serialize>(value: Option<&T>) -> String {
    value.map_or_else(String::new, print::word)
}

fn shown(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| at.to_string())
}

fn looked_at(needs_attention: bool) -> String {
    match needs_attention {
        true => "yes".to_owned(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use control::api::model::dead_letters::DeadLetterGroup;

    use super::*;

    #[test]
    fn a_summary_says_when_it_is_not_all() {
        let mut found = DeadLetters {
            counted: 10_000,
            more: true,
            groups: vec![DeadLetterGroup {
                kind: "vm-start".to_owned(),
                outcome: Some(OutcomeStatus::DeadlineExceeded),
                needs_attention: false,
                count: 10_000,
                agents: 7,
                oldest_at: Timestamp(0),
                newest_at: Timestamp(1),
                newest: uuid::Uuid::nil(),
                message: "too late".to_owned(),
            }],
        };
        let text = summary(&found);
        assert!(text.contains("deadline_exceeded"), "{text}");
        assert!(text.contains("the newest 10000; there are more"), "{text}");
        found.more = false;
        assert!(!summary(&found).contains("there are more"));
        found.groups.clear();
        assert!(summary(&found).starts_with("nothing has failed"));
    }
}
