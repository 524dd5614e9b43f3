//! `drover batches …`: one action on every process that fits.

use clap::{Args, Subcommand, ValueEnum};
use control::api::model::Timestamp;
use control::api::model::batches::{Batch, BatchAction, BatchFilter, BatchPreview, CreateBatch};
use control::api::model::processes::{OutcomeStatus, ProcessState};
use serde_json::json;
use uuid::Uuid;

use super::client::Client;
use super::{Output, print};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start a batch: first with --dry-run, then with --confirm and the figure that it has shown
    Create(Box<CreateArguments>),
    /// List batches, newest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one batch
    Show {
        /// Its id
        #[arg(value_parser = batch_id)]
        batch: Uuid,
    },
    /// Stop a batch; what it has done stays done
    Cancel {
        /// Its id
        #[arg(value_parser = batch_id)]
        batch: Uuid,
    },
}

/// What is done, and to which processes.
#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArguments {
    /// What is done to each process
    action: ActionName,
    /// Only in this state: ready, running, …
    #[arg(long, value_parser = state)]
    state: Option<ProcessState>,
    #[command(flatten)]
    which: Which,
    /// For replay: the step from which each goes on, from 0 [default: the one at hand]
    #[arg(long, value_name = "N")]
    step: Option<u16>,
    #[command(flatten)]
    how: How,
}

/// Which processes, of those that the action can do something to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Which {
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
    /// Only those that ended like this: failed_transient, deadline_exceeded, …
    #[arg(long, value_parser = outcome)]
    outcome: Option<OutcomeStatus>,
    /// Only those at which people must look; redrive leaves them out otherwise
    #[arg(long)]
    needs_attention: bool,
    /// Only made before this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    created_before: Option<Timestamp>,
    /// Only made at or after this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    created_after: Option<Timestamp>,
    /// Only ended before this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    finished_before: Option<Timestamp>,
    /// Only ended at or after this: 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME")]
    finished_after: Option<Timestamp>,
}

/// How many, how fast, why, and whether at all.
#[derive(Args, Clone, Debug)]
pub(crate) struct How {
    /// At most so many, the oldest first, 1–1000000 [default: 10000]
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// So many a second, 1–1000 [default: 50]
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Why, for people and for the history of each process; pause needs it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do nothing; say how many match, and show the first 20
    #[arg(long, conflicts_with = "confirm")]
    dry_run: bool,
    /// How many match, as --dry-run has said: right to within 10 %
    #[arg(long, value_name = "N")]
    confirm: Option<u64>,
}

/// The actions as words of the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ActionName {
    /// Ask them to stop
    Cancel,
    /// Let those that have failed or were cancelled go on
    Retry,
    /// Let those that have failed go on, but those at which people must look
    Redrive,
    /// Let them go on from a step, also after success; needs --state
    Replay,
    /// Keep them from being started; needs --reason
    Pause,
    /// End the pauses of single processes
    Resume,
}

impl From<ActionName> for BatchAction {
    fn from(name: ActionName) -> Self {
        match name {
            ActionName::Cancel => Self::Cancel,
            ActionName::Retry => Self::Retry,
            ActionName::Redrive => Self::Redrive,
            ActionName::Replay => Self::Replay,
            ActionName::Pause => Self::Pause,
            ActionName::Resume => Self::Resume,
        }
    }
}

fn batch_id(text: &str) -> Result<Uuid, String> {
    text.parse()
        .map_err(|_| "expected the whole id of a batch; `drover batches list` shows it".to_owned())
}

fn state(text: &str) -> Result<ProcessState, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

pub(super) fn outcome(text: &str) -> Result<OutcomeStatus, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::Create(asked) => {
            let action = asked.action.into();
            let which = BatchFilter {
                state: asked.state,
                ..asked.which.into()
            };
            create(client, output, (action, asked.step), which, asked.how).await
        }
        Command::List { limit } => {
            let batches: Vec<Batch> = client.list(&["v1", "batches"], &[], limit).await?;
            print::value(output, &batches, |batches| list(batches))
        }
        Command::Show { batch } => {
            let path = ["v1", "batches", &batch.to_string()];
            let batch: Batch = client.get(&path, &[]).await?;
            print::value(output, &batch, show)
        }
        Command::Cancel { batch } => {
            let path = ["v1", "batches", &batch.to_string(), "cancel"];
            let batch: Batch = client.post(&path, &json!({}), &super::fresh_key()).await?;
            print::value(output, &batch, |batch| {
                format!("{} is {}\n", batch.id, print::word(&batch.state))
            })
        }
    }
}

impl From<Which> for BatchFilter {
    fn from(which: Which) -> Self {
        Self {
            state: None,
            agent: which.agent,
            group: which.group,
            kind: which.kind,
            tenant: which.tenant,
            outcome: which.outcome,
            needs_attention: which.needs_attention.then_some(true),
            created_before: which.created_before,
            created_after: which.created_after,
            finished_before: which.finished_before,
            finished_after: which.finished_after,
        }
    }
}

/// Looks, or makes a batch of `action` (with the step of a replay) on the processes of `filter`.
pub(super) async fn create(
    client: &Client,
    output: Output,
    (action, step): (BatchAction, Option<u16>),
    filter: BatchFilter,
    how: How,
) -> Result<Exit, Fault> {
    if !how.dry_run && how.confirm.is_none() {
        return Err(Fault::usage("a batch acts on many processes at once").advise(
            "look first with --dry-run, then repeat with --confirm and the number that it shows",
        ));
    }
    let body = CreateBatch {
        filter,
        action,
        step,
        max: how.max,
        rate_per_second: how.rate,
        reason: how.reason,
        dry_run: how.dry_run.then_some(true),
        confirm: how.confirm,
    };
    let path = ["v1", "batches"];
    if how.dry_run {
        let found: BatchPreview = client.post(&path, &body, &super::fresh_key()).await?;
        return print::value(output, &found, preview);
    }
    let batch: Batch = client.post(&path, &body, &super::fresh_key()).await?;
    print::value(output, &batch, |batch| format!("{}\n", batch.id))
}

fn preview(found: &BatchPreview) -> String {
    let mut text = print::table(
        ["ID", "KIND", "AGENT", "STATE", "CREATED"],
        found.sample.iter().map(|process| {
            [
                process.id.to_string(),
                process.kind.clone(),
                process.agent.to_string(),
                print::word(&process.state),
                process.created_at.to_string(),
            ]
        }),
        "no process matches\n",
    );
    if found.matched > 0 {
        text.push_str(&format!(
            "{} match; nothing was done: repeat with --confirm {} instead of --dry-run\n",
            found.matched, found.matched
        ));
    }
    text
}

fn list(batches: &[Batch]) -> String {
    print::table(
        [
            "ID", "ACTION", "STATE", "DONE", "FAILED", "MATCHED", "BY", "CREATED", "REASON",
        ],
        batches.iter().map(|batch| {
            [
                batch.id.to_string(),
                print::word(&batch.action),
                print::word(&batch.state),
                batch.done.to_string(),
                batch.failed.to_string(),
                batch.matched.to_string(),
                batch.by.clone(),
                batch.created_at.to_string(),
                batch.reason.clone(),
            ]
        }),
        "no batches",
    )
}

fn show(batch: &Batch) -> String {
    let filter = serde_json::to_string(&batch.filter).unwrap_or_default();
    print::facts(&[
        ("id", Some(batch.id.to_string())),
        ("action", Some(print::word(&batch.action))),
        ("step", batch.step.map(|step| step.to_string())),
        ("filter", Some(filter)),
        ("state", Some(print::word(&batch.state))),
        (
            "done",
            Some(format!("{} of {} that matched", batch.done, batch.matched)),
        ),
        (
            "failed",
            (batch.failed > 0).then(|| batch.failed.to_string()),
        ),
        ("trouble", batch.trouble.clone()),
        ("at most", Some(batch.max.to_string())),
        ("a second", Some(batch.rate_per_second.to_string())),
        (
            "reason",
            Some(batch.reason.clone()).filter(|text| !text.is_empty()),
        ),
        ("by", Some(batch.by.clone())),
        ("created", Some(batch.created_at.to_string())),
        ("finished", batch.finished_at.map(|at| at.to_string())),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn parse(words: &[&str]) -> Result<CreateArguments, String> {
        let words = ["drover", "batches", "create", "cancel"]
            .iter()
            .chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        match cli.command {
            crate::cli::Command::Batches(Command::Create(arguments)) => Ok(*arguments),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_filter_is_checked_before_anything_is_sent() {
        let asked = parse(&[
            "--state",
            "running",
            "--created-before",
            "2026-11-24T09:30:00Z",
        ]);
        let asked = asked.unwrap();
        assert_eq!(asked.state, Some(ProcessState::Running));
        let filter = BatchFilter::from(asked.which);
        assert_eq!(filter.created_before, Some(Timestamp(1_795_512_600_000)));
        assert_eq!(filter.needs_attention, None);
        for (words, said) in [
            (["--state", "done"].as_slice(), "unknown variant `done`"),
            (["--created-after", "today"].as_slice(), "RFC 3339"),
            (["--outcome", "lost"].as_slice(), "unknown variant `lost`"),
            (["--step", "first"].as_slice(), "--step"),
            (
                ["--dry-run", "--confirm", "3"].as_slice(),
                "cannot be used with",
            ),
            (["--max", "many"].as_slice(), "--max"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_dry_run_says_what_to_do_next() {
        let found = BatchPreview {
            matched: 0,
            sample: Vec::new(),
        };
        assert_eq!(preview(&found), "no process matches\n");
        let found = BatchPreview {
            matched: 70,
            sample: Vec::new(),
        };
        assert!(preview(&found).contains("--confirm 70"));
    }
}
