//! Whether a gateway may dispatch: one whose groups somebody else may own by now must not.

/// What a gateway holds as long as its groups are its own. It is asked last, where a command leaves for the network:
/// whatever is asked earlier (where the command came in) says nothing about a program that stood still in between.
pub trait Lease: Send + Sync {
    /// Whether it holds at this very moment. Must read a clock, and answer in nanoseconds: it is asked for every
    /// connection with a new command, and in every turn of a shard. Once it has run out it must not hold anew for
    /// [`LAPSE`], so that every shard has seen it.
    fn holds(&self) -> bool;

    /// A command was kept back because it does not hold.
    fn fenced(&self);
}

/// A shard has its turn once a second at the least; within this every shard has had one.
pub const LAPSE: std::time::Duration = std::time::Duration::from_millis(1500);
