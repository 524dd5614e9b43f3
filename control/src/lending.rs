//! Lends limits that span homes (of a shared resource, a tenant, or everything) to the homes of a gateway.
//!
//! ```text
//!   homes ── Reported ──▶ Lender ── a Parent for each limit in use ──▶ Lend, AskUse ──▶ homes
//!                           ▲ set_limits: what operators set
//!                           ▲ handle_duty: whether this process server is the one that lends
//! ```
//!
//! Exactly one process server lends: it holds a duty in the store, with a term that grows whenever another
//! server takes it (`store/workers.rs`). It believes in the duty for less time than the store gives it, so
//! that it has stopped before the next one begins; the next one lends nothing before the last lease has
//! ended (see [`Parent`]).
//!
//! The parent of a limit is made when somebody first uses it, and forgotten when nobody has for a minute, so
//! limits that nobody uses cost nothing. Its children are the home shards, by their numbers: a report says
//! how many there are.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::flow::lending::{Lease, Report, Term};
use protocol::flow::{Limit, LimitKey};
use protocol::ids::ShardId;
use protocol::limits::{CREDIT_LEASE, CREDITS_PER_FRAME_MAX, LIMITS_MAX};
use protocol::link::Request;

pub mod parent;

pub use parent::Parent;

use parent::MARGIN;

/// The parent of a limit that nobody uses is kept so long.
const KEPT: Duration = Duration::from_secs(60);

/// The duty to lend, as long as this server may believe in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Duty {
    /// Higher with every server that takes it.
    pub term: u32,
    /// Nothing is lent from then on, unless the duty is prolonged.
    pub until: Instant,
}

/// The duty, and what follows from it.
struct Held {
    duty: Duty,
    /// What others lent before may be used until then.
    quiet_until: Instant,
}

/// Home shards of all gateways together; those beyond are lent nothing.
const HOMES_MAX: u16 = 1024;

/// See the module.
#[derive(Default)]
pub struct Lender {
    /// Those that span homes.
    limits: BTreeMap<LimitKey, u32>,
    held: Option<Held>,
    /// Parents made here: each has a term of its own.
    made: u32,
    /// Home shards of the gateway, or of all; 0: none has spoken.
    shards: u16,
    parents: BTreeMap<LimitKey, Parent>,
    outputs: VecDeque<Request>,
}

impl Lender {
    /// Nothing is set and nothing lent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the limits that operators set; those of one home are left out. Replaces all.
    pub fn set_limits(&mut self, now: Instant, limits: &[Limit]) {
        let spans = |limit: &&Limit| {
            matches!(
                limit.key,
                LimitKey::Resource(_) | LimitKey::Tenant(_) | LimitKey::Global
            )
        };
        let spanning = limits.iter().take(LIMITS_MAX).filter(spans);
        let figure = |limit: &Limit| limit.pin.unwrap_or(limit.max).min(limit.max);
        self.limits = spanning
            .map(|limit| (limit.key.clone(), figure(limit)))
            .collect();
        let limits = &self.limits;
        self.parents.retain(|key, _| limits.contains_key(key));
        for (key, parent) in &mut self.parents {
            if let Some(limit) = limits.get(key) {
                parent.set_limit(now, *limit);
            }
        }
    }

    /// Whether there is anything to lend, so that somebody should have the duty.
    pub fn is_wanted(&self) -> bool {
        !self.limits.is_empty()
    }

    /// The duty was taken or prolonged, or another server has it.
    pub fn handle_duty(&mut self, now: Instant, duty: Option<Duty>) {
        match (&mut self.held, duty) {
            // Nobody has lent in between, or the term would be another.
            (Some(held), Some(duty)) if held.duty.term == duty.term => held.duty = duty,
            (_, duty) => {
                self.parents.clear();
                self.outputs.clear();
                self.held = duty.map(|duty| Held {
                    duty,
                    quiet_until: now + CREDIT_LEASE + MARGIN,
                });
            }
        }
    }

    /// A home shard spoke.
    pub fn handle_reported(
        &mut self,
        now: Instant,
        shard: ShardId,
        shards: u16,
        reports: &[(LimitKey, Report)],
    ) {
        self.take_shards(now, shards);
        if !self.may_lend(now) || shard.0 >= self.shards {
            return;
        }
        for (key, report) in reports {
            if let Some(parent) = self.parent(now, key, report) {
                parent.handle_report(now, shard.0, report);
            }
        }
        let keys: Vec<LimitKey> = reports.iter().map(|(key, _)| key.clone()).collect();
        self.lend(now, &keys);
    }

    /// Takes the passing of time; call about once in
    /// [`CREDIT_PERIOD`](protocol::limits::CREDIT_PERIOD).
    pub fn handle_tick(&mut self, now: Instant) {
        if !self.may_lend(now) {
            return;
        }
        self.parents
            .retain(|_, parent| !parent.has_rested(now, KEPT));
        let keys: Vec<LimitKey> = self.parents.keys().cloned().collect();
        self.lend(now, &keys);
    }

    /// The next request for the gateway.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.outputs.pop_front()
    }

    /// Permits of a limit that homes may use together, where it is lent here: for people.
    pub fn lent(&self, key: &LimitKey) -> Option<u32> {
        Some(self.parents.get(key)?.lent())
    }

    fn may_lend(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|held| now < held.duty.until)
    }

    /// A gateway with another number of shards is another gateway: its homes are others, and what the
    /// old ones were lent must end first.
    fn take_shards(&mut self, now: Instant, shards: u16) {
        let shards = shards.min(HOMES_MAX);
        if self.shards == shards {
            return;
        }
        if self.shards > 0
            && let Some(held) = &mut self.held
        {
            held.quiet_until = now + CREDIT_LEASE + MARGIN;
        }
        self.shards = shards;
        self.parents.clear();
    }

    /// The parent of a limit that is set; made where somebody has use for it.
    fn parent(&mut self, now: Instant, key: &LimitKey, report: &Report) -> Option<&mut Parent> {
        let limit = *self.limits.get(key)?;
        if !self.parents.contains_key(key) {
            let held = self.held.as_ref().filter(|_| !report.rests())?;
            self.made += 1;
            let term = Term(u64::from(held.duty.term) << 32 | u64::from(self.made));
            let parent = Parent::new(now, term, limit, held.quiet_until, 0..self.shards);
            self.parents.insert(key.clone(), parent);
        }
        self.parents.get_mut(key)
    }

    /// Writes what is due of these limits: one message a home, and one for all that are asked.
    fn lend(&mut self, now: Instant, keys: &[LimitKey]) {
        let mut leases: BTreeMap<u16, Vec<(LimitKey, Lease)>> = BTreeMap::new();
        let mut asked: Vec<LimitKey> = Vec::new();
        for key in keys {
            let Some(parent) = self.parents.get_mut(key) else {
                continue;
            };
            parent.handle_timeout(now);
            while let Some((child, lease)) = parent.poll_lease() {
                leases.entry(child).or_default().push((key.clone(), lease));
            }
            if parent.poll_ask(now) {
                asked.push(key.clone());
            }
        }
        for (child, leases) in leases {
            let shard = ShardId(child);
            let pieces = leases.chunks(CREDITS_PER_FRAME_MAX);
            let lend = pieces.map(|piece| Request::Lend {
                shard,
                leases: piece.to_vec(),
            });
            self.outputs.extend(lend);
        }
        let pieces = asked.chunks(CREDITS_PER_FRAME_MAX);
        let ask = pieces.map(|piece| Request::AskUse {
            keys: piece.to_vec(),
        });
        self.outputs.extend(ask);
    }
}

#[cfg(test)]
mod tests;
