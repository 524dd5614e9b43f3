//! `drover servers …`

use clap::Subcommand;
use control::api::model::agent_servers::AgentServer;

use super::client::Client;
use super::{Output, print};
use crate::fault::{Exit, Fault};

/// A deployment has no more.
const SERVERS_MAX: usize = 1000;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List agent servers on machines of their own
    #[command(alias = "list")]
    Ls,
    /// Give an agent server's groups to the others, until it is started again
    Drain {
        /// HOST:PORT of its link, as the list has it
        server: String,
    },
    /// Give an agent server its share of the groups again
    Undrain {
        /// HOST:PORT of its link, as the list has it
        server: String,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    let (server, order) = match command {
        Command::Ls => {
            let servers: Vec<AgentServer> = client
                .list(&["v1", "agent-servers"], &[], SERVERS_MAX)
                .await?;
            return print::value(output, &servers, |servers| list(servers));
        }
        Command::Drain { server } => (server, "drain"),
        Command::Undrain { server } => (server, "undrain"),
    };
    let server: AgentServer = client
        .post(
            &["v1", "agent-servers", &server, order],
            &serde_json::json!({}),
            &super::fresh_key(),
        )
        .await?;
    print::value(output, &server, said)
}

fn list(servers: &[AgentServer]) -> String {
    print::table(
        [
            "LINK",
            "STATE",
            "GROUPS",
            "AGENTS",
            "CAPACITY",
            "SHARDS",
            "ADDRESSES",
            "RUN",
        ],
        servers.iter().map(|server| {
            [
                server.link.clone(),
                state(server).to_owned(),
                server.groups.to_string(),
                server.agents.to_string(),
                server.capacity.to_string(),
                server.shards.to_string(),
                server.addresses.join(" "),
                server.run.to_string(),
            ]
        }),
        "no agent server is listed: those that process servers reach over a link are, and this deployment has none, or \
         none was reached yet\n",
    )
}

fn state(server: &AgentServer) -> &'static str {
    match (server.alive, server.draining) {
        (false, _) => "gone",
        (true, true) => "draining",
        (true, false) => "up",
    }
}

fn said(server: &AgentServer) -> String {
    match server.draining {
        true => format!(
            "{} drains: {} groups go to the others, two a second; it can be stopped when `drover servers ls` \
             shows none\n",
            server.link, server.groups
        ),
        false => format!("{} is given groups\n", server.link),
    }
}

#[cfg(test)]
mod tests {
    use control::api::model::Timestamp;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_state_of_a_server_is_a_word_and_a_drain_says_what_comes_next() {
        let server = |alive, draining| AgentServer {
            link: "a.example:7444".to_owned(),
            run: Uuid::nil(),
            addresses: vec!["a.example:7443".to_owned()],
            shards: 2,
            capacity: 10_000,
            alive,
            draining,
            groups: 32,
            agents: 100,
            renewed_at: Timestamp(1),
        };
        let all = [server(true, false), server(true, true), server(false, true)];
        assert_eq!(all.each_ref().map(state), ["up", "draining", "gone"]);
        let listed = list(&all);
        assert!(listed.contains("a.example:7443"), "{listed}");
        assert!(said(&all[1]).contains("32 groups go to the others"));
        assert!(said(&all[0]).contains("is given groups"));
        assert!(list(&[]).contains("no agent server"));
    }
}
