//! `drover processes …`

mod view;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use control::api::model::Timestamp;
use control::api::model::events::EventRecord;
use control::api::model::processes::{
    CancelMode, CancelProcess, Class, CreateProcess, DryRun, HistoryEntry, Process, ProcessDetail,
    ReplayProcess, RetryProcess, StepName,
};
use serde_json::Value;
use uuid::Uuid;

use super::client::Client;
use super::follow::{Follower, Next};
use super::pauses::{self, ScopeName};
use super::run::is_end;
use super::{Output, print, resolve};
use crate::config::value;
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List processes, newest first
    List {
        /// Only this agent (id, its beginning, or hostname)
        #[arg(long)]
        agent: Option<String>,
        /// Only this state: ready, running, succeeded, failed, …
        #[arg(long)]
        state: Option<String>,
        /// Only this kind
        #[arg(long)]
        kind: Option<String>,
        /// Only this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Only those at which people must look
        #[arg(long)]
        needs_attention: bool,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one process
    Show {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
    },
    /// Say why a process is not running, and what to do about it
    Why {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
    },
    /// Show who did what to a process, and when
    History {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// At most so many lines
        #[arg(long, default_value_t = 500)]
        limit: usize,
    },
    /// Start a process and print its id; `drover run` also waits for it
    Create {
        #[command(flatten)]
        arguments: CreateArguments,
        /// Only show what would be done and what it would meet
        #[arg(long)]
        dry_run: bool,
    },
    /// Ask a process to stop, and undo what it has done
    Cancel {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// End it now, without its agent's word and without undoing anything
        #[arg(long)]
        force: bool,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a failed or cancelled process go on
    Retry {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a process go on from a step, now
    Replay {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// The step's number from 0, or its name [default: the one at hand]
        #[arg(long)]
        step: Option<String>,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Start a new process with the same input and steps, and print its id
    Clone {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
    },
    /// Keep a process from being started; what runs of it goes on
    Pause {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// Why, for everybody who waits for it
        #[arg(long)]
        reason: String,
    },
    /// End the pause of a process
    Resume {
        /// Its id
        #[arg(value_parser = process_id)]
        process: Uuid,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Print what happens, to one process or to all, until interrupted
    Watch {
        /// Only this process, from its beginning to its end
        #[arg(value_parser = process_id)]
        process: Option<Uuid>,
        /// Only this agent (id, its beginning, or hostname)
        #[arg(long)]
        agent: Option<String>,
        /// Only events of this type, such as process.finished
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Begin behind the event with this number (`sequence` with --output json); 0: all that are kept
        #[arg(long, value_name = "SEQUENCE")]
        after: Option<u64>,
    },
}

/// The API takes nothing that is to begin later.
const AT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The API takes no longer deadline.
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

fn deadline(text: &str) -> Result<Duration, String> {
    value::duration_within(text, Duration::from_secs(1), DEADLINE_MAX)?;
    value::seconds(text)
}

/// A time, or how long from now.
fn moment(text: &str) -> Result<Timestamp, String> {
    let Some(wait) = text.strip_prefix('+') else {
        return text.parse().map_err(|_| {
            "expected a time such as 2026-11-30T02:00:00Z, or +30s, +15m or +2h from now".to_owned()
        });
    };
    let wait = value::duration_within(wait, Duration::ZERO, AT_MAX)?;
    Ok(Timestamp(control::clock::now().plus(wait).0))
}

fn process_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| {
        "expected the whole id of a process, such as 0190b6b8-52f3-7c1a-8e5d-3f2a9b7c6d10; `drover \
         run` prints it, `drover processes list` shows it"
            .to_owned()
    })
}

/// What is to be run, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArguments {
    /// The agent: id, its beginning, or hostname
    pub(crate) agent: String,
    /// A kind (`drover kinds list`), or a driver: exec, simulated, …
    pub(crate) kind: String,
    /// Its input: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) input: Option<String>,
    /// Not to be started before: 2026-11-30T02:00:00Z, or +2h from now; at most 720h ahead
    #[arg(long, value_name = "TIME|+DURATION", value_parser = moment)]
    pub(crate) at: Option<Timestamp>,
    /// It is over this long after its creation or --at, finished or not: 30s, 15m (default), at most 720h
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    pub(crate) deadline: Option<Duration>,
    /// Attempts in all when it fails in a way that may pass, 1–100
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,
    /// Who goes first on a busy agent
    #[arg(long)]
    pub(crate) class: Option<ClassName>,
    /// What it works on; one process per resource runs at a time
    #[arg(long, value_name = "NAME")]
    pub(crate) resource: Option<String>,
    /// Whose it is [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Option<String>,
    /// A repetition with the same key starts nothing new
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// For exec: the allow-listed program and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<String>,
}

/// The classes as words of the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ClassName {
    /// Somebody is waiting for it
    Interactive,
    /// The usual
    Normal,
    /// Whenever there is room
    Background,
}

impl From<ClassName> for Class {
    fn from(name: ClassName) -> Self {
        match name {
            ClassName::Interactive => Self::Interactive,
            ClassName::Normal => Self::Normal,
            ClassName::Background => Self::Background,
        }
    }
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List {
            agent,
            state,
            kind,
            tenant,
            needs_attention,
            limit,
        } => {
            let mut query = Vec::new();
            if let Some(agent) = agent {
                query.push(("agent", resolve::agent(client, &agent).await?.to_string()));
            }
            query.extend(state.map(|state| ("state", state)));
            query.extend(kind.map(|kind| ("kind", kind)));
            query.extend(tenant.map(|tenant| ("tenant", tenant)));
            query.extend(needs_attention.then(|| ("needs_attention", "true".to_owned())));
            let processes: Vec<Process> = client.list(&["v1", "processes"], &query, limit).await?;
            print::value(output, &processes, |processes| {
                view::list(processes, !query.is_empty())
            })
        }
        Command::Show { process } => {
            let process = get(client, process).await?;
            print::value(output, &process, view::show)
        }
        Command::Why { process } => {
            let process = get(client, process).await?;
            print::value(output, &process, view::why)
        }
        Command::History { process, limit } => {
            let path = ["v1", "processes", &process.to_string(), "history"];
            let entries: Vec<HistoryEntry> = client.list(&path, &[], limit).await?;
            print::value(output, &entries, |entries| view::history(entries))
        }
        Command::Create { arguments, dry_run } if dry_run => {
            let run = self::dry_run(client, &arguments).await?;
            print::value(output, &run, view::dry_run)
        }
        Command::Create { arguments, .. } => {
            let process = create(client, &arguments).await?;
            print::value(output, &process, |process| format!("{}\n", process.id))
        }
        Command::Watch {
            process,
            agent,
            kind,
            after,
        } => {
            let mut query = Vec::new();
            query.extend(process.map(|id| ("process", id.to_string())));
            query.extend(kind.map(|kind| ("type", kind)));
            if let Some(agent) = agent {
                query.push(("agent", resolve::agent(client, &agent).await?.to_string()));
            }
            watch(client, output, process, query, after).await
        }
        order => self::order(client, output, order).await,
    }
}

/// What is to happen to a process that there is.
async fn order(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    let process = match command {
        Command::Cancel {
            process,
            force,
            reason,
        } => {
            let mode = match force {
                true => CancelMode::Force,
                false => CancelMode::Graceful,
            };
            send(client, process, "cancel", &CancelProcess { mode, reason }).await?
        }
        Command::Retry { process, reason } => {
            send(client, process, "retry", &RetryProcess { reason }).await?
        }
        Command::Replay {
            process,
            step,
            reason,
        } => {
            let step = step.map(|text| match text.parse() {
                Ok(number) => StepName::Number(number),
                Err(_) => StepName::Name(text),
            });
            send(client, process, "replay", &ReplayProcess { step, reason }).await?
        }
        Command::Clone { process } => {
            let process = send(client, process, "clone", &serde_json::json!({})).await?;
            return print::value(output, &process, |process| format!("{}\n", process.id));
        }
        Command::Pause { process, reason } => {
            let key = process.to_string();
            return pauses::add(client, output, ScopeName::Process, key, reason).await;
        }
        Command::Resume { process, reason } => {
            let key = process.to_string();
            return pauses::remove(client, output, ScopeName::Process, key, reason).await;
        }
        _ => return Err(Fault::usage("this command is no order")),
    };
    print::value(output, &process, view::ordered)
}

async fn send<B: serde::Serialize + Sync>(
    client: &Client,
    process: Uuid,
    order: &str,
    body: &B,
) -> Result<Process, Fault> {
    let path = ["v1", "processes", &process.to_string(), order];
    client.post(&path, body, &super::fresh_key()).await
}

/// Reads one process.
pub(super) async fn get(client: &Client, id: Uuid) -> Result<ProcessDetail, Fault> {
    client.get(&["v1", "processes", &id.to_string()], &[]).await
}

/// Starts a process.
pub(super) async fn create(client: &Client, arguments: &CreateArguments) -> Result<Process, Fault> {
    post(client, arguments, &[]).await
}

/// Shows what a process would be and meet.
async fn dry_run(client: &Client, arguments: &CreateArguments) -> Result<DryRun, Fault> {
    post(client, arguments, &[("dry_run", "true".to_owned())]).await
}

async fn post<T: serde::de::DeserializeOwned>(
    client: &Client,
    arguments: &CreateArguments,
    query: &[(&str, String)],
) -> Result<T, Fault> {
    let mut request = CreateProcess {
        agent: arguments.agent.clone(),
        kind: arguments.kind.clone(),
        input: input(arguments)?,
        tenant: arguments.tenant.clone(),
        run_at: arguments.at,
        deadline_seconds: arguments.deadline.map(|deadline| deadline.as_secs()),
        deadline_at: None,
        max_attempts: arguments.max_attempts,
        class: arguments.class.map(Class::from),
        resource: arguments.resource.clone(),
    };
    let key = arguments
        .idempotency_key
        .clone()
        .unwrap_or_else(super::fresh_key);
    let path = ["v1", "processes"];
    match client.post_with(&path, query, &request, &key).await {
        // The server knows ids and hostnames. The beginning of an id, and the words about a name
        // that means nothing, need a look at the fleet.
        Err(fault) if fault.field.as_deref() == Some("agent") => {
            if arguments.agent.parse::<Uuid>().is_ok() {
                return Err(fault.exit(Exit::NotFound));
            }
            let agent = resolve::agent(client, &arguments.agent).await?;
            request.agent = agent.to_string();
            client.post_with(&path, query, &request, &key).await
        }
        result => result.map_err(|fault| unusable_program(arguments, fault)),
    }
}

/// A kind that takes no program is told of one by its fields; people have said it by `--`.
fn unusable_program(arguments: &CreateArguments, fault: Fault) -> Fault {
    let field = fault.field.as_deref();
    match arguments.program.is_empty() || !matches!(field, Some("input.program" | "input.args")) {
        true => fault,
        false => fault.advise(
            "leave out the words behind `--`, and give this kind's input with --input; they are for exec, and \
             for kinds that take `program` and `args`",
        ),
    }
}

/// Asks a process to stop.
pub(super) async fn cancel(client: &Client, id: Uuid) -> Result<Process, Fault> {
    send(client, id, "cancel", &CancelProcess::default()).await
}

/// The driver's input from `--input`, and from the words behind `--`.
fn input(arguments: &CreateArguments) -> Result<Value, Fault> {
    let mut input = match arguments.input.as_deref() {
        None => serde_json::json!({}),
        Some(text) => read_input(text)?,
    };
    let Some((program, rest)) = arguments.program.split_first() else {
        return Ok(input);
    };
    let Value::Object(fields) = &mut input else {
        return Err(Fault::usage(
            "--input is not a JSON object, so a program cannot be added to it",
        )
        .advise("leave --input out, or put \"program\" and \"args\" into it yourself"));
    };
    if let Some(twice) = ["program", "args"]
        .into_iter()
        .find(|name| fields.contains_key(*name))
    {
        return Err(Fault::usage(format_args!(
            "--input has \"{twice}\" and there are words behind `--`: only one of them can be meant"
        ))
        .advise(format_args!(
            "take \"{twice}\" out of --input, or leave out the words behind `--`"
        )));
    }
    fields.insert("program".to_owned(), Value::from(program.as_str()));
    fields.insert("args".to_owned(), Value::from(rest));
    Ok(input)
}

fn read_input(text: &str) -> Result<Value, Fault> {
    let (name, text) = if text == "-" {
        let text = std::io::read_to_string(std::io::stdin())
            .map_err(|error| Fault::usage(format_args!("cannot read standard input: {error}")))?;
        ("standard input", text)
    } else if let Some(path) = text.strip_prefix('@') {
        (path, crate::config::file::read(path.as_ref())?)
    } else {
        ("--input", text.to_owned())
    };
    serde_json::from_str(&text).map_err(|error| {
        Fault::usage(format_args!("{name} is not JSON: {error}")).advise(
            "give JSON such as '{\"program\":\"uname\"}', or @FILE, or - for standard input",
        )
    })
}

/// Prints the events that match `query` as they come; with `process`, until that has ended.
async fn watch(
    client: &Client,
    output: Output,
    process: Option<Uuid>,
    query: Vec<(&'static str, String)>,
    after: Option<u64>,
) -> Result<Exit, Fault> {
    // One process is told from its beginning; the fleet from now on.
    let mut follower = Follower::new(client, query, after.or(process.map(|_| 0)));
    loop {
        let look = match follower.next().await? {
            Next::Event(event) => {
                print::line(&if output.is_json() {
                    print::to_json(&event)?
                } else {
                    event_line(&event)
                })?;
                process.is_some() && is_end(&event)
            }
            Next::Quiet | Next::Lost => process.is_some(),
        };
        if look
            && let Some(id) = process
            && get(client, id).await?.process.state.is_terminal()
        {
            return Ok(Exit::Success);
        }
    }
}

fn event_line(event: &EventRecord) -> String {
    let subject = match (event.process, event.agent) {
        (Some(process), _) => process.to_string(),
        (None, Some(agent)) => agent.to_string(),
        (None, None) => "-".to_owned(),
    };
    format!("{}  {:20} {subject}  {}", event.at, event.kind, event.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(input: Option<&str>, program: &[&str]) -> CreateArguments {
        CreateArguments {
            agent: "hv".to_owned(),
            kind: "exec".to_owned(),
            input: input.map(str::to_owned),
            at: None,
            deadline: None,
            max_attempts: None,
            class: None,
            resource: None,
            tenant: None,
            idempotency_key: None,
            program: program.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn words_behind_the_dashes_become_the_exec_input() {
        let value = input(&arguments(Some("{\"stdin\":7}"), &["uname", "-a"])).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"program": "uname", "args": ["-a"], "stdin": 7})
        );
        assert_eq!(input(&arguments(None, &[])).unwrap(), serde_json::json!({}));
    }

    #[test]
    fn input_that_is_not_usable_is_told_before_anything_is_sent() {
        let fault = input(&arguments(Some("{oops"), &[])).unwrap_err();
        assert!(fault.what.contains("--input is not JSON"), "{fault:?}");
        assert!(input(&arguments(Some("[1]"), &["ls"])).is_err());
        assert!(input(&arguments(Some("@/nowhere/x.json"), &[])).is_err());
    }

    #[test]
    fn a_time_is_said_as_it_is_or_from_now() {
        let said = moment("2026-11-30T02:00:00Z").unwrap();
        assert_eq!(said.to_string(), "2026-11-30T02:00:00.000Z");
        let left = moment("+2h").unwrap().0 - control::clock::now().0;
        assert!((7_190_000..=7_200_000).contains(&left), "{left}");
        for text in ["+721h", "+2", "2h", "tonight", "", "+"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_behind_the_dashes_that_a_kind_cannot_use_are_named() {
        let refused = |field: &str| Fault {
            field: Some(field.to_owned()),
            ..Fault::new("the kind `x` has no such field")
        };
        let with = arguments(None, &["uname"]);
        for field in ["input.program", "input.args"] {
            let fault = unusable_program(&with, refused(field));
            assert!(fault.advice.unwrap().contains("behind `--`"));
        }
        assert_eq!(unusable_program(&with, refused("input.vm")).advice, None);
        let own = unusable_program(&arguments(None, &[]), refused("input.args"));
        assert_eq!(own.advice, None, "they have put it into --input themselves");
    }

    #[test]
    fn a_program_that_is_named_twice_is_refused() {
        for json in ["{\"program\":\"sh\"}", "{\"args\":[]}"] {
            let fault = input(&arguments(Some(json), &["sh"])).unwrap_err();
            assert_eq!(fault.exit, Exit::Usage);
            assert!(fault.what.contains("behind `--`"), "{fault:?}");
        }
    }

    #[test]
    fn deadlines_and_ids_that_cannot_be_meant_say_what_can() {
        for text in ["0s", "500ms", "1500ms", "721h"] {
            assert!(deadline(text).is_err(), "{text}");
        }
        assert_eq!(deadline("720h"), Ok(DEADLINE_MAX));
        let problem = process_id("abcd").unwrap_err();
        assert!(problem.contains("drover processes list"), "{problem}");
    }
}
