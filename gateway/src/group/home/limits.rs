//! The limits that operators set, as one home applies them.

use protocol::flow::{Limit, LimitKey, Line};
use protocol::ids::{AgentId, GroupId};
use protocol::limits::{LIMITS_MAX, RESOURCES_MAX};
use rustc_hash::FxHashMap;

use crate::flow::controller::Bounds;
use crate::flow::ledger::{Key, Scope, Vector};

/// Sorts of work that have a limit; their numbers share a key with the member's.
const WORKS_MAX: u32 = 1 << 12;
/// Limits that span homes and that one line counts against: its resources, its tenant, all.
const SPANNING_MAX: usize = RESOURCES_MAX + 2;
const _: () = assert!(LIMITS_MAX <= 2 * WORKS_MAX as usize);

/// See the module. Without any limit it is empty and costs nothing.
#[derive(Default)]
pub(super) struct Limits {
    agents: FxHashMap<AgentId, Limit>,
    /// With the number of the sort.
    works: FxHashMap<String, (u32, u32)>,
    groups: FxHashMap<GroupId, u32>,
    /// Those that span homes, by number.
    spanning: Vec<Spanning>,
    /// Their numbers.
    resources: FxHashMap<String, u32>,
    tenants: FxHashMap<String, u32>,
    global: Option<u32>,
}

/// A limit that spans homes.
struct Spanning {
    name: LimitKey,
    key: Key,
    /// As the operator set it.
    set: u32,
    /// What this home may use of it.
    credit: u32,
}

/// The number of the limit that a key counts, if that spans homes.
pub(super) fn spanning(key: Key) -> Option<u32> {
    match key.scope() {
        Scope::Resource | Scope::Tenant | Scope::Global => Some(key.number()),
        Scope::Agent | Scope::AgentClass | Scope::Group => None,
    }
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
                key => new.add_spanning(key, fixed),
            }
        }
        new
    }

    /// A limit that spans homes: what it is here is what is lent.
    fn add_spanning(&mut self, name: LimitKey, set: u32) {
        let number = super::index_u32(self.spanning.len());
        let scope = match &name {
            LimitKey::Resource(name) => {
                self.resources.insert(name.clone(), number);
                Scope::Resource
            }
            LimitKey::Tenant(name) => {
                self.tenants.insert(name.clone(), number);
                Scope::Tenant
            }
            LimitKey::Global => {
                self.global = Some(number);
                Scope::Global
            }
            LimitKey::Agent(_) | LimitKey::Work(_) | LimitKey::Group(_) => return,
        };
        if let Some(key) = Key::new(scope, number) {
            self.spanning.push(Spanning {
                name,
                key,
                set,
                credit: 0,
            });
        }
    }

    /// The number of a limit that spans homes.
    pub(super) fn number(&self, key: &LimitKey) -> Option<u32> {
        match key {
            LimitKey::Resource(name) => self.resources.get(name).copied(),
            LimitKey::Tenant(name) => self.tenants.get(name).copied(),
            LimitKey::Global => self.global,
            LimitKey::Agent(_) | LimitKey::Work(_) | LimitKey::Group(_) => None,
        }
    }

    /// The limits that span homes: number, key, name.
    pub(super) fn spanning_keys(&self) -> impl Iterator<Item = (u32, Key, &LimitKey)> {
        let numbered = (0..).zip(&self.spanning);
        numbered.map(|(number, limit)| (number, limit.key, &limit.name))
    }

    /// The names of those limits, by number.
    pub(super) fn spanning_names(&mut self) -> Vec<LimitKey> {
        let spanning = std::mem::take(&mut self.spanning);
        spanning.into_iter().map(|limit| limit.name).collect()
    }

    /// This home may use so many permits of such a limit from now on; its key, if that is a change.
    pub(super) fn set_credit(&mut self, number: u32, credit: u32) -> Option<Key> {
        let limit = self.spanning.get_mut(number as usize)?;
        let before = std::mem::replace(&mut limit.credit, credit);
        (before != credit).then_some(limit.key)
    }

    /// The key of a limit that spans homes.
    pub(super) fn spanning_key(&self, name: &LimitKey) -> Option<Key> {
        let limit = self.spanning.get(self.number(name)? as usize)?;
        Some(limit.key)
    }

    /// What a limit that spans homes is for all of them, by its key.
    pub(super) fn set_for_all(&self, key: Key) -> Option<u32> {
        let limit = self.spanning.get(spanning(key)? as usize)?;
        Some(limit.set)
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
            Scope::Resource | Scope::Tenant | Scope::Global => {
                let limit = self.spanning.get(key.number() as usize)?;
                Some(limit.name.clone())
            }
            Scope::Agent => None,
        }
    }

    /// What a limit besides an agent's own is, where it counts something here.
    pub(super) fn set_here(&self, key: &LimitKey) -> Option<u32> {
        match key {
            LimitKey::Work(name) => self.works.get(name).map(|(_, limit)| *limit),
            LimitKey::Group(group) => self.groups.get(group).copied(),
            LimitKey::Resource(_) | LimitKey::Tenant(_) | LimitKey::Global => {
                self.set_for_all(self.spanning_key(key)?)
            }
            LimitKey::Agent(_) => None,
        }
    }

    /// What a member's operations of a sort of work count against, where that has a limit.
    pub(super) fn work_key(&self, work: &str, member: u32) -> Option<Key> {
        let (number, _) = self.works.get(work)?;
        let number = member.checked_mul(WORKS_MAX)?.checked_add(*number)?;
        Key::new(Scope::AgentClass, number)
    }

    /// Whether a permit may be given before anybody asks: only the agent's own limit is then known to
    /// have room.
    pub(super) fn allow_offers(&self) -> bool {
        self.works.is_empty() && self.groups.is_empty() && self.spanning.is_empty()
    }

    /// The limits besides the agent's that a line's operations count against at a member of a group (by
    /// its index), each with what it is. Of an agent without a session only those that others share.
    pub(super) fn of(
        &self,
        member: Option<u32>,
        group: (u32, GroupId),
        line: &Line,
    ) -> impl Iterator<Item = (Key, u32)> + use<> {
        let work = self.works.get(&line.work).and_then(|(_, limit)| {
            let key = self.work_key(&line.work, member?)?;
            Some((key, *limit))
        });
        let group = self.groups.get(&group.1).and_then(|limit| {
            let key = Key::new(Scope::Group, group.0)?;
            Some((key, *limit))
        });
        let spanning = self.spanning_of(line);
        work.into_iter()
            .chain(group)
            .chain(spanning.into_iter().flatten())
    }

    /// Those that span homes, with the credit that this home has.
    fn spanning_of(&self, line: &Line) -> [Option<(Key, u32)>; SPANNING_MAX] {
        let mut found = [None; SPANNING_MAX];
        if self.spanning.is_empty() {
            return found;
        }
        let resources = line.resources.iter().take(RESOURCES_MAX);
        let resources = resources.map(|name| self.resources.get(name).copied());
        let tenant = self.tenants.get(&line.tenant).copied();
        let numbers = resources.chain([tenant, self.global]);
        for (place, number) in found.iter_mut().zip(numbers) {
            let limit = number.and_then(|number| self.spanning.get(number as usize));
            *place = limit.map(|limit| (limit.key, limit.credit));
        }
        found
    }
}

/// The keys of a line. At most as many as a vector takes.
pub(super) fn vector(keys: impl Iterator<Item = (Key, u32)>) -> Vector {
    Vector::new(keys.map(|(key, _)| key)).unwrap_or_default()
}
