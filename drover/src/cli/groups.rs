//! `drover groups …`

use clap::Subcommand;
use control::api::model::agents::{CreateGroup, Group, PinGroup};

use super::client::Client;
use super::{Output, print, resolve};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List groups: the named ones, then the automatic ones that have agents
    List {
        /// Empty automatic groups too; JSON always has them
        #[arg(long)]
        all: bool,
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
    /// Put a group on one of several agent servers, and keep it there while that is there
    Pin {
        /// Name or id
        group: String,
        /// HOST:PORT of the agent server's link, as `drover servers ls` has it
        server: String,
    },
    /// Let a group go to any agent server again
    Unpin {
        /// Name or id
        group: String,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List { all, limit } => {
            let mut groups: Vec<Group> = client
                .list(&["v1", "groups"], &[], resolve::GROUPS_MAX)
                .await?;
            let hidden = arrange(&mut groups, all || output.is_json());
            groups.truncate(limit);
            print::value(output, &groups, |groups| list(groups, hidden))
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
        Command::Pin { group, server } => {
            let id = resolve::group(client, &group).await?.to_string();
            let pin = PinGroup {
                agent_server: server,
            };
            let group: Group = client.put(&["v1", "groups", &id, "pin"], &pin).await?;
            print::value(output, &group, show)
        }
        Command::Unpin { group } => {
            let id = resolve::group(client, &group).await?.to_string();
            client.delete(&["v1", "groups", &id, "pin"]).await?;
            let group: Group = client.get(&["v1", "groups", &id], &[]).await?;
            print::value(output, &group, show)
        }
    }
}

/// Named groups by name, then the automatic ones by slot, without the empty ones of these unless
/// `all` are wanted. Returns how many were left out.
fn arrange(groups: &mut Vec<Group>, all: bool) -> usize {
    let before = groups.len();
    groups.retain(|group| all || !group.automatic || group.agents > 0);
    groups.sort_by(|a, b| {
        let slot = |group: &Group| group.automatic.then_some(group.slot);
        (slot(a), &a.name).cmp(&(slot(b), &b.name))
    });
    before - groups.len()
}

fn list(groups: &[Group], hidden: usize) -> String {
    let mut text = print::table(
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
        "no group has agents, and none was made by hand\n",
    );
    if hidden > 0 {
        text.push_str(&format!(
            "({hidden} empty automatic groups are not shown; --all shows them)\n"
        ));
    }
    text
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
        ("agent server", group.agent_server.clone()),
        ("pinned to", group.pin.clone()),
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

#[cfg(test)]
mod tests {
    use control::api::model::Timestamp;
    use uuid::Uuid;

    use super::*;

    fn group(name: &str, slot: u8, automatic: bool, agents: u64) -> Group {
        Group {
            id: Uuid::nil(),
            name: name.to_owned(),
            slot,
            automatic,
            epoch: 1,
            agents,
            connected: 0,
            agent_server: None,
            pin: None,
            created_at: Timestamp(0),
        }
    }

    #[test]
    fn groups_are_in_order_and_empty_automatic_ones_are_counted_instead() {
        let fleet = || {
            vec![
                group("auto-10", 10, true, 1),
                group("auto-9", 9, true, 1),
                group("auto-8", 8, true, 0),
                group("rack-2", 200, false, 0),
                group("rack-1", 201, false, 3),
            ]
        };
        let names =
            |groups: &[Group]| -> Vec<String> { groups.iter().map(|g| g.name.clone()).collect() };
        let mut groups = fleet();
        assert_eq!(arrange(&mut groups, false), 1);
        assert_eq!(names(&groups), ["rack-1", "rack-2", "auto-9", "auto-10"]);
        assert!(list(&groups, 1).contains("(1 empty automatic"));
        let mut groups = fleet();
        assert_eq!(arrange(&mut groups, true), 0);
        assert_eq!(groups.len(), 5);
        assert!(!list(&groups, 0).contains("not shown"));
    }
}
