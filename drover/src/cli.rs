//! The command line: what can be said, and which file does it.
//!
//! Everything but `serve`, `agent`, `identity` and `completions` is a thin client of the REST API: it sends what
//! was said, prints what came back, and knows no rule of its own.

mod agent;
mod agents;
mod api_tokens;
mod batches;
mod client;
mod dead_letters;
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
mod sse;
mod tokens;
mod top;
mod webhooks;

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
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

/// Runs a command other than `serve` and `completions`.
pub(crate) async fn run(global: Global, command: Command) -> Result<Exit, Fault> {
    let output = global.output;
    let client = || locate::client(&global);
    match command {
        Command::Agent(command) => Box::pin(agent::run(output, command)).await,
        Command::Identity(command) => identity::run(&global, command),
        Command::Run(arguments) => run::run(&client()?, output, arguments).await,
        Command::Agents(command) => agents::run(&client()?, output, command).await,
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
        Command::Health => health::run(&client()?, output).await,
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
