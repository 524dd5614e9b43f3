//! `drover run`: starts a process, shows its output as it comes, ends as the program ended.
//!
//! ```text
//!   create ─▶ follow its events ─▶ output to stdout / stderr
//!                │        └ Quiet, Lost, an end ─▶ read the process ─▶ terminal? ─▶ exit status
//!                └ Ctrl-C ─▶ ask to cancel; again: leave it alone and go
//! ```
//!
//! The connection may be lost and the server restarted meanwhile: the process goes on, and so does
//! this.

use std::io::Write as _;

use clap::Args;
use control::api::model::Payload;
use control::api::model::events::EventRecord;
use control::api::model::processes::{OutcomeStatus, Process, ProcessDetail, ProcessState};
use serde::Deserialize;
use uuid::Uuid;

use super::client::Client;
use super::follow::{Follower, Next, passing};
use super::processes::{self, CreateArguments};
use super::{Output, print};
use crate::fault::{Exit, Fault};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  drover run hv-1 exec -- uname -a
  drover run 0190b6b8 simulated --input '{\"service_ms\": 200}'

The exit status is the program's own. 124: its deadline passed; 125: it ended without a status;
130: it was cancelled.")]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) create: CreateArguments,
    /// Say nothing but what the program says
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What a person sees while a process runs.
struct Screen {
    output: Output,
    quiet: bool,
    /// The end of the standard output that was shown, at most [`TAIL_BYTES`] of it.
    shown: Vec<u8>,
    waiting_told: bool,
}

/// A result holds so much of the end of a program's standard output.
const TAIL_BYTES: usize = protocol::limits::OUTPUT_BYTES_MAX;

pub(super) async fn run(
    client: &Client,
    output: Output,
    arguments: RunArguments,
) -> Result<Exit, Fault> {
    let process = processes::create(client, &arguments.create).await?;
    let mut screen = Screen {
        output,
        quiet: arguments.quiet || output.is_json(),
        shown: Vec::new(),
        waiting_told: false,
    };
    screen.say(&format!("process {}", process.id));
    let ended = wait(client, &mut screen, process.id).await?;
    screen.finish(&ended)?;
    Ok(exit_of(&ended.process))
}

/// Waits for the end, whatever happens to the connection.
async fn wait(client: &Client, screen: &mut Screen, id: Uuid) -> Result<ProcessDetail, Fault> {
    let mut follower = Follower::new(client, vec![("process", id.to_string())], Some(0));
    let mut interrupted = false;
    loop {
        let next = tokio::select! {
            next = follower.next() => next?,
            () = interrupt() => {
                if std::mem::replace(&mut interrupted, true) {
                    return Err(Fault::new(format_args!("left process {id} alone; it may still run"))
                        .advise(format_args!("`drover processes show {id}` says what became of it"))
                        .exit(Exit::Cancelled));
                }
                screen.say("asking it to stop (Ctrl-C again: leave it alone)");
                processes::cancel(client, id).await?;
                continue;
            }
        };
        let told = match next {
            Next::Event(event) => {
                screen.show(&event)?;
                if !is_end(&event) {
                    continue;
                }
                true
            }
            Next::Quiet | Next::Lost => false,
        };
        match processes::get(client, id).await {
            Ok(detail) if detail.process.state.is_terminal() => {
                if !told {
                    drain(&mut follower, screen).await?;
                }
                return Ok(detail);
            }
            Ok(detail) => screen.say_waiting(&detail.process),
            Err(fault) if passing(&fault) => screen.say_lost(),
            Err(fault) => return Err(fault),
        }
    }
}

/// Shows the output that was already on its way when the end became known.
async fn drain(follower: &mut Follower<'_>, screen: &mut Screen) -> Result<(), Fault> {
    while let Ok(Next::Event(event)) = follower.next().await {
        screen.show(&event)?;
        if is_end(&event) {
            break;
        }
    }
    Ok(())
}

async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without the signal there is nothing to wait for.
        std::future::pending::<()>().await;
    }
}

/// Whether an event says that the process reached a terminal state.
pub(super) fn is_end(event: &EventRecord) -> bool {
    event.kind == "process.finished"
}

/// A piece of a program's output inside an event.
#[derive(Deserialize)]
struct OutputPiece {
    channel: String,
    output: Payload,
}

impl Screen {
    fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("drover: {text}");
        }
    }

    fn say_waiting(&mut self, process: &Process) {
        if let Some(on) = &process.waiting_on
            && !std::mem::replace(&mut self.waiting_told, true)
        {
            self.say(&format!("waiting: {}", on.detail));
        }
    }

    fn say_lost(&mut self) {
        if !std::mem::replace(&mut self.waiting_told, true) {
            self.say("the server does not answer; the process goes on, waiting for the server");
        }
    }

    fn show(&mut self, event: &EventRecord) -> Result<(), Fault> {
        if self.output.is_json() {
            return print::line(&print::to_json(event)?);
        }
        let Ok(piece) = serde_json::from_value::<OutputPiece>(event.data.clone()) else {
            return Ok(());
        };
        let bytes = piece.output.to_bytes().unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        if piece.channel == "stderr" {
            return std::io::stderr()
                .write_all(&bytes)
                .map_err(|error| print::cannot_write(&error));
        }
        self.show_stdout(&bytes)
    }

    fn show_stdout(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.shown.extend_from_slice(bytes);
        let too_much = self.shown.len().saturating_sub(TAIL_BYTES);
        self.shown.drain(..too_much);
        let mut stdout = std::io::stdout();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| print::cannot_write(&error))
    }

    /// The last words.
    fn finish(&mut self, ended: &ProcessDetail) -> Result<(), Fault> {
        if self.output.is_json() {
            return print::line(&print::to_json(&serde_json::json!({ "process": ended }))?);
        }
        let process = &ended.process;
        let outcome = process.outcome.as_ref();
        let result = outcome.and_then(|outcome| outcome.output.as_ref());
        let result = result.map_or_else(Vec::new, |result| result.to_bytes().unwrap_or_default());
        self.show_stdout(unseen(&self.shown.clone(), &result))?;
        if ended.progress_dropped > 0 {
            self.say(&format!(
                "{} pieces of output are missing: the server keeps 1 MiB of a process's output",
                ended.progress_dropped
            ));
        }
        if process.state != ProcessState::Succeeded {
            let status = outcome.map_or_else(
                || print::word(&process.state),
                |outcome| print::word(&outcome.status),
            );
            let message = outcome.map_or("", |outcome| outcome.message.as_str());
            self.say(&format!("{}: {message}", status.replace('_', " ")));
        }
        Ok(())
    }
}

/// What of a result has not been shown yet. Output that a program writes while its agent has no
/// session is not streamed; the end of it is in the result. A driver that streams nothing has all
/// of its result there.
fn unseen<'a>(shown: &[u8], result: &'a [u8]) -> &'a [u8] {
    // The whole result may have been shown, or a beginning of it, or nothing.
    let seen = (0..=result.len())
        .rev()
        .find(|seen| shown.ends_with(&result[..*seen]));
    &result[seen.unwrap_or(0)..]
}

/// The exit status that says how a process ended.
fn exit_of(process: &Process) -> Exit {
    let outcome = process.outcome.as_ref();
    let code = outcome.and_then(|outcome| outcome.exit_code);
    let status = outcome.map(|outcome| outcome.status);
    match (process.state, status, code) {
        (ProcessState::Succeeded, _, code) => Exit::Program(program_code(code.unwrap_or(0))),
        (ProcessState::Cancelled, _, _) => Exit::Cancelled,
        (_, Some(OutcomeStatus::DeadlineExceeded), _) => Exit::DeadlineExceeded,
        (_, _, Some(code)) if code != 0 => Exit::Program(program_code(code)),
        _ => Exit::NotRun,
    }
}

/// A program ended by a signal has a negative code; shells write it as 128 + signal.
fn program_code(code: i32) -> u8 {
    let shell = if code < 0 {
        code.saturating_neg().saturating_add(128)
    } else {
        code
    };
    u8::try_from(shell & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::model::Timestamp;
    use control::api::model::processes::{Class, ProcessOutcome};

    fn process(state: ProcessState, status: OutcomeStatus, exit_code: Option<i32>) -> Process {
        Process {
            id: Uuid::nil(),
            kind: "exec".to_owned(),
            tenant: "default".to_owned(),
            agent: Uuid::nil(),
            state,
            step: 0,
            step_count: 1,
            undoing: false,
            needs_attention: false,
            attempts: 1,
            max_attempts: 3,
            class: Class::Normal,
            resource: None,
            created_at: Timestamp(0),
            started_at: None,
            finished_at: None,
            deadline_at: Timestamp(0),
            outcome: Some(ProcessOutcome {
                status,
                exit_code,
                message: String::new(),
                output: None,
            }),
            waiting_on: None,
        }
    }

    #[test]
    fn output_that_was_not_streamed_is_taken_from_the_result_once() {
        let left = |shown: &str, result: &str| {
            let unseen = unseen(shown.as_bytes(), result.as_bytes());
            String::from_utf8(unseen.to_vec()).unwrap()
        };
        assert_eq!(left("a\nb\n", "a\nb\n"), "");
        assert_eq!(left("long ago\na\nb\n", "b\n"), "");
        assert_eq!(left("before\n", "before\nafter\n"), "after\n");
        assert_eq!(left("", "{\"effect\":1}"), "{\"effect\":1}");
        assert_eq!(left("before\n", "much later\n"), "much later\n");
        assert_eq!(left("x", ""), "");
    }

    #[test]
    fn the_exit_status_is_the_programs_own_or_says_why_there_is_none() {
        use OutcomeStatus as S;
        use ProcessState as P;
        for (state, status, exit_code, expected) in [
            (P::Succeeded, S::Succeeded, Some(0), 0),
            (P::Succeeded, S::Succeeded, None, 0),
            (P::Failed, S::FailedPermanent, Some(3), 3),
            (P::Failed, S::FailedPermanent, Some(-9), 137),
            (P::Failed, S::FailedPermanent, Some(0), 125),
            (P::Failed, S::FailedPermanent, None, 125),
            (P::Failed, S::Interrupted, None, 125),
            (P::Failed, S::DeadlineExceeded, Some(-9), 124),
            (P::Cancelled, S::Cancelled, Some(-9), 130),
        ] {
            let exit = exit_of(&process(state, status, exit_code));
            assert_eq!(exit.code(), expected, "{state:?} {status:?} {exit_code:?}");
        }
    }
}
