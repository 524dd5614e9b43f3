//! Limits that span homes (of a shared resource, a tenant, or everything): their owner lends whole
//! sub-credits to homes, on leases.
//!
//! ```text
//!   home ── Report{n, holds, in use, wants} ──▶ the limit's owner    each second while it uses or wants any
//!   home ◀── Lease{answers n, credit, number} ── the limit's owner   rebalanced each second by demand
//! ```
//!
//! The owner counts for each home the most that it may believe in, so that the sum never exceeds the
//! limit, whatever is lost, late or repeated. A home that neither uses nor wants any gives its credit
//! back, says so, and is silent.

/// Says which owner of a limit speaks: a later one has a higher term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Term(pub u64);

/// Says which run of a home speaks: a later one has a higher number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Incarnation(pub u64);

/// What a home says of one limit. Numbered, so that late ones are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Which run of the home.
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

impl Report {
    /// It holds, uses and wants nothing, and says no more until that changes or it is asked.
    pub fn rests(&self) -> bool {
        self.holds == 0 && self.in_use == 0 && self.wants == 0
    }
}

/// What the owner of a limit lends to one home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// For which run of the home.
    pub incarnation: Incarnation,
    /// Which owner.
    pub term: Term,
    /// Of this term and home; each is higher than the one before.
    pub number: u64,
    /// The report that it answers; the lease runs from when that was sent, for
    /// [`CREDIT_LEASE`](crate::limits::CREDIT_LEASE).
    pub answers: u64,
    /// How many permits may be in use.
    pub credit: u32,
    /// It prolongs what the home holds and may lower it, but raises nothing: the owner does not know
    /// yet what others hold.
    pub only_prolongs: bool,
}
