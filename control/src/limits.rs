//! Limits as operators set them: what may be set of which, and what contradicts itself.
//!
//! An agent's limit follows what the agent can take; an operator bounds it (`min`, `max`) or fixes it
//! (`pin`). All other limits are plain numbers (`max`). A tenant also has a weight: its share where several
//! tenants wait for one agent. A limit of 0 stops what it counts: nothing new of it is started.

use std::fmt;
use std::str::FromStr;

use protocol::flow::{Limit, LimitKey};
use protocol::ids::{AgentId, GroupId};
use protocol::limits::WEIGHT_MAX;
use uuid::Uuid;

/// The largest number that a limit may be set to.
pub const LIMIT_MAX: u32 = 1_000_000;
/// Sorts of work that may have a limit: more than this a gateway does not tell apart.
pub const WORK_LIMITS_MAX: u32 = 4096;
/// The key of the limit of everything.
pub const GLOBAL_KEY: &str = "all";

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum LimitScope {
    /// Operations on one agent.
    Agent,
    /// Operations of one sort of work on any one agent.
    Work,
    /// Operations that use a shared resource.
    Resource,
    /// A tenant's operations.
    Tenant,
    /// Operations on all agents of a group.
    Group,
    /// All operations.
    Global,
}

impl LimitScope {
    /// Every scope.
    pub const ALL: [Self; 6] = [
        Self::Agent,
        Self::Work,
        Self::Resource,
        Self::Tenant,
        Self::Group,
        Self::Global,
    ];

    /// That of a key.
    pub fn of(key: &LimitKey) -> Self {
        match key {
            LimitKey::Agent(_) => Self::Agent,
            LimitKey::Work(_) => Self::Work,
            LimitKey::Resource(_) => Self::Resource,
            LimitKey::Tenant(_) => Self::Tenant,
            LimitKey::Group(_) => Self::Group,
            LimitKey::Global => Self::Global,
        }
    }

    /// Its name in the store and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Work => "work",
            Self::Resource => "resource",
            Self::Tenant => "tenant",
            Self::Group => "group",
            Self::Global => "global",
        }
    }
}

impl fmt::Display for LimitScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LimitScope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or(())
    }
}

/// A key for people: an id with its hyphens, a name, or `all`.
pub fn key_text(key: &LimitKey) -> String {
    match key {
        LimitKey::Agent(agent) => agent.to_string(),
        LimitKey::Group(group) => group.to_string(),
        LimitKey::Work(name) | LimitKey::Resource(name) | LimitKey::Tenant(name) => name.clone(),
        LimitKey::Global => GLOBAL_KEY.to_owned(),
    }
}

/// A key as the store keeps it: 32 hex digits, a name, or `all`.
pub(crate) fn sql_key(key: &LimitKey) -> String {
    match key {
        LimitKey::Agent(agent) => agent.0.simple().to_string(),
        LimitKey::Group(group) => group.0.simple().to_string(),
        other => key_text(other),
    }
}

/// The key in the store's words; `None`: nothing that this build writes.
pub(crate) fn key_from_sql(scope: &str, key: &str) -> Option<LimitKey> {
    let id = || Uuid::try_parse(key).ok();
    Some(match scope.parse().ok()? {
        LimitScope::Agent => LimitKey::Agent(AgentId(id()?)),
        LimitScope::Group => LimitKey::Group(GroupId(id()?)),
        LimitScope::Work => LimitKey::Work(key.to_owned()),
        LimitScope::Resource => LimitKey::Resource(key.to_owned()),
        LimitScope::Tenant => LimitKey::Tenant(key.to_owned()),
        LimitScope::Global if key == GLOBAL_KEY => LimitKey::Global,
        LimitScope::Global => return None,
    })
}

/// What is set of one limit. What is not there is left to the deployment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Setting {
    /// Of an agent: the adaptive limit is never lower. From 1.
    pub min: Option<u32>,
    /// The limit, or the highest that an agent's may be. 0 stops what is counted.
    pub max: Option<u32>,
    /// Of an agent: it is this, and nothing is learnt. 0 stops it.
    pub pin: Option<u32>,
    /// Of a tenant: its share where several wait, 1–1000; 1 where nothing is set.
    pub weight: Option<u32>,
}

/// What cannot be meant.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Contradiction {
    /// Which figure.
    pub field: &'static str,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

impl Setting {
    /// Whether this may be set of a limit of this scope.
    ///
    /// # Errors
    /// The first figure that cannot be meant.
    pub fn check(&self, scope: LimitScope) -> Result<(), Contradiction> {
        let no = |field, problem: String| Err(Contradiction { field, problem });
        for (field, figure, from) in [
            ("min", self.min, 1),
            ("max", self.max, 0),
            ("pin", self.pin, 0),
        ] {
            if figure.is_some_and(|figure| !(from..=LIMIT_MAX).contains(&figure)) {
                return no(field, format!("must be {from} to {LIMIT_MAX}, or left out"));
            }
        }
        if scope != LimitScope::Agent && (self.min.is_some() || self.pin.is_some()) {
            let field = if self.min.is_some() { "min" } else { "pin" };
            let problem =
                format!("only an agent's limit adapts; a limit of scope `{scope}` is its `max`");
            return no(field, problem);
        }
        match self.weight {
            Some(_) if scope != LimitScope::Tenant => {
                return no("weight", "only a tenant has one; leave it out".to_owned());
            }
            Some(weight) if !(1..=WEIGHT_MAX).contains(&weight) => {
                return no("weight", format!("must be 1 to {WEIGHT_MAX}"));
            }
            _ => {}
        }
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            return no("min", format!("is {min}, above `max`, which is {max}"));
        }
        if let (Some(pin), Some(max)) = (self.pin, self.max)
            && pin > max
        {
            let problem =
                format!("is {pin}, above `max`, which is {max}; raise `max` or leave it out");
            return no("pin", problem);
        }
        if let (Some(pin), Some(min)) = (self.pin, self.min)
            && pin < min
        {
            let problem =
                format!("is {pin}, below `min`, which is {min}; lower `min` or leave it out");
            return no("pin", problem);
        }
        if *self == Self::default() {
            let figures = match scope {
                LimitScope::Agent => "`max`, `min` or `pin`",
                LimitScope::Tenant => "`max` or `weight`",
                _ => "`max`",
            };
            return no(
                "max",
                format!("nothing is set; give {figures}, or remove the limit"),
            );
        }
        Ok(())
    }

    /// What may be set and still is not what somebody expects. `capacity`: what the agent takes at once by
    /// its own word, where that is known.
    pub fn warnings(&self, capacity: Option<u32>) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.pin == Some(0) || self.max == Some(0) {
            warnings
                .push("it is 0: nothing new is started until it is raised or removed".to_owned());
        }
        let Some(capacity) = capacity else {
            return warnings;
        };
        for (name, figure) in [("min", self.min), ("max", self.max), ("pin", self.pin)] {
            if let Some(figure) = figure.filter(|figure| *figure > capacity) {
                warnings.push(format!(
                    "`{name}` is {figure}, but the agent takes {capacity} at once by its own word: it is \
                     never given more"
                ));
            }
        }
        warnings
    }

    /// What a gateway is told; nothing where only a weight is set.
    pub fn on_the_wire(&self, key: &LimitKey) -> Option<Limit> {
        if (self.min, self.max, self.pin) == (None, None, None) {
            return None;
        }
        Some(Limit {
            key: key.clone(),
            min: self.min.unwrap_or(1),
            max: self.max.unwrap_or(u32::MAX),
            pin: self.pin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(min: u32, max: u32, pin: u32, weight: u32) -> Setting {
        let figure = |figure| (figure != u32::MAX).then_some(figure);
        Setting {
            min: figure(min),
            max: figure(max),
            pin: figure(pin),
            weight: figure(weight),
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_the_figure() {
        use LimitScope::{Agent, Global, Group, Resource, Tenant, Work};
        const NO: u32 = u32::MAX;
        for (scope, (min, max, pin, weight), field) in [
            (Agent, (5, 4, NO, NO), "min"),
            (Agent, (0, 4, NO, NO), "min"),
            (Agent, (NO, 4, 5, NO), "pin"),
            (Agent, (3, 4, 2, NO), "pin"),
            (Agent, (NO, LIMIT_MAX + 1, NO, NO), "max"),
            (Agent, (NO, 4, NO, 2), "weight"),
            (Agent, (NO, NO, NO, NO), "max"),
            (Tenant, (NO, NO, NO, 0), "weight"),
            (Tenant, (NO, NO, NO, 1001), "weight"),
            (Tenant, (1, 4, NO, NO), "min"),
            (Group, (NO, 4, 4, NO), "pin"),
            (Work, (NO, 4, NO, 3), "weight"),
            (Resource, (NO, NO, NO, NO), "max"),
            (Global, (2, NO, NO, NO), "min"),
        ] {
            let refused = setting(min, max, pin, weight).check(scope).unwrap_err();
            assert_eq!(refused.field, field, "{scope} {min} {max} {pin} {weight}");
        }
        for (scope, (min, max, pin, weight)) in [
            (Agent, (1, 4, 2, NO)),
            (Agent, (NO, NO, 0, NO)),
            (Agent, (4, NO, NO, NO)),
            (Tenant, (NO, NO, NO, 1000)),
            (Tenant, (NO, 0, NO, 1)),
            (Work, (NO, 1, NO, NO)),
            (Global, (NO, LIMIT_MAX, NO, NO)),
        ] {
            assert_eq!(setting(min, max, pin, weight).check(scope), Ok(()));
        }
    }

    #[test]
    fn what_is_above_the_agents_own_word_is_said_and_not_refused() {
        let set = setting(9, 12, u32::MAX, u32::MAX);
        assert_eq!(set.warnings(Some(8)).len(), 2);
        assert!(set.warnings(Some(8))[1].contains("takes 8 at once"));
        assert!(set.warnings(Some(12)).is_empty());
        assert!(set.warnings(None).is_empty());
        let stop = setting(u32::MAX, 0, u32::MAX, u32::MAX);
        assert!(stop.warnings(None)[0].contains("nothing new is started"));
    }

    #[test]
    fn a_weight_alone_is_no_limit_and_an_agents_bounds_are_whole() {
        let key = LimitKey::Tenant("acme".to_owned());
        let weight = setting(u32::MAX, u32::MAX, u32::MAX, 5);
        assert_eq!(weight.on_the_wire(&key), None);
        let agent = LimitKey::Agent(AgentId(Uuid::from_u128(1)));
        let pinned = setting(u32::MAX, u32::MAX, 2, u32::MAX);
        let told = pinned.on_the_wire(&agent).unwrap();
        assert_eq!((told.min, told.max, told.pin), (1, u32::MAX, Some(2)));
    }

    #[test]
    fn keys_are_read_back_as_they_were_written() {
        let id = Uuid::from_u128(7);
        for key in [
            LimitKey::Agent(AgentId(id)),
            LimitKey::Group(GroupId(id)),
            LimitKey::Work("build".to_owned()),
            LimitKey::Resource("pool/fast".to_owned()),
            LimitKey::Tenant("acme".to_owned()),
            LimitKey::Global,
        ] {
            let scope = LimitScope::of(&key);
            assert_eq!(key_from_sql(scope.as_str(), &sql_key(&key)), Some(key));
        }
        assert_eq!(key_from_sql("global", "some"), None);
        assert_eq!(key_from_sql("agent", "nonsense"), None);
        assert_eq!(key_from_sql("planet", "earth"), None);
    }
}
