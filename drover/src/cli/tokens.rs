//! `drover tokens …`: join tokens.

use std::time::Duration;

use clap::Subcommand;
use control::api::model::access::{CreateTokens, CreatedTokens, Token};

use super::client::Client;
use super::{Output, print};
use crate::config::value;
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make join tokens; their text is shown once
    Create {
        /// The agents go into this group (name or id); else each into the emptiest
        #[arg(long)]
        group: Option<String>,
        /// How many, 1–1000
        #[arg(long)]
        count: Option<u32>,
        /// How long they can be used: 15m (default), 24h, at most 168h
        #[arg(long, value_name = "TIME", value_parser = value::seconds)]
        ttl: Option<Duration>,
    },
    /// List join tokens
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Make a join token useless
    Revoke {
        /// The token's id, as in `drover tokens list`
        id: String,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::Create { group, count, ttl } => {
            let request = CreateTokens {
                group,
                count,
                ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
            };
            let created: CreatedTokens = client
                .post(&["v1", "tokens"], &request, &super::fresh_key())
                .await?;
            print::value(output, &created, |created| {
                // Only the tokens: `TOKEN=$(drover tokens create)` works.
                created
                    .tokens
                    .iter()
                    .map(|token| format!("{}\n", token.token))
                    .collect()
            })
        }
        Command::List { limit } => {
            let tokens: Vec<Token> = client.list(&["v1", "tokens"], &[], limit).await?;
            print::value(output, &tokens, |tokens| list(tokens))
        }
        Command::Revoke { id } => {
            client.delete(&["v1", "tokens", &id]).await?;
            print::value(output, &serde_json::json!({ "revoked": id }), |_| {
                format!("{id} can not be used any more\n")
            })
        }
    }
}

fn list(tokens: &[Token]) -> String {
    print::table(
        ["ID", "STATE", "FOR", "EXPIRES", "USED BY", "FROM"],
        tokens.iter().map(|token| {
            let purpose = match (&token.rekeys, &token.group) {
                (Some(agent), _) => format!("new key of {agent}"),
                (None, Some(group)) => format!("group {}", group.name),
                (None, None) => "emptiest group".to_owned(),
            };
            [
                token.id.to_string(),
                print::word(&token.state),
                purpose,
                token.expires_at.to_string(),
                print::or_dash(token.used_by),
                print::or_dash(token.used_from.as_ref()),
            ]
        }),
        "no join tokens; make one with `drover tokens create`",
    )
}
