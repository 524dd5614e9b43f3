//! The `exec` driver: runs programs that this machine's owner has listed, and nothing else.
//!
//! Input: `{"program": NAME, "args": […], "stdin": any JSON, "env": {…}, "timeout_ms": N}`. `NAME` is a
//! name in the agent's allow-list, never a path; there is no shell. Standard output and error are
//! streamed as progress while they come; the result is the last `OUTPUT_BYTES_MAX` bytes of
//! standard output.
//!
//! ```text
//!   exit 0 → Succeeded · 75 (EX_TEMPFAIL, sysexits.h) → FailedTransient · other, signal → FailedPermanent
//! ```
//!
//! A program that a signal ended has the exit code −signal.
//!
//! A program leads a process group of its own. On cancel and deadline the group gets SIGTERM, five
//! seconds, SIGKILL; then processes that left the group are found by the operation's mark in their
//! environment. When the program ends by itself, what it left in its group is killed, and daemons that
//! made a session of their own may stay: starting such a thing may be its purpose. What became
//! of a program that ran when the agent died cannot be told: its remains are killed, and the
//! operation ends Interrupted.

mod output;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, maybe_done};
use protocol::ids::{AgentId, OperationId};
use protocol::operation::{Channel, Outcome, OutcomeStatus};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};

use super::{Driver, Job, Lost, ProgressSink, Recovered, StopReason, StopSignal, bare_outcome};
use crate::session::clip;
use output::Tail;
use process::Group;

/// Between SIGTERM and SIGKILL. Shorter in tests, and long enough for a shell on a busy machine.
const TERM_GRACE: Duration = Duration::from_millis(if cfg!(test) { 2_000 } else { 5_000 });
/// Output may still come for so long after a program's end: a process that left its group can hold
/// the pipe open for ever. Tests do not wait for what only takes time.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5_000 });
/// `EX_TEMPFAIL` of sysexits.h: the program asks to be run again later.
const EXIT_TEMPORARY: i32 = 75;
/// What programs see unless the allow-list lets a command set it.
const BASE_ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("LANG", "C.UTF-8"),
];
/// Marks the processes of an operation: `AGENT/PROCESS/STEP`.
const MARK: &str = "DROVER_OPERATION";

/// A program that commands may run.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Absolute path of the executable.
    pub path: PathBuf,
    /// Arguments that always come first.
    #[serde(default)]
    pub args: Vec<String>,
    /// Whether commands may add arguments.
    #[serde(default = "yes")]
    pub extra_args: bool,
    /// Environment variables that commands may set.
    #[serde(default)]
    pub env: Vec<String>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    program: String,
    #[serde(default)]
    args: Vec<String>,
    stdin: Option<Box<RawValue>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    timeout_ms: Option<u64>,
}

/// The driver. See the module's page.
#[derive(Clone, Debug)]
pub struct ExecDriver {
    programs: Arc<BTreeMap<String, Program>>,
}

impl ExecDriver {
    /// A driver that runs these programs, by name.
    pub fn new(programs: BTreeMap<String, Program>) -> Self {
        Self {
            programs: Arc::new(programs),
        }
    }

    fn parse(&self, input: &[u8]) -> Result<(Input, &Program), String> {
        let input: Input = serde_json::from_slice(input).map_err(|error| {
            format!("{error}; exec takes for example {{\"program\": \"NAME\", \"args\": []}}")
        })?;
        let program = self.programs.get(&input.program).ok_or_else(|| {
            let allowed: Vec<_> = self.programs.keys().map(String::as_str).collect();
            let allowed = match allowed.is_empty() {
                true => "it allows none".to_owned(),
                false => format!("it allows: {}", allowed.join(", ")),
            };
            let name = &input.program;
            format!(
                "the agent does not allow the program `{name}`; {allowed}. Programs are allowed in \
                 [exec.programs] of the agent's agent.toml"
            )
        })?;
        if !program.extra_args && !input.args.is_empty() {
            return Err(format!(
                "`{}` takes no arguments from commands",
                input.program
            ));
        }
        if input
            .args
            .iter()
            .chain(input.env.values())
            .any(|text| text.contains('\0'))
        {
            return Err("arguments and variables cannot contain a NUL character".into());
        }
        if let Some(name) = input.env.keys().find(|name| !program.env.contains(name)) {
            return Err(format!(
                "`{}` does not let commands set `{name}`; it allows: {}",
                input.program,
                if program.env.is_empty() {
                    "none".into()
                } else {
                    program.env.join(", ")
                },
            ));
        }
        Ok((input, program))
    }
}

impl Driver for ExecDriver {
    fn validate(&self, input: &[u8]) -> Result<(), String> {
        self.parse(input).map(|_| ())
    }

    fn run(&self, job: Job) -> BoxFuture<'static, Outcome> {
        let prepared = self.parse(&job.input).map(|(input, program)| {
            let mark = mark(job.agent, job.operation);
            let mut command = Command::new(&program.path);
            command
                .args(&program.args)
                .args(&input.args)
                .env_clear()
                .envs(BASE_ENVIRONMENT)
                .envs(&input.env)
                .env(MARK, &mark)
                .current_dir("/")
                .stdin(if input.stdin.is_some() {
                    Stdio::piped()
                } else {
                    Stdio::null()
                })
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .kill_on_drop(true);
            (command, input, mark)
        });
        async move {
            match prepared {
                Ok((command, input, mark)) => run(command, input, mark, job).await,
                // The allow-list was changed after the operation was accepted.
                Err(message) => bare_outcome(OutcomeStatus::FailedPermanent, message),
            }
        }
        .boxed()
    }

    fn recover(&self, lost: Lost) -> BoxFuture<'static, Recovered> {
        async move {
            let killed = process::kill_marked(MARK, mark(lost.agent, lost.operation)).await;
            let remains = match killed {
                0 => "nothing of it was running any more".to_owned(),
                n => format!("{n} of its processes were still running and were killed"),
            };
            Recovered::Interrupted {
                message: format!(
                    "the agent stopped while the program ran, so that its result is lost; {remains}. \
                     Look whether its effect is there before it is run again"
                ),
            }
        }
        .boxed()
    }
}

fn mark(agent: AgentId, operation: OperationId) -> String {
    format!("{agent}/{operation}")
}

async fn run(mut command: Command, input: Input, mark: String, job: Job) -> Outcome {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return cannot_start(&command, &error),
    };
    let group = match Group::of(&child) {
        Ok(group) => group,
        Err(error) => return cannot_start(&command, &error),
    };
    let (mut stdout, mut stderr) = (Tail::default(), Tail::default());
    let ended = {
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let streams = streams(pipes, input.stdin, &job.progress, &mut stdout, &mut stderr);
        // May be awaited again when it is done: a program often outlives its output.
        let streams = maybe_done(streams);
        tokio::pin!(streams);
        let stopped = supervise(&group, job.stop, input.timeout_ms, streams.as_mut()).await;
        // The leader is dead and not yet reaped, so that its number still means this group.
        group.kill();
        if stopped.is_some() {
            process::kill_marked(MARK, mark).await;
        }
        let status = reap(&mut child, group).await;
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, streams).await;
        if drained.is_err() {
            tracing::info!(operation = %job.operation, "some output did not end and was left");
        }
        (stopped, status)
    };
    outcome(ended, stdout, &stderr)
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Outcome {
    let path = command.as_std().get_program().to_string_lossy();
    let message = format!("`{path}` could not be started: {error}");
    let status = match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
            OutcomeStatus::FailedTransient
        }
        _ => OutcomeStatus::FailedPermanent,
    };
    bare_outcome(status, message)
}

/// Feeds standard input and passes output on, until all of it is done.
async fn streams(
    pipes: (
        Option<ChildStdin>,
        Option<tokio::process::ChildStdout>,
        Option<tokio::process::ChildStderr>,
    ),
    input: Option<Box<RawValue>>,
    progress: &ProgressSink,
    stdout: &mut Tail,
    stderr: &mut Tail,
) {
    let (to_stdin, from_stdout, from_stderr) = pipes;
    let feed = async {
        if let (Some(mut pipe), Some(json)) = (to_stdin, input) {
            // A program that does not read its input is free to; the pipe is then broken.
            drop(pipe.write_all(json.get().as_bytes()).await);
        }
    };
    tokio::join!(
        feed,
        output::pass_on(from_stdout, Channel::Stdout, progress, stdout),
        output::pass_on(from_stderr, Channel::Stderr, progress, stderr),
    );
}

/// Waits for the program's end, and brings it about when it is to stop. Streams keep flowing.
async fn supervise(
    group: &Group,
    mut stop: StopSignal,
    timeout_ms: Option<u64>,
    mut streams: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Option<StopReason> {
    let own_timeout = async {
        match timeout_ms {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
    };
    let reason = async {
        tokio::select! {
            reason = stop.requested() => reason,
            () = own_timeout => StopReason::Deadline,
        }
    };
    tokio::pin!(reason);
    let mut flowing = true;
    let reason = loop {
        tokio::select! {
            () = group.leader_ended() => return None,
            () = streams.as_mut(), if flowing => flowing = false,
            reason = &mut reason => break reason,
        }
    };
    group.terminate();
    let grace = tokio::time::sleep(TERM_GRACE);
    tokio::pin!(grace);
    loop {
        tokio::select! {
            () = group.leader_ended() => break,
            () = streams.as_mut(), if flowing => flowing = false,
            () = &mut grace => break,
        }
    }
    Some(reason)
}

/// Collects the exit status. From here on the group's number may be given to others.
async fn reap(child: &mut Child, group: Group) -> Option<ExitStatus> {
    let status = child.wait().await;
    group.disarm();
    status.ok()
}

fn outcome(
    (stopped, status): (Option<StopReason>, Option<ExitStatus>),
    stdout: Tail,
    stderr: &Tail,
) -> Outcome {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.and_then(|status| status.code());
    let signal = status.and_then(|status| status.signal());
    let (result, mut message) = match (stopped, code, signal) {
        (Some(reason), ..) => {
            let why = match reason {
                StopReason::Cancelled => "cancelled",
                StopReason::Deadline => "its time was over",
            };
            (reason.status(), format!("stopped: {why}"))
        }
        (None, Some(0), _) => (OutcomeStatus::Succeeded, String::new()),
        (None, Some(EXIT_TEMPORARY), _) => (
            OutcomeStatus::FailedTransient,
            "it asked to be run again later (75)".into(),
        ),
        (None, Some(code), _) => (
            OutcomeStatus::FailedPermanent,
            format!("exit status {code}"),
        ),
        (None, None, signal) => {
            let signal = signal.map_or("?".into(), |signal| signal.to_string());
            (
                OutcomeStatus::FailedPermanent,
                format!("killed by signal {signal}"),
            )
        }
    };
    if result != OutcomeStatus::Succeeded
        && let Some(line) = stderr.last_line()
    {
        message.push_str(": ");
        message.push_str(&line);
    }
    clip(&mut message, protocol::limits::MESSAGE_BYTES_MAX);
    let mut outcome = bare_outcome(result, message);
    outcome.exit_code = code.or(signal.map(|signal| -signal));
    outcome.output = stdout.into_bytes();
    outcome
}

#[cfg(test)]
mod tests;
