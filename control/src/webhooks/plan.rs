//! What is to be told to whom, and when: a pure state machine over all webhooks.
//!
//! ```text
//!   log ─ handle_page ─▶ window ─ poll_attempt ─▶ (HTTP) ─ handle_ended ─▶ results ─ poll_write ─▶ store
//!                          ▲                                                 │           cursor + rows,
//!                     poll_read                   retries ◀── handle_written ┘           one transaction
//! ```
//!
//! A webhook's cursor stands before the first event that is neither delivered nor kept as a row: a
//! crash repeats what was on its way, and loses nothing. Every webhook has a window and a pace of
//! its own, so that a receiver that is slow, dead or hostile costs nobody else anything.
//!
//! Time and chance are arguments; reading, writing and sending are [`super::courier`]'s work.

mod hook;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use uuid::Uuid;

use self::hook::Hook;
use super::events::{self, Logged, Message};
use super::sign::Secret;
use super::verdict::{Ended, Timing};
use crate::clock::UnixMs;
use crate::store::webhooks::{WebhookRow, WebhookWrite};

/// Attempts under way to all receivers.
pub(crate) const FLIGHTS_MAX: usize = 32;
/// Of these, attempts to receivers that have failed several times in a row: the others are kept for
/// those that work.
const FAILING_FLIGHTS_MAX: usize = 16;

/// What the store knows of a webhook.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Its row.
    pub(crate) row: WebhookRow,
    /// Its deliveries that wait: when, and which event.
    pub(crate) waiting: Vec<(UnixMs, u64)>,
    /// Events behind its cursor that have a row all the same: they are not told anew.
    pub(crate) beyond: Vec<u64>,
}

/// Where to, and how to sign.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Receiver {
    /// The webhook.
    pub(crate) webhook: Uuid,
    /// As it was given.
    pub(crate) url: String,
    /// Signs first.
    pub(crate) secret: Secret,
    /// Signs as well, until then.
    pub(crate) old: Option<(Secret, UnixMs)>,
}

impl Receiver {
    /// The secrets that sign at `now`, the newest first.
    pub(crate) fn secrets(&self, now: UnixMs) -> impl Iterator<Item = &Secret> {
        let old = self.old.as_ref().filter(|(_, until)| now < *until);
        std::iter::once(&self.secret).chain(old.map(|(secret, _)| secret))
    }
}

/// Something to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// To whom.
    pub(crate) receiver: Arc<Receiver>,
    /// The event.
    pub(crate) seq: u64,
    /// What; `None`: another attempt, whose message is in the store.
    pub(crate) message: Option<Message>,
    /// It counts among those to failing receivers.
    failing: bool,
}

/// How an attempt ended, with what its row needs.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    /// What was sent.
    pub(crate) message: Message,
    /// Attempts for this event, this one included.
    pub(crate) attempts: u32,
    /// When the first one was.
    pub(crate) first_at: UnixMs,
    /// What came of it.
    pub(crate) ended: Ended,
}

/// Figures of one webhook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HookFigures {
    /// Which.
    pub(crate) webhook: Uuid,
    /// Events behind the newest.
    pub(crate) lag: u64,
    /// Attempts under way.
    pub(crate) flights: usize,
}

/// The plan.
pub(crate) struct Plan {
    hooks: BTreeMap<Uuid, Hook>,
    timing: Timing,
    flights: usize,
    failing_flights: usize,
    /// The newest event known.
    tip: u64,
    /// There may be newer ones.
    fresh: bool,
    /// Who had the last attempt: the next one in order is asked first.
    turn: Uuid,
    /// Who of those that lag was read for last.
    read_turn: Uuid,
}

impl Plan {
    /// A plan without webhooks.
    pub(crate) fn new(timing: Timing) -> Self {
        Self {
            hooks: BTreeMap::new(),
            timing,
            flights: 0,
            failing_flights: 0,
            tip: 0,
            fresh: true,
            turn: Uuid::nil(),
            read_turn: Uuid::nil(),
        }
    }

    /// These are the webhooks now; those that are disabled or not there get nothing more.
    pub(crate) fn handle_webhooks(&mut self, all: Vec<Known>, now: UnixMs) {
        let mut before = std::mem::take(&mut self.hooks);
        for known in all {
            let id = known.row.id;
            if known.row.disabled.is_some() {
                continue;
            }
            let hook = match before.remove(&id) {
                Some(mut hook) => {
                    hook.update(known);
                    hook
                }
                None => Hook::new(known, now),
            };
            self.hooks.insert(id, hook);
        }
        self.fresh = true;
    }

    /// Something may have happened; `tip`: the newest event, if that is known.
    pub(crate) fn handle_recorded(&mut self, tip: Option<u64>) {
        self.fresh = true;
        self.tip = self.tip.max(tip.unwrap_or(0));
    }

    /// Whether anybody is to be told anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Behind which events to read next: at most two places. One serves all that are up to date,
    /// the other one of those that lag, in turn.
    pub(crate) fn poll_read(&mut self) -> Vec<u64> {
        let hungry = || self.hooks.iter().filter(|(_, hook)| hook.is_hungry());
        let Some(top) = hungry().map(|(_, hook)| hook.read).max() else {
            return Vec::new();
        };
        let mut places = Vec::new();
        let lags = |hook: &Hook| hook.read < top;
        let lagging = hungry()
            .find(|(id, hook)| lags(hook) && **id > self.read_turn)
            .or_else(|| hungry().find(|(_, hook)| lags(hook)))
            .map(|(id, hook)| (*id, hook.read));
        if self.fresh || top < self.tip {
            self.fresh = false;
            places.push(top);
        }
        if let Some((id, place)) = lagging {
            self.read_turn = id;
            places.push(place);
        }
        places
    }

    /// The events behind `after`; `more`: the page was full.
    pub(crate) fn handle_page(&mut self, after: u64, page: &[Logged], more: bool) {
        let (Some(first), Some(last)) = (page.first(), page.last()) else {
            self.tip = self.tip.min(after);
            return;
        };
        self.fresh |= more;
        self.tip = self.tip.max(last.event.seq);
        let served = |hook: &Hook| hook.read >= after && hook.is_hungry();
        for hook in self.hooks.values_mut().filter(|hook| served(hook)) {
            hook.skip_trimmed(first.event.seq);
        }
        for logged in page {
            let name = logged.name();
            let mut made: Option<Message> = None;
            for hook in self.hooks.values_mut() {
                if served(hook) && hook.read < logged.event.seq {
                    let mut message = None;
                    if hook.wants(logged, &name) {
                        let make = || events::message(logged, name.clone());
                        message = Some(made.get_or_insert_with(make).clone());
                    }
                    hook.take(logged.event.seq, message);
                }
            }
        }
    }

    /// The next thing to be sent, if anything can be sent now. Call until there is nothing.
    pub(crate) fn poll_attempt(&mut self, now: UnixMs) -> Option<Attempt> {
        if self.flights >= FLIGHTS_MAX {
            return None;
        }
        let failing_room = self.failing_flights < FAILING_FLIGHTS_MAX;
        let behind = (Bound::Excluded(self.turn), Bound::Unbounded);
        let ready = |hook: &Hook| hook.is_ready(now) && (failing_room || !hook.is_failing());
        let id = self
            .hooks
            .range(behind)
            .chain(self.hooks.range(..=self.turn))
            .find(|(_, hook)| ready(hook))
            .map(|(id, _)| *id)?;
        let hook = self.hooks.get_mut(&id)?;
        let failing = hook.is_failing();
        let (seq, message) = hook.start(now)?;
        self.turn = id;
        self.flights += 1;
        self.failing_flights += usize::from(failing);
        Some(Attempt {
            receiver: Arc::clone(&hook.receiver),
            seq,
            message,
            failing,
        })
    }

    /// An attempt is over. `None`: its row is no longer there, and nothing was sent.
    pub(crate) fn handle_ended(
        &mut self,
        attempt: &Attempt,
        tried: Option<Tried>,
        now: UnixMs,
        chance: f64,
    ) {
        self.flights = self.flights.saturating_sub(1);
        if attempt.failing {
            self.failing_flights = self.failing_flights.saturating_sub(1);
        }
        if let Some(hook) = self.hooks.get_mut(&attempt.receiver.webhook) {
            hook.end(attempt, tried, now, chance, &self.timing);
        }
    }

    /// Everything that is to be written now; with `all` also cursors that have moved over events
    /// which nobody wants. Report back with [`handle_written`](Self::handle_written).
    pub(crate) fn poll_write(&mut self, now: UnixMs, all: bool) -> Vec<WebhookWrite> {
        self.hooks
            .values_mut()
            .filter_map(|hook| hook.write(now, all))
            .collect()
    }

    /// The writes are durable, or `ok` is false and none of them was made.
    pub(crate) fn handle_written(&mut self, writes: Vec<WebhookWrite>, ok: bool, now: UnixMs) {
        for write in writes {
            if let Some(hook) = self.hooks.get_mut(&write.webhook) {
                if ok {
                    hook.written(&write, now);
                } else {
                    hook.not_written(write);
                }
            }
        }
    }

    /// Whether there is more to read or to write at once.
    pub(crate) fn wants_turn(&self) -> bool {
        self.hooks.values().any(|hook| {
            let reads = hook.is_hungry() && (self.fresh || hook.read < self.tip);
            reads || hook.has_results()
        })
    }

    /// When something that waits can be sent at the earliest, if nothing else happens.
    pub(crate) fn next_due(&self, now: UnixMs) -> Option<UnixMs> {
        self.hooks
            .values()
            .filter_map(Hook::due)
            .filter(|due| *due > now)
            .min()
    }

    /// How every webhook fares.
    pub(crate) fn figures(&self) -> Vec<HookFigures> {
        self.hooks
            .iter()
            .map(|(id, hook)| HookFigures {
                webhook: *id,
                lag: self.tip.saturating_sub(hook.cursor()),
                flights: hook.flights(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
