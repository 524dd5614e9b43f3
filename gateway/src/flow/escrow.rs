//! Limits that span groups: a parent hands whole sub-credits to the owners of groups, on leases.
//!
//! ```text
//!   child ── Report{n, holds, in use, wants} ──▶ parent      each second, or when it wants more
//!   child ◀── Lease{answers n, credit, seq} ───── parent      rebalanced each second by demand
//! ```
//!
//! **The sum of what children may use never exceeds the limit**, whatever is lost, late or repeated:
//!
//! - The parent counts for each child the *most* that it may believe in: the greatest credit of any
//!   lease that it has not answered, and what it said it holds and uses. It lends only what is left.
//! - A child's lease runs from the moment at which it *sent* the report that the lease answers, the
//!   parent's count from the moment at which it *wrote* the lease. So the child's ends first, on
//!   clocks that run alike, without being set alike.
//! - A child that takes less first drains: what is in use counts until it is given back.
//! - What a silent child holds comes back only after its lease **and** when its work was counted by
//!   its next owner (a higher incarnation, which agents obey from then on).
//! - A new parent knows its children (the groups) and lends nothing until each has answered one of
//!   its own leases (so that no late report is taken for a new one) or was fenced, and the leases of
//!   the parent before have ended. Its first leases only prolong.
//!
//! A parent must not write leases any more when the next one begins: that is its own ownership's
//! business (a lease in the store), as it is for a group's owner.

use std::time::Duration;

mod child;
mod parent;

pub use child::Child;
pub use parent::{Parent, UnknownChild};

/// How long a lease lasts.
pub const LEASE: Duration = Duration::from_secs(5);
/// How often children report and the parent rebalances.
pub const PERIOD: Duration = Duration::from_secs(1);
/// The parent waits this much longer than a lease lasts: clocks of two machines do not run at
/// exactly the same speed.
pub const MARGIN: Duration = Duration::from_millis(250);

/// Says which parent speaks: a later one has a higher term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Term(pub u64);

/// Says which owner of the child's group speaks: its epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Incarnation(pub u64);

/// A child tells its parent. Numbered, so that late ones are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Which owner of the group.
    pub incarnation: Incarnation,
    /// Of this incarnation; each is higher than the one before.
    pub number: u64,
    /// The newest lease that it obeys.
    pub term: Term,
    /// Its number.
    pub lease: u64,
    /// The credit that it holds; it grants nothing beyond.
    pub holds: u32,
    /// Permits in use: granted, or running.
    pub in_use: u32,
    /// Permits that it could use besides.
    pub wants: u32,
}

/// A parent tells a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// For which owner of the group.
    pub incarnation: Incarnation,
    /// Which parent.
    pub term: Term,
    /// Of this term and child; each is higher than the one before.
    pub lease: u64,
    /// The report that it answers; the lease runs from when that was sent.
    pub answers: u64,
    /// How many permits may be in use.
    pub credit: u32,
    /// It prolongs what the child holds and may lower it, but raises nothing: the parent does not
    /// know yet what others hold.
    pub only_prolongs: bool,
}

#[cfg(test)]
mod tests;
