//! `drover api-tokens …`: tokens for people and programs.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use control::api::model::access::{ApiToken, CreateApiToken, CreatedApiToken, Role};

use super::client::Client;
use super::{Output, print};
use crate::config::value;
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make an API token; its text is shown once
    Create {
        /// Whose it is
        name: String,
        /// What it may do
        #[arg(long, default_value = "viewer")]
        role: RoleName,
        /// It stops working after this time; else never
        #[arg(long, value_name = "TIME", value_parser = value::seconds)]
        ttl: Option<Duration>,
    },
    /// List API tokens
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Make an API token useless
    Revoke {
        /// The token's id, as in `drover api-tokens list`
        id: String,
    },
}

/// The roles as words of the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleName {
    /// Read
    Viewer,
    /// And run processes
    Operator,
    /// And decide who gets in
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::Create { name, role, ttl } => {
            let request = CreateApiToken {
                name,
                role: role.into(),
                ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
            };
            let created: CreatedApiToken = client
                .post(&["v1", "api-tokens"], &request, &super::fresh_key())
                .await?;
            print::value(output, &created, |created| format!("{}\n", created.token))
        }
        Command::List { limit } => {
            let tokens: Vec<ApiToken> = client.list(&["v1", "api-tokens"], &[], limit).await?;
            print::value(output, &tokens, |tokens| list(tokens))
        }
        Command::Revoke { id } => {
            client.delete(&["v1", "api-tokens", &id]).await?;
            print::value(output, &serde_json::json!({ "revoked": id }), |_| {
                format!("{id} can not be used any more\n")
            })
        }
    }
}

fn list(tokens: &[ApiToken]) -> String {
    print::table(
        ["ID", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"],
        tokens.iter().map(|token| {
            [
                token.id.to_string(),
                token.name.clone(),
                print::word(&token.role),
                token.created_at.to_string(),
                print::or_dash(token.expires_at),
                print::or_dash(token.last_used_at),
            ]
        }),
        "no API tokens",
    )
}
