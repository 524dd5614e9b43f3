//! Which agents may connect, with which keys, and which groups this gateway owns.
//!
//! Every shard keeps a copy, fed by the same requests, because a session may begin on any shard
//! and must be judged there without asking. The copies are small: 72 bytes an agent on each shard,
//! measured with 100,000. They agree as soon as every shard has taken the request.
//!
//! The tables hash with FxHash: agents' and groups' ids are made by the control plane, so nobody
//! can choose them to collide.

use protocol::identity::KeyHash;
use protocol::ids::{AgentId, Epoch, GroupId, Slot};
use protocol::limits::{ADDRESSES_MAX, AGENTS_MAX, GROUPS_MAX, PINNED_KEYS_MAX};
use protocol::link::{Request, Target};
use rustc_hash::FxHashMap;
use slab::Slab;

/// What the directory says about an agent at the door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission<'a> {
    /// Let it in.
    Admit {
        /// The agent and its group.
        target: Target,
        /// The group's epoch.
        epoch: Epoch,
    },
    /// The agent is not known here, or not by this key.
    NotPinned,
    /// The agent was revoked.
    Revoked,
    /// Another gateway owns the agent's group: `host:port` of it; empty while nobody is known to.
    Redirect(&'a [String]),
}

/// The directory has reached a limit and did not take the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DirectoryFull {
    /// Too many agents.
    #[error("this gateway knows {AGENTS_MAX} agents, its limit; move groups to another gateway")]
    Agents,
    /// Too many groups.
    #[error("this gateway knows {GROUPS_MAX} groups, its limit; move groups to another gateway")]
    Groups,
}

/// Agents and groups, as every shard knows them.
#[derive(Default)]
pub(crate) struct Directory {
    agents: FxHashMap<AgentId, Entry>,
    /// The few agents that have a second key, while one replaces the other.
    second_keys: FxHashMap<AgentId, KeyHash>,
    groups: Slab<Group>,
    group_names: FxHashMap<GroupId, u32>,
}

/// An agent, kept small: there are as many as agents, on every shard.
#[derive(Clone, Copy)]
struct Entry {
    key: KeyHash,
    /// Index of its group, or `REVOKED`.
    group: u32,
}

const REVOKED: u32 = u32::MAX;
const _: () = assert!(size_of::<(AgentId, Entry)>() <= 52);
const _: () = assert!(PINNED_KEYS_MAX == 2);

struct Group {
    id: GroupId,
    slot: Slot,
    epoch: Epoch,
    owner: Owner,
    /// Agents that refer to it.
    agents: u32,
}

enum Owner {
    Here,
    Elsewhere(Vec<String>),
}

impl Directory {
    /// How many agents it knows.
    pub(crate) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Takes a request that goes to every shard; others do nothing.
    ///
    /// # Errors
    /// [`DirectoryFull`]: the entry was not taken; the agents that it is about will be refused.
    pub(crate) fn handle_request(&mut self, request: &Request) -> Result<(), DirectoryFull> {
        match request {
            Request::AssignGroup { group, slot, epoch } => {
                let group = self.group(*group, *slot)?;
                if *epoch > group.epoch {
                    group.slot = *slot;
                    group.epoch = *epoch;
                    group.owner = Owner::Here;
                }
            }
            Request::ReleaseGroup {
                group,
                epoch,
                addresses,
            } => self.release(*group, *epoch, addresses)?,
            Request::AdmitAgent { target, keys } => self.pin(*target, keys)?,
            Request::RevokeAgent { agent } => self.revoke(*agent),
            _ => {}
        }
        Ok(())
    }

    /// The agent for which a request takes away a key that has opened the door until now.
    pub(crate) fn unpins(&self, request: &Request) -> Option<AgentId> {
        let Request::AdmitAgent { target, keys } = request else {
            return None;
        };
        let entry = self.agents.get(&target.agent)?;
        let old = [Some(&entry.key), self.second_keys.get(&target.agent)];
        let gone = |key: &KeyHash| !keys.iter().take(PINNED_KEYS_MAX).any(|kept| kept == key);
        let unpins = entry.group != REVOKED && old.into_iter().flatten().any(gone);
        unpins.then_some(target.agent)
    }

    /// Judges an agent that has proved, by its certificate, who it is and that it holds `key`.
    pub(crate) fn admit(&self, agent: AgentId, key: &KeyHash) -> Admission<'_> {
        let Some(entry) = self.agents.get(&agent) else {
            return Admission::NotPinned;
        };
        if entry.group == REVOKED {
            return Admission::Revoked;
        }
        if entry.key != *key && self.second_keys.get(&agent) != Some(key) {
            return Admission::NotPinned;
        }
        let group = &self.groups[entry.group as usize];
        match &group.owner {
            Owner::Here => Admission::Admit {
                target: Target {
                    agent,
                    group: group.id,
                    slot: group.slot,
                },
                epoch: group.epoch,
            },
            Owner::Elsewhere(addresses) => Admission::Redirect(addresses),
        }
    }

    /// The group of that name, made when it is new; nobody owns it then.
    fn group(&mut self, id: GroupId, slot: Slot) -> Result<&mut Group, DirectoryFull> {
        let index = self.group_index(id, slot)?;
        Ok(&mut self.groups[index as usize])
    }

    fn group_index(&mut self, id: GroupId, slot: Slot) -> Result<u32, DirectoryFull> {
        if let Some(index) = self.group_names.get(&id) {
            return Ok(*index);
        }
        if self.groups.len() >= GROUPS_MAX {
            return Err(DirectoryFull::Groups);
        }
        let index = self.groups.insert(Group {
            id,
            slot,
            epoch: Epoch(0),
            owner: Owner::Elsewhere(Vec::new()),
            agents: 0,
        });
        let index = u32::try_from(index).map_err(|_| DirectoryFull::Groups)?;
        self.group_names.insert(id, index);
        Ok(index)
    }

    /// A group that is known elsewhere stays known without agents: they may enrol into it here.
    fn release(
        &mut self,
        id: GroupId,
        epoch: Epoch,
        addresses: &[String],
    ) -> Result<(), DirectoryFull> {
        let known = self.group_names.get(&id).copied();
        let index = match known {
            Some(index) => index,
            None if addresses.is_empty() => return Ok(()),
            // Its slot is of no use before it is assigned here, which says it.
            None => self.group_index(id, Slot(0))?,
        };
        let group = &mut self.groups[index as usize];
        if epoch < group.epoch {
            return Ok(());
        }
        group.epoch = epoch;
        let known = addresses.iter().take(ADDRESSES_MAX).cloned().collect();
        group.owner = Owner::Elsewhere(known);
        self.drop_group_if_unused(index);
        Ok(())
    }

    fn pin(&mut self, target: Target, keys: &[KeyHash]) -> Result<(), DirectoryFull> {
        let agent = target.agent;
        let Some(key) = keys.first() else {
            self.forget(agent);
            return Ok(());
        };
        if self.agents.len() >= AGENTS_MAX && !self.agents.contains_key(&agent) {
            return Err(DirectoryFull::Agents);
        }
        let group = self.group_index(target.group, target.slot)?;
        self.groups[group as usize].agents += 1;
        let entry = Entry { key: *key, group };
        if let Some(old) = self.agents.insert(agent, entry) {
            self.leave_group(old.group);
        }
        match keys.get(1) {
            Some(second) => self.second_keys.insert(agent, *second),
            None => self.second_keys.remove(&agent),
        };
        Ok(())
    }

    /// A revoked agent stays known, so that it can be told apart from one that never was. When
    /// there is no room for that, it is refused all the same.
    fn revoke(&mut self, agent: AgentId) {
        self.forget(agent);
        if self.agents.len() < AGENTS_MAX {
            let entry = Entry {
                key: KeyHash([0; 32]),
                group: REVOKED,
            };
            self.agents.insert(agent, entry);
        }
    }

    fn forget(&mut self, agent: AgentId) {
        self.second_keys.remove(&agent);
        if let Some(old) = self.agents.remove(&agent) {
            self.leave_group(old.group);
        }
    }

    fn leave_group(&mut self, index: u32) {
        if index != REVOKED {
            self.groups[index as usize].agents -= 1;
            self.drop_group_if_unused(index);
        }
    }

    fn drop_group_if_unused(&mut self, index: u32) {
        let group = &self.groups[index as usize];
        let nowhere = matches!(&group.owner, Owner::Elsewhere(known) if known.is_empty());
        if group.agents == 0 && nowhere {
            self.group_names.remove(&group.id);
            self.groups.remove(index as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyHash = KeyHash([1; 32]);
    const SECOND: KeyHash = KeyHash([2; 32]);
    const OTHER: KeyHash = KeyHash([3; 32]);

    fn group(number: u8) -> GroupId {
        GroupId::from_bytes([number; 16])
    }

    fn target(agent: u8, in_group: u8) -> Target {
        Target {
            agent: AgentId::from_bytes([agent; 16]),
            group: group(in_group),
            slot: Slot(in_group),
        }
    }

    fn assign(in_group: u8, epoch: u64) -> Request {
        Request::AssignGroup {
            group: group(in_group),
            slot: Slot(in_group),
            epoch: Epoch(epoch),
        }
    }

    fn release(in_group: u8, epoch: u64, address: &str) -> Request {
        Request::ReleaseGroup {
            group: group(in_group),
            epoch: Epoch(epoch),
            addresses: vec![address.to_owned()],
        }
    }

    fn admit(agent: u8, in_group: u8, keys: &[KeyHash]) -> Request {
        Request::AdmitAgent {
            target: target(agent, in_group),
            keys: keys.to_vec(),
        }
    }

    fn directory(requests: &[Request]) -> Directory {
        let mut directory = Directory::default();
        for request in requests {
            directory.handle_request(request).unwrap();
        }
        directory
    }

    fn admitted(agent: u8, in_group: u8, epoch: u64) -> Admission<'static> {
        Admission::Admit {
            target: target(agent, in_group),
            epoch: Epoch(epoch),
        }
    }

    #[test]
    fn either_pinned_key_opens_the_door_and_no_other() {
        let directory = directory(&[assign(1, 4), admit(7, 1, &[KEY, SECOND])]);
        let agent = target(7, 1).agent;
        assert_eq!(directory.admit(agent, &KEY), admitted(7, 1, 4));
        assert_eq!(directory.admit(agent, &SECOND), admitted(7, 1, 4));
        assert_eq!(directory.admit(agent, &OTHER), Admission::NotPinned);
        let stranger = target(8, 1).agent;
        assert_eq!(directory.admit(stranger, &KEY), Admission::NotPinned);
    }

    #[test]
    fn pinning_again_replaces_both_keys() {
        let mut directory = directory(&[assign(1, 4), admit(7, 1, &[KEY, SECOND])]);
        directory.handle_request(&admit(7, 1, &[OTHER])).unwrap();
        let agent = target(7, 1).agent;
        assert_eq!(directory.admit(agent, &KEY), Admission::NotPinned);
        assert_eq!(directory.admit(agent, &SECOND), Admission::NotPinned);
        assert_eq!(directory.admit(agent, &OTHER), admitted(7, 1, 4));
        directory.handle_request(&admit(7, 1, &[])).unwrap();
        assert_eq!(directory.admit(agent, &OTHER), Admission::NotPinned);
    }

    #[test]
    fn a_key_that_is_taken_away_is_noticed_and_nothing_else_is() {
        let mut directory = directory(&[assign(1, 4), admit(7, 1, &[KEY, SECOND])]);
        let agent = target(7, 1).agent;
        for keys in [&[OTHER][..], &[KEY], &[SECOND, OTHER], &[]] {
            assert_eq!(directory.unpins(&admit(7, 1, keys)), Some(agent));
        }
        assert_eq!(directory.unpins(&admit(7, 2, &[SECOND, KEY])), None);
        assert_eq!(directory.unpins(&admit(8, 1, &[OTHER])), None, "a new one");
        let revoke = Request::RevokeAgent { agent };
        assert_eq!(directory.unpins(&revoke), None, "that closes by itself");
        directory.handle_request(&revoke).unwrap();
        assert_eq!(directory.unpins(&admit(7, 1, &[OTHER])), None);
    }

    #[test]
    fn a_revoked_agent_is_told_apart_from_an_unknown_one_and_can_come_back() {
        let agent = target(7, 1).agent;
        let mut directory = directory(&[
            assign(1, 4),
            admit(7, 1, &[KEY]),
            Request::RevokeAgent { agent },
        ]);
        assert_eq!(directory.admit(agent, &KEY), Admission::Revoked);
        directory.handle_request(&admit(7, 1, &[OTHER])).unwrap();
        assert_eq!(directory.admit(agent, &KEY), Admission::NotPinned);
        assert_eq!(directory.admit(agent, &OTHER), admitted(7, 1, 4));
    }

    #[test]
    fn agents_of_a_released_group_are_sent_to_its_owner() {
        let mut directory = directory(&[
            assign(1, 4),
            admit(7, 1, &[KEY]),
            release(1, 5, "b.example:4433"),
        ]);
        let agent = target(7, 1).agent;
        let addresses = ["b.example:4433".to_owned()];
        assert_eq!(
            directory.admit(agent, &KEY),
            Admission::Redirect(&addresses)
        );
        directory.handle_request(&assign(1, 5)).unwrap();
        assert_eq!(
            directory.admit(agent, &KEY),
            Admission::Redirect(&addresses)
        );
        directory.handle_request(&assign(1, 6)).unwrap();
        assert_eq!(directory.admit(agent, &KEY), admitted(7, 1, 6));
        directory
            .handle_request(&release(1, 5, "c.example:4433"))
            .unwrap();
        assert_eq!(directory.admit(agent, &KEY), admitted(7, 1, 6));
    }

    #[test]
    fn an_agent_whose_group_nobody_owns_yet_is_asked_to_come_again() {
        let directory = directory(&[admit(7, 1, &[KEY])]);
        let agent = target(7, 1).agent;
        assert_eq!(directory.admit(agent, &KEY), Admission::Redirect(&[]));
    }

    #[test]
    fn released_groups_without_agents_leave_nothing_behind() {
        let mut directory = directory(&[assign(1, 4), admit(7, 1, &[KEY])]);
        directory.handle_request(&admit(7, 2, &[KEY])).unwrap();
        let nowhere = Request::ReleaseGroup {
            group: group(1),
            epoch: Epoch(5),
            addresses: Vec::new(),
        };
        directory.handle_request(&nowhere).unwrap();
        let agent = target(7, 2).agent;
        directory
            .handle_request(&Request::RevokeAgent { agent })
            .unwrap();
        assert!(directory.groups.is_empty() && directory.group_names.is_empty());
    }

    #[test]
    fn an_agent_that_enrols_into_a_group_of_another_gateway_is_sent_there() {
        let mut directory = directory(&[release(1, 5, "b.example:4433"), admit(7, 1, &[KEY])]);
        let agent = target(7, 1).agent;
        let addresses = ["b.example:4433".to_owned()];
        assert_eq!(
            directory.admit(agent, &KEY),
            Admission::Redirect(&addresses)
        );
        directory.handle_request(&assign(1, 6)).unwrap();
        assert_eq!(directory.admit(agent, &KEY), admitted(7, 1, 6));
    }

    #[test]
    fn a_full_directory_says_so_and_keeps_what_it_has() {
        let mut directory = Directory::default();
        let numbered = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            bytes
        };
        let assign = |number: usize| Request::AssignGroup {
            group: GroupId::from_bytes(numbered(number)),
            slot: Slot(0),
            epoch: Epoch(1),
        };
        for number in 0..GROUPS_MAX {
            directory.handle_request(&assign(number)).unwrap();
        }
        let full = directory.handle_request(&assign(GROUPS_MAX));
        assert_eq!(full, Err(DirectoryFull::Groups));
        let admit = |number: usize| Request::AdmitAgent {
            target: Target {
                agent: AgentId::from_bytes(numbered(number)),
                group: GroupId::from_bytes(numbered(0)),
                slot: Slot(0),
            },
            keys: vec![KEY],
        };
        for number in 0..AGENTS_MAX {
            directory.handle_request(&admit(number)).unwrap();
        }
        let full = directory.handle_request(&admit(AGENTS_MAX));
        assert_eq!(full, Err(DirectoryFull::Agents));
        directory.handle_request(&admit(0)).unwrap();
    }
}
