//! What processes wait in line for: classes, lines of demand, limits and their keys.
//!
//! A permit is taken of several limits at once: the agent's, that of a kind of work on the agent, those
//! of shared resources, the tenant's, the group's, the whole deployment's. A [`Line`] says which ones the
//! processes in it need, and who goes first.

use std::time::Duration;

use crate::ids::{AgentId, GroupId, ServerId};

pub mod lending;

/// Who goes first at one agent; the first of the list does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Class {
    /// Reconnecting, fencing, compensating: what makes room for others.
    System,
    /// Somebody is waiting for it.
    Interactive,
    /// The usual.
    #[default]
    Normal,
    /// Whenever there is room.
    Background,
}

/// Processes that wait for the same permits at one agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Line {
    /// How urgent.
    pub class: Class,
    /// Whose: at most [`NAME_BYTES_MAX`](crate::limits::NAME_BYTES_MAX) bytes.
    pub tenant: String,
    /// Which driver: durations are compared within a kind. At most
    /// [`KIND_BYTES_MAX`](crate::limits::KIND_BYTES_MAX) bytes.
    pub kind: String,
    /// What sort of work, such as `build` or `migrate`, for the agent's limit of that sort; empty: none.
    /// At most [`KIND_BYTES_MAX`](crate::limits::KIND_BYTES_MAX) bytes.
    pub work: String,
    /// What it uses that others use as well, such as `pool/fast`: sorted, each once, at most
    /// [`RESOURCES_MAX`](crate::limits::RESOURCES_MAX).
    pub resources: Vec<String>,
}

/// How many wait in a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// The sender's own number of the line; grants name it.
    pub number: u32,
    /// The line.
    pub line: Line,
    /// Processes not dispatched yet, those for which permits have been granted included.
    pub ready: u32,
    /// The earliest deadline among them, in milliseconds since the Unix epoch.
    pub deadline_ms: u64,
    /// The tenant's weight: 1–1000.
    pub weight: u32,
}

impl Demand {
    /// A line of the usual class, of nobody in particular, that needs nothing but its agent: its number
    /// is 0.
    pub fn of(kind: &str, ready: u32) -> Self {
        Self {
            number: 0,
            line: Line {
                kind: kind.to_owned(),
                ..Line::default()
            },
            ready,
            deadline_ms: u64::MAX,
            weight: 1,
        }
    }
}

/// What a limit counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LimitKey {
    /// Operations on one agent.
    Agent(AgentId),
    /// Operations of one sort of work on any one agent: the limit is each agent's own.
    Work(String),
    /// Operations that use a shared resource.
    Resource(String),
    /// A tenant's operations.
    Tenant(String),
    /// Operations on all agents of a group.
    Group(GroupId),
    /// All operations.
    Global,
}

/// A limit as an operator set it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What it counts.
    pub key: LimitKey,
    /// An adaptive limit is never lower (unless `max` is).
    pub min: u32,
    /// It is never higher.
    pub max: u32,
    /// It is this, and nothing is learnt.
    pub pin: Option<u32>,
}

/// What one agent is given, and why no more, at one moment. For people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentFlow {
    /// What it takes at once, by its own word.
    pub capacity: u32,
    /// What it is given at once.
    pub limit: u32,
    /// Operations that take a permit.
    pub running: u32,
    /// Permits that were granted and not used yet.
    pub granted: u32,
    /// What waits, at most [`LINES_MAX`](crate::limits::LINES_MAX).
    pub lines: Vec<LineFlow>,
    /// The last change of the limit, if it is remembered.
    pub decision: Option<Decision>,
}

/// A line that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineFlow {
    /// Who stated it.
    pub server: ServerId,
    /// That server's number of it.
    pub number: u32,
    /// The line itself: several servers have different numbers for it.
    pub line: Line,
    /// Without those for which permits have been granted.
    pub waiting: u32,
    /// The limit that has no room for it; nothing where it waits for its agent, or its turn there.
    pub parked: Option<Parked>,
}

/// A limit that has no room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// Which one.
    pub key: LimitKey,
    /// What it is; of one that spans homes: for all of them.
    pub limit: u32,
    /// Permits of it in use here.
    pub in_use: u32,
    /// Lines that are woken before.
    pub before: u32,
}

/// What one home shard knows of a limit that several agents share. For people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitUse {
    /// What it is; nothing where it is not set, or counts nothing here. Of a sort of work: what each agent has;
    /// of one that spans homes: for all of them.
    pub limit: Option<u32>,
    /// Permits of it in use here, granted ones included; 0 where it is not set: then nothing is counted.
    pub in_use: u32,
    /// Lines that are parked on it here.
    pub waiting: u32,
}

/// Why an adaptive limit was changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// A new agent: doubled, as no delay was seen.
    Doubled,
    /// A new agent: the first delay was seen.
    Found,
    /// The limit was not used up: nothing is known of what lies there.
    NoDemand,
    /// No delay at the limit.
    Calm,
    /// Moved towards the capacity that was measured.
    Followed,
    /// The capacity is far from what it was.
    Jumped,
    /// Operations take longer for a reason of their own.
    NotOurs,
    /// The agent refused work.
    Busy,
    /// Work timed out.
    TimedOut,
}

/// A change of an adaptive limit. All figures are thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// How long ago.
    pub age: Duration,
    /// Why.
    pub why: Why,
    /// The limit before.
    pub from: u32,
    /// And after.
    pub to: u32,
    /// Mean service time of the window, as a multiple of the kinds' references; 0: not measured.
    pub slowdown: u32,
    /// What that would be without delay that the limit causes.
    pub baseline: u32,
    /// Ends a second in the window; 0: not measured.
    pub rate: u32,
}
