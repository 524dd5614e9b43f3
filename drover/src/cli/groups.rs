//! `drover groups …`

use clap::Subcommand;
use control::api::model::agents::{CreateGroup, Group};

use super::client::Client;
use super::{Output, print, resolve};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List groups
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Make a group
    Create {
        /// 1–128 characters of a-z 0-9 - _ .
        name: String,
    },
    /// Show one group
    Show {
        /// Name or id
        group: String,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List { limit } => {
            let groups: Vec<Group> = client.list(&["v1", "groups"], &[], limit).await?;
            print::value(output, &groups, |groups| list(groups))
        }
        Command::Create { name } => {
            let group: Group = client
                .post(
                    &["v1", "groups"],
                    &CreateGroup { name },
                    &super::fresh_key(),
                )
                .await?;
            print::value(output, &group, show)
        }
        Command::Show { group } => {
            let id = resolve::group(client, &group).await?.to_string();
            let group: Group = client.get(&["v1", "groups", &id], &[]).await?;
            print::value(output, &group, show)
        }
    }
}

fn list(groups: &[Group]) -> String {
    print::table(
        ["NAME", "SLOT", "EPOCH", "CONNECTED", "KIND", "ID"],
        groups.iter().map(|group| {
            [
                group.name.clone(),
                group.slot.to_string(),
                group.epoch.to_string(),
                format!("{}/{}", group.connected, group.agents),
                kind(group).to_owned(),
                group.id.to_string(),
            ]
        }),
        "no groups",
    )
}

fn show(group: &Group) -> String {
    print::facts(&[
        ("id", Some(group.id.to_string())),
        ("name", Some(group.name.clone())),
        ("kind", Some(kind(group).to_owned())),
        ("slot", Some(group.slot.to_string())),
        ("epoch", Some(group.epoch.to_string())),
        (
            "connected",
            Some(format!("{} of {} agents", group.connected, group.agents)),
        ),
        ("created", Some(group.created_at.to_string())),
    ])
}

fn kind(group: &Group) -> &'static str {
    if group.automatic {
        "automatic"
    } else {
        "named"
    }
}
