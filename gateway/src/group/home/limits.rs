//! The limits that operators set, as one home applies them.

use protocol::flow::{Limit, LimitKey, Line};
use protocol::ids::{AgentId, GroupId};
use protocol::limits::LIMITS_MAX;
use rustc_hash::FxHashMap;

use crate::flow::controller::Bounds;
use crate::flow::ledger::{Key, Scope, Vector};

/// Sorts of work that have a limit; their numbers share a key with the member's.
const WORKS_MAX: u32 = 1 << 12;
const _: () = assert!(LIMITS_MAX <= 2 * WORKS_MAX as usize);

/// See the module. Without any limit it is empty and costs nothing.
#[derive(Default)]
pub(super) struct Limits {
    agents: FxHashMap<AgentId, Limit>,
    /// With the number of the sort.
    works: FxHashMap<String, (u32, u32)>,
    groups: FxHashMap<GroupId, u32>,
}

impl Limits {
    /// Replaces all.
    pub(super) fn new(limits: Vec<Limit>) -> Self {
        let mut new = Self::default();
        for limit in limits.into_iter().take(LIMITS_MAX) {
            let fixed = limit.pin.unwrap_or(limit.max).min(limit.max);
            match limit.key.clone() {
                LimitKey::Agent(agent) => {
                    new.agents.insert(agent, limit);
                }
                LimitKey::Work(name) => {
                    let number = super::index_u32(new.works.len());
                    if number < WORKS_MAX {
                        new.works.insert(name, (number, fixed));
                    }
                }
                LimitKey::Group(group) => {
                    new.groups.insert(group, fixed);
                }
                // They span homes: see `Credits`.
                LimitKey::Resource(_) | LimitKey::Tenant(_) | LimitKey::Global => {}
            }
        }
        new
    }

    /// What bounds an agent's limit.
    pub(super) fn bounds(&self, agent: AgentId, capacity: u32, adaptive: bool) -> Bounds {
        let set = self.agents.get(&agent);
        let max = set.map_or(capacity, |limit| limit.max.min(capacity));
        let fixed = (!adaptive).then_some(max);
        Bounds {
            min: set.map_or(1, |limit| limit.min),
            max,
            pin: set.and_then(|limit| limit.pin).or(fixed),
        }
    }

    /// What a key of a member's line counts.
    pub(super) fn name(&self, key: Key, group: (u32, GroupId)) -> Option<LimitKey> {
        match key.scope() {
            Scope::AgentClass => {
                let mut works = self.works.iter();
                let number = key.number() % WORKS_MAX;
                let (name, _) = works.find(|(_, (of, _))| *of == number)?;
                Some(LimitKey::Work(name.clone()))
            }
            Scope::Group => Some(LimitKey::Group(group.1)),
            Scope::Agent | Scope::Resource | Scope::Tenant | Scope::Global => None,
        }
    }

    /// Whether a permit may be given before anybody asks: only the agent's own limit is then known to
    /// have room.
    pub(super) fn allow_offers(&self) -> bool {
        self.works.is_empty() && self.groups.is_empty()
    }

    /// The limits besides the agent's that a line's operations count against at a member of a group (by
    /// its index), each with what it is. Of an agent without a session only those that others share.
    pub(super) fn of(
        &self,
        member: Option<u32>,
        group: (u32, GroupId),
        line: &Line,
    ) -> impl Iterator<Item = (Key, u32)> + use<> {
        let work = self.works.get(&line.work).and_then(|(number, limit)| {
            let number = member?.checked_mul(WORKS_MAX)?.checked_add(*number)?;
            Some((Key::new(Scope::AgentClass, number)?, *limit))
        });
        let group = self.groups.get(&group.1).and_then(|limit| {
            let key = Key::new(Scope::Group, group.0)?;
            Some((key, *limit))
        });
        work.into_iter().chain(group)
    }
}

/// The keys of a line. At most as many as a vector takes.
pub(super) fn vector(keys: impl Iterator<Item = (Key, u32)>) -> Vector {
    Vector::new(keys.map(|(key, _)| key)).unwrap_or_default()
}
