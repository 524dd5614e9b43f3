//! The command line: what can be said, and which file does it.
//!
//! Everything but `serve`, `doctor`, `store`, `identity`, `agent` and `completions` is a thin client of the REST API: it sends what
//! was said, prints what came back, and knows no rule of its own.

mod agent;
mod agents;
mod api_tokens;
mod batches;
mod client;
mod dead_letters;
mod doctor;
mod follow;
mod groups;
mod health;
mod identity;
mod kinds;
mod limits;
mod locate;
mod pauses;
pub(crate) mod print;
mod processes;
mod resolve;
mod run;
mod seen;
mod servers;
mod sse;
mod store;
mod tls;
mod tokens;
mod top;
mod webhooks;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::fault::{Exit, Fault};
use crate::serve::ServeArguments;

/// Holds a fleet of hypervisors on persistent QUIC sessions and pushes work to them no faster than
/// they can take it.
#[derive(Parser, Debug)]
#[command(
    name = "drover",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "Start with `drover serve`. Exit codes and files: docs/OPERATIONS.md.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// URL of the API; else what the local server wrote into its data directory
    #[arg(long, global = true, env = "DROVER_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// API token; else the local server's admin token
    #[arg(long, global = true, env = "DROVER_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// PEM file of authorities that may vouch for an https:// API, beside this machine's
    #[arg(long, global = true, env = "DROVER_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The server's data directory [default: ./drover-data]
    #[arg(long, global = true, env = "DROVER_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How results are printed
    #[arg(
        long,
        global = true,
        env = "DROVER_OUTPUT",
        default_value = "human",
        value_name = "FORMAT"
    )]
    pub(crate) output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// Tables and sentences
    Human,
    /// JSON, one document or one line per event
    Json,
}

impl Output {
    /// Whether programs read it.
    pub(crate) fn is_json(self) -> bool {
        self == Self::Json
    }
}

/// What can be asked for.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the server
    Serve(ServeArguments),
    /// Run a process on an agent, show its output, return its exit status
    Run(run::RunArguments),
    /// Look after agents (the hypervisors' side of the line)
    #[command(subcommand)]
    Agents(agents::Command),
    /// Look after agent servers, where there are several
    #[command(subcommand)]
    Servers(servers::Command),
    /// Look after agent groups
    #[command(subcommand)]
    Groups(groups::Command),
    /// Look after join tokens, which let agents in
    #[command(subcommand)]
    Tokens(tokens::Command),
    /// Look after API tokens, which let people and programs in
    #[command(subcommand)]
    ApiTokens(api_tokens::Command),
    /// Look after processes
    #[command(subcommand)]
    Processes(processes::Command),
    /// Look at the kinds of processes that are declared
    #[command(subcommand)]
    Kinds(kinds::Command),
    /// Look after pauses: what is not to be started
    #[command(subcommand)]
    Pauses(pauses::Command),
    /// Look after limits: how much may be at work at once
    #[command(subcommand)]
    Limits(limits::Command),
    /// Do one thing to many processes
    #[command(subcommand)]
    Batches(batches::Command),
    /// Look after what has failed, and let it go on
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Look after webhooks, which tell other programs what happens
    #[command(subcommand)]
    Webhooks(webhooks::Command),
    /// Say whether the server is up and ready
    Health,
    /// Show the deployment at a glance, live, in this terminal
    Top(top::TopArguments),
    /// Look at all that a server needs, say what to do, and change nothing
    Doctor(Box<doctor::DoctorArguments>),
    /// Look after the store, be it a file or a database, without a server
    #[command(subcommand)]
    Store(store::Command),
    /// Make identities for servers on other machines
    #[command(subcommand)]
    Identity(identity::Command),
    /// Be an agent: join, run, allow programs
    #[command(subcommand)]
    Agent(agent::Command),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Reads the command line.
///
/// # Errors
/// It cannot be meant, or asks for help: [`clap::Error::exit`] says so and ends the program.
pub(crate) fn parse<W>(words: impl IntoIterator<Item = W>) -> Result<Cli, clap::Error>
where
    W: Into<OsString> + Clone,
{
    let words: Vec<W> = words.into_iter().collect();
    let read = |command: clap::Command| command.try_get_matches_from(words.clone());
    let matches = read(Cli::command()).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error,
        // Its usage would name what variables say as if it had to be given.
        _ => read(without_variables()).err().unwrap_or(error),
    })?;
    let cli = Cli::from_arg_matches(&matches)?;
    let given = matches.value_source("data_dir") == Some(ValueSource::CommandLine);
    if given && matches!(cli.command, Command::Agent(_)) {
        return Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            "--data-dir is where the server keeps its data; an agent keeps its own in --state-dir",
        ));
    }
    Ok(cli)
}

/// The command line as it is where no variable says a global flag.
fn without_variables() -> clap::Command {
    let flags = ["api", "token", "ca_file", "data_dir", "output"];
    flags.into_iter().fold(Cli::command(), |command, flag| {
        command.mut_arg(flag, |arg| arg.env(None::<&'static str>))
    })
}

/// Runs a command other than `serve` and `completions`.
pub(crate) async fn run(global: Global, command: Command) -> Result<Exit, Fault> {
    let output = global.output;
    let client = || locate::client(&global);
    match command {
        Command::Agent(command) => Box::pin(agent::run(output, command)).await,
        Command::Doctor(arguments) => doctor::run(&global, *arguments).await,
        Command::Store(command) => Box::pin(store::run(&global, command)).await,
        Command::Identity(command) => identity::run(&global, command),
        Command::Run(arguments) => run::run(&client()?, output, arguments).await,
        Command::Agents(command) => agents::run(&client()?, output, command).await,
        Command::Servers(command) => servers::run(&client()?, output, command).await,
        Command::Groups(command) => groups::run(&client()?, output, command).await,
        Command::Tokens(command) => tokens::run(&client()?, output, command).await,
        Command::ApiTokens(command) => api_tokens::run(&client()?, output, command).await,
        Command::Processes(command) => processes::run(&client()?, output, command).await,
        Command::Kinds(command) => kinds::run(&client()?, output, command).await,
        Command::Pauses(command) => pauses::run(&client()?, output, command).await,
        Command::Limits(command) => limits::run(&client()?, output, command).await,
        Command::Batches(command) => batches::run(&client()?, output, command).await,
        Command::DeadLetters(command) => dead_letters::run(&client()?, output, command).await,
        Command::Webhooks(command) => webhooks::run(&client()?, output, command).await,
        Command::Health => health::run(&locate::health(&global)?, output).await,
        Command::Top(arguments) => top::run(client()?, output, &arguments).await,
        Command::Serve(_) | Command::Completions { .. } => {
            Err(Fault::usage("this command has no client side"))
        }
    }
}

/// An idempotency key for one request of one person.
fn fresh_key() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Writes the completion script to standard output.
pub(crate) fn print_completions(shell: Shell) {
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "drover", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_agent_has_no_data_directory_and_says_what_it_has() {
        for words in [
            &["drover", "agent", "run", "--data-dir", "x"][..],
            &[
                "drover",
                "--data-dir",
                "x",
                "agent",
                "allow",
                "ls",
                "/bin/ls",
            ][..],
        ] {
            let error = parse(words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
            assert!(error.to_string().contains("--state-dir"), "{error}");
        }
        assert!(parse(["drover", "agents", "list", "--data-dir", "x"]).is_ok());
    }

    #[test]
    fn the_usage_names_no_flag_that_a_variable_may_say() {
        let words = ["drover", "processes", "lst"];
        let error = without_variables().try_get_matches_from(words).unwrap_err();
        assert!(!error.to_string().contains("--data-dir"), "{error}");
        // The variables themselves still count.
        let of = |command: clap::Command| {
            let flags = command
                .get_arguments()
                .filter(|arg| arg.get_env().is_some());
            flags.count()
        };
        assert_eq!((of(Cli::command()), of(without_variables())), (5, 0));
    }

    #[test]
    fn a_watch_can_begin_at_a_number_and_keep_to_a_type() {
        let words = [
            "processes",
            "watch",
            "--type",
            "process.finished",
            "--after",
            "7",
        ];
        let cli = parse(std::iter::once("drover").chain(words)).unwrap();
        let Command::Processes(processes::Command::Watch { kind, after, .. }) = cli.command else {
            panic!("not `watch`");
        };
        assert_eq!(
            (kind.as_deref(), after),
            (Some("process.finished"), Some(7))
        );
    }

    #[test]
    fn a_program_and_its_arguments_pass_through_untouched() {
        let cli =
            Cli::try_parse_from(["drover", "run", "hv-1", "exec", "--", "ls", "--output", "x"])
                .unwrap();
        assert!(!cli.global.output.is_json());
        let Command::Run(arguments) = cli.command else {
            panic!("not `run`");
        };
        assert_eq!(arguments.create.program, ["ls", "--output", "x"]);
    }
}
