//! `drover groups …`

use clap::Subcommand;
use control::api::model::agents::{
    AssignGroup, CreateGroup, Group, PinGroup, Rebalance, RebalanceGroups,
};

use super::client::Client;
use super::{Output, print, resolve};
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List groups: the named ones, then the automatic ones that have agents
    #[command(alias = "ls")]
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
    /// Move a group to one of several agent servers now; balancing leaves it there for ten minutes
    Assign {
        /// Name or id
        group: String,
        /// HOST:PORT of the agent server's link, as `drover servers ls` has it
        server: String,
    },
    /// Move a group away from its agent server now, to the best of the others
    Drain {
        /// Name or id
        group: String,
    },
    /// Make agent servers as even as whole groups can be, now
    Rebalance {
        /// Only say what would move
        #[arg(long)]
        dry_run: bool,
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
        Command::Assign { group, server } => {
            let to = AssignGroup {
                agent_server: server,
            };
            order(client, output, &group, "assign", &to).await
        }
        Command::Drain { group } => {
            order(client, output, &group, "drain", &serde_json::json!({})).await
        }
        Command::Rebalance { dry_run } => {
            let path = ["v1", "groups", "rebalance"];
            let asked = RebalanceGroups { dry_run };
            let plan: Rebalance = client.post(&path, &asked, &super::fresh_key()).await?;
            print::value(output, &plan, rebalanced)
        }
    }
}

/// Lets a group go elsewhere, and shows it.
async fn order(
    client: &Client,
    output: Output,
    group: &str,
    order: &str,
    body: &(impl serde::Serialize + Sync),
) -> Result<Exit, Fault> {
    let id = resolve::group(client, group).await?.to_string();
    let path = ["v1", "groups", &id, order];
    let group: Group = client.post(&path, body, &super::fresh_key()).await?;
    print::value(output, &group, show)
}

fn rebalanced(plan: &Rebalance) -> String {
    let mut text = print::table(
        ["GROUP", "AGENTS", "FROM", "TO"],
        plan.moves.iter().map(|one| {
            [
                one.group.name.clone(),
                one.agents.to_string(),
                one.from.clone().unwrap_or_default(),
                one.to.clone(),
            ]
        }),
        "nothing moves: agent servers are as even as whole groups can be\n",
    );
    match (plan.moves.len(), plan.dry_run) {
        (0, _) => {}
        (count, true) => text.push_str(&format!("{count} groups would move\n")),
        (count, false) => text.push_str(&format!(
            "{count} groups move, two a second; `drover servers ls` shows how far they are\n"
        )),
    }
    text
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
        [
            "NAME",
            "SLOT",
            "EPOCH",
            "CONNECTED",
            "KIND",
            "AGENT SERVER",
            "ID",
        ],
        groups.iter().map(|group| {
            [
                group.name.clone(),
                group.slot.to_string(),
                group.epoch.to_string(),
                format!("{}/{}", group.connected, group.agents),
                kind(group).to_owned(),
                print::or_dash(group.agent_server.as_ref()),
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
        ("assigned to", assigned(group)),
        ("created", Some(group.created_at.to_string())),
    ])
}

fn assigned(group: &Group) -> Option<String> {
    let to = group.assigned.as_ref()?;
    Some(match group.assigned_until {
        Some(until) => format!("{to}, until {until}"),
        None => to.clone(),
    })
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
            assigned: None,
            assigned_until: None,
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

    #[test]
    fn a_rebalance_says_what_moves_and_whether_it_does() {
        use control::api::model::agents::{GroupMove, GroupRef};
        let one = GroupMove {
            group: GroupRef {
                id: Uuid::nil(),
                name: "rack-7".to_owned(),
            },
            agents: 31,
            from: Some("a.example:7444".to_owned()),
            to: "b.example:7444".to_owned(),
        };
        let said = |dry_run, moves: &[GroupMove]| {
            rebalanced(&Rebalance {
                dry_run,
                moves: moves.to_vec(),
            })
        };
        let moves = std::slice::from_ref(&one);
        assert!(said(true, moves).contains("1 groups would move"));
        let now = said(false, moves);
        assert!(now.contains("1 groups move, two a second"), "{now}");
        assert!(
            now.contains("rack-7") && now.contains("b.example:7444"),
            "{now}"
        );
        assert!(said(false, &[]).contains("nothing moves"));
    }

    #[test]
    fn a_group_that_was_assigned_says_until_when() {
        let mut one = group("rack-1", 1, false, 3);
        assert_eq!(assigned(&one), None);
        one.assigned = Some("a.example:7444".to_owned());
        one.assigned_until = Some(Timestamp(1));
        let shown = show(&one);
        assert!(
            shown.contains("a.example:7444, until 1970-01-01T00:00:00.001Z"),
            "{shown}"
        );
    }
}
