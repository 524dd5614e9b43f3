//! What is measured, by the name that it has outside.

use std::fmt;

macro_rules! names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $about:literal;)*) => {
        /// A kind of time that is measured.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Name { $($(#[$doc])* $variant,)* }

        impl Name {
            /// All of them, in the order in which people read them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name outside.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// From where to where.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $about,)* }
            }
        }
    };
}

names! {
    /// An agent comes in.
    Handshake = "handshake", "from an agent's first packet to its welcome";
    /// A process that waits for its turn.
    CommandQueue = "command_queue", "from a process becoming ready to its claim";
    /// A command's way there and back.
    CommandWire = "command_wire", "from a command's dispatch to the news of its end, without what its agent worked on it";
    /// A command at work.
    CommandAgent = "command_agent", "what agents say that they worked on a command";
    /// A command, all of its way.
    CommandTotal = "command_total", "from a command's dispatch to the news of its end";
    /// A message between shards.
    Mailbox = "mailbox", "from putting a message into a shard's mailbox to handling it";
    /// The gateway's loop.
    ShardTurn = "shard_turn", "one turn of a shard's loop, without waiting";
    /// The store.
    StoreCommit = "store_commit", "from the begin of a transaction to the end of its commit";
    /// The process server.
    EngineBatch = "engine_batch", "from handing a batch to the store to its commit";
    /// A process, all of its life.
    Process = "process", "from a process's creation to its end";
    /// The API.
    Api = "api", "from a request's head to the head of its answer, by route";
}

impl Name {
    /// The one that is called so.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|name| name.as_str() == text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_nobody_shares_one() {
        for name in Name::ALL {
            assert_eq!(Name::parse(name.as_str()), Some(*name));
        }
        assert_eq!(Name::parse("Handshake"), None);
    }
}
