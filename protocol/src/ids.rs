//! Newtypes for every number and name that means something, so that the compiler keeps them apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The 16 bytes as they stand on the wire (RFC 9562 network order).
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// Reads the 16 bytes of the wire form.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// One hypervisor's daemon. Given at enrolment, written in its certificate, never re-used.
    AgentId
);
uuid_id!(
    /// A set of agents that one agent server owns at a time.
    GroupId
);
uuid_id!(
    /// A durable process. Version 7, so that ids sort by creation time.
    ProcessId
);
uuid_id!(
    /// One running instance of the gateway; made anew at every start.
    GatewayId
);

number_id!(
    /// Names one session within one gateway run; higher is newer.
    SessionId(u64)
);
number_id!(
    /// Ownership of a group, raised by one by every new owner (compare-and-set in the store).
    /// Agents refuse a command whose epoch is lower than the highest that they have seen.
    Epoch(u64)
);
number_id!(
    /// Raised by one by every claim of a process; a write or a command with a lower one is stale.
    Fence(u64)
);
number_id!(
    /// A batch of permits that the home shard gave to the control plane. Unique in a gateway run.
    GrantId(u64)
);
number_id!(
    /// Where a group lives on a gateway: its home shard is `slot mod shards`.
    Slot(u8)
);
number_id!(
    /// One core of a gateway: 0, 1, …
    ShardId(u16)
);
number_id!(
    /// A process server, as the gateways that it speaks with tell it from others. Given by whoever
    /// joins their links.
    ServerId(u32)
);

impl Slot {
    /// The shard that is home to this slot on a gateway of `shards` shards (at least one).
    pub fn home(self, shards: u16) -> ShardId {
        ShardId(u16::from(self.0) % shards.max(1))
    }
}

/// One step of one process: the same for every attempt, so that an agent can tell a repetition
/// from new work. Text form `PROCESS/STEP`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OperationId {
    /// The process that the step belongs to.
    pub process: ProcessId,
    /// The step within the process, from 0.
    pub step: u16,
}

impl OperationId {
    /// The operation of `step` of `process`.
    pub fn new(process: ProcessId, step: u16) -> Self {
        Self { process, step }
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.process, self.step)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({self})")
    }
}

/// The text was not `UUID/STEP`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an operation id: expected PROCESS-UUID/STEP")]
pub struct ParseOperationIdError(pub String);

impl FromStr for OperationId {
    type Err = ParseOperationIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseOperationIdError(text.chars().take(80).collect());
        let (process, step) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self {
            process: process.parse().map_err(|_| bad())?,
            step: step.parse().map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_id_survives_its_text_form() {
        let id = OperationId::new(ProcessId(Uuid::from_u128(7)), 3);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("7/x".parse::<OperationId>().is_err());
    }

    #[test]
    fn a_slot_has_a_home_whatever_the_number_of_shards() {
        assert_eq!(Slot(5).home(2), ShardId(1));
        assert_eq!(Slot(5).home(0), ShardId(0));
    }
}
