//! The states and classes of a process, and their names in the store.

use std::fmt;
use std::str::FromStr;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $phase:ident;)*) => {
        /// How far a process is.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum State { $($(#[$doc])* $name,)* }

        impl State {
            /// Every state, in the order of life.
            pub const ALL: &'static [State] = &[$(State::$name,)*];

            /// Its name in the store and in the API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            fn phase(self) -> Phase {
                match self { $(Self::$name => Phase::$phase,)* }
            }
        }

        impl FromStr for State {
            type Err = ParseStateError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$name),)*
                    other => Err(ParseStateError(other.chars().take(32).collect())),
                }
            }
        }
    };
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// No agent has anything to do with it now.
    Waiting,
    /// An agent may know something about it.
    Active,
    /// Nothing more happens.
    Terminal,
}

states! {
    /// Not to be started yet.
    Scheduled = "scheduled", Waiting;
    /// Another process holds its resource.
    Blocked = "blocked", Waiting;
    /// Waiting for a permit of its agent.
    Ready = "ready", Waiting;
    /// Waiting for the next attempt.
    Backoff = "backoff", Waiting;
    /// Claimed: on its way to its agent.
    Leased = "leased", Active;
    /// Durably accepted by its agent.
    Running = "running", Active;
    /// The reply was lost; its agent is being asked.
    Unknown = "unknown", Active;
    /// Cancel asked for; waiting for its agent's word.
    Cancelling = "cancelling", Active;
    /// The effect happened, once.
    Succeeded = "succeeded", Terminal;
    /// It failed.
    Failed = "failed", Terminal;
    /// It was cancelled.
    Cancelled = "cancelled", Terminal;
}

impl State {
    /// Nothing more happens.
    pub fn is_terminal(self) -> bool {
        self.phase() == Phase::Terminal
    }

    /// An agent may know something about it.
    pub fn is_active(self) -> bool {
        self.phase() == Phase::Active
    }

    /// No agent has anything to do with it now.
    pub fn is_waiting(self) -> bool {
        self.phase() == Phase::Waiting
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not the state of a process")]
pub struct ParseStateError(pub String);

/// Who goes first on a busy agent: lower goes first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(u8)]
pub enum Class {
    /// Somebody is waiting for it.
    Interactive = 1,
    /// The usual.
    #[default]
    Normal = 2,
    /// Whenever there is room.
    Background = 3,
}

impl Class {
    /// As the store keeps it.
    pub fn to_sql(self) -> u8 {
        self as u8
    }

    /// From the store; what is not known counts as the usual.
    pub fn from_sql(value: u8) -> Self {
        match value {
            1 => Self::Interactive,
            3 => Self::Background,
            _ => Self::Normal,
        }
    }
}
