//! The adaptive limit of one target or shared device: how many operations may be in flight.
//!
//! Below its capacity a target takes the same time for an operation however many are in flight; above
//! it, the time grows with their number. The limit sways a little around its place, and a fit of
//! those two lines to the last windows says where they meet (`knee`): that is the capacity, and the
//! limit is kept a little above it. That a target has become larger is not waited for: each end is
//! weighed, and the limit leaps once enough of them were quicker than they should be (`quicker`).
//! Delay alone cannot tell a target that is overloaded from operations that became slower for a
//! reason of their own; that delay grows with the limit can.
//!
//! Lineage: growth by √L is Envoy's, the guard against growth without demand is Netflix's, and that
//! delay needs a second look at another limit is the lesson of Uber's Cinnamon. `docs/FLOW.md` says what
//! was tried before the fit.
//!
//! An idle controller is 8 bytes. The first end of an operation makes a box of 16 bytes and one of about
//! 600, with 40 more for each kind of operation; after [`REST`] without work only the 16 are kept, for
//! the limit.

use std::time::{Duration, Instant};

mod knee;
mod learnt;
mod quicker;
mod window;

use learnt::Learnt;
use window::Window;

/// An idle controller keeps its limit and forgets the rest after this long.
pub const REST: Duration = Duration::from_secs(600);

/// The limit of a target of which nothing is known.
const START: f64 = 2.0;
/// What a refusal or a time-out leaves of the limit.
const CUT: f64 = 0.7;
/// What part of the limit must have been in flight once for a window to say that there is room.
const USED: f64 = 0.8;
/// A change of the limit by this much (logarithm) lets the operations in flight pass uncounted.
const SETTLE: f64 = 0.15;

/// What an operator set, and what the target takes at most. Given with every call, so that a change
/// counts at once and an idle target stores nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// The limit is never lower, unless `max` is.
    pub min: u32,
    /// The limit is never higher: the hard cap that the agent enforces itself, or an operator's.
    pub max: u32,
    /// A fixed limit (at most `max`): nothing is learnt while it is set.
    pub pin: Option<u32>,
}

impl Bounds {
    /// From 1 to a hard cap.
    pub const fn up_to(max: u32) -> Self {
        Self {
            min: 1,
            max,
            pin: None,
        }
    }

    fn bound(&self, limit: f64) -> u32 {
        let limit = self.pin.unwrap_or_else(|| whole(limit).max(self.min));
        limit.min(self.max)
    }
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It ran to its end, whatever the result.
    Ran,
    /// The target refused it.
    Busy,
    /// Nobody knows: its time was over.
    TimedOut,
}

/// The end of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// What kind of operation; durations are compared within a kind only.
    pub kind: u32,
    /// From its start on the target to its end; of no account unless it ran.
    pub service: Duration,
    /// How it ended.
    pub end: End,
    /// Operations in flight before this end, itself included.
    pub in_flight: u32,
}

/// Why a limit was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A new target: doubled, as no delay was seen.
    Doubled,
    /// A new target: the first delay was seen.
    Found,
    /// The limit was not used up: nothing is known of what lies there.
    NoDemand,
    /// No delay at the limit.
    Calm,
    /// Moved towards the capacity that was measured.
    Followed,
    /// The capacity is far from what it was.
    Jumped,
    /// Delay that is the same at every limit does not come from the limit: the baseline was raised.
    NotOurs,
    /// The target refused work.
    Busy,
    /// Work timed out.
    TimedOut,
}

/// The last change of a limit, for people.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Decision {
    /// When.
    pub at: Instant,
    /// The limit before.
    pub from: f64,
    /// And after.
    pub to: f64,
    /// Why.
    pub why: Why,
    /// Mean service time of the last window, as a multiple of the kinds' references.
    pub m: f64,
    /// Ends a second in it.
    pub x: f64,
    /// What `m` would be without self-inflicted delay.
    pub baseline: f64,
}

/// The adaptive limit of one target. See the module.
#[derive(Default)]
pub struct Controller(Option<Box<Known>>);

struct Known {
    limit: f64,
    learnt: Option<Box<Learnt>>,
}

impl Controller {
    /// Of a target of which nothing is known. Allocates nothing.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Of a target whose last limit is known.
    pub fn warm(limit: u32) -> Self {
        Self(Some(Box::new(Known {
            limit: f64::from(limit.max(1)),
            learnt: None,
        })))
    }

    /// How many operations may be in flight now.
    pub fn limit(&self, bounds: &Bounds) -> u32 {
        bounds.bound(self.0.as_ref().map_or(START, |known| known.in_force()))
    }

    /// The limit to remember for [`warm`](Self::warm); nothing where no work was seen.
    pub fn known_limit(&self) -> Option<u32> {
        self.0.as_ref().map(|known| whole(known.limit).max(1))
    }

    /// The last change of the limit; nothing after a rest.
    pub fn last_decision(&self) -> Option<&Decision> {
        self.learnt()?.decision.as_ref()
    }

    /// How long an operation of a kind takes at this target without self-inflicted delay.
    pub fn expected(&self, kind: u32) -> Option<Duration> {
        let learnt = self.learnt()?;
        let seconds = (learnt.kinds.reference(kind)? + learnt.baseline).exp();
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn learnt(&self) -> Option<&Learnt> {
        self.0.as_ref()?.learnt.as_deref()
    }

    /// An operation ended.
    pub fn handle_end(&mut self, now: Instant, bounds: &Bounds, sample: &Sample) {
        let known = self.0.get_or_insert_with(|| {
            let limit = START;
            let learnt = Some(Box::new(Learnt::new(now, true)));
            Box::new(Known { limit, learnt })
        });
        let limit = bounds.bound(known.in_force());
        let learnt = known
            .learnt
            .get_or_insert_with(|| Box::new(Learnt::new(now, false)));
        learnt.ended_at = now;
        match sample.end {
            End::Busy => known.cut(now, Why::Busy),
            End::TimedOut => known.cut(now, Why::TimedOut),
            End::Ran if learnt.skip > 0 => learnt.skip -= 1,
            End::Ran => {
                let m = learnt.window.add(now, &mut learnt.kinds, sample);
                if bounds.pin.is_none() {
                    let is_larger = m.is_some_and(|m| learnt.handle_end(m, sample.in_flight));
                    if is_larger && is_used(sample.in_flight, limit) {
                        known.leap(now, bounds, sample.in_flight);
                    }
                    known.close_full_window(now, bounds, limit);
                }
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called; nothing while idle.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let learnt = self.learnt()?;
        Some(learnt.window.due().unwrap_or(learnt.ended_at + REST))
    }

    /// Time passed: closes a window that is long enough, and lets go of what an idle one learnt.
    pub fn handle_timeout(&mut self, now: Instant, bounds: &Bounds) {
        let Some(known) = &mut self.0 else { return };
        let Some(learnt) = &known.learnt else { return };
        if now.saturating_duration_since(learnt.ended_at) >= REST {
            known.learnt = None;
            return;
        }
        if bounds.pin.is_none() {
            let limit = bounds.bound(known.in_force());
            known.close_full_window(now, bounds, limit);
        }
        if let Some(learnt) = &mut known.learnt
            && learnt.window.due().is_some_and(|due| due <= now)
        {
            learnt.window.wait();
        }
    }
}

impl Known {
    /// Where the limit stands now.
    fn in_force(&self) -> f64 {
        let learnt = self.learnt.as_ref();
        learnt.map_or(self.limit, |learnt| learnt.place(self.limit).max(1.0))
    }

    /// A refusal or a time-out: less, at once, but one reason counts once.
    fn cut(&mut self, now: Instant, why: Why) {
        let Some(learnt) = &mut self.learnt else {
            return;
        };
        let pause = Duration::from_secs_f64(2.0 * learnt.kinds.mean_seconds());
        let is_same = |at: Instant| now.saturating_duration_since(at) < pause;
        if learnt.cut_at.is_some_and(is_same) {
            return;
        }
        let from = self.limit;
        self.limit = (from * CUT).max(1.0);
        learnt.cut(now);
        learnt.skip = whole(from);
        learnt.decide_at(now, (from, self.limit), why);
    }

    /// The target has become larger, as its operations say: more, at once.
    fn leap(&mut self, now: Instant, bounds: &Bounds, in_flight: u32) {
        let Some(learnt) = &mut self.learnt else {
            return;
        };
        let from = self.limit;
        let wished = learnt.leap(now, from, in_flight);
        self.limit = within(wished, bounds);
        learnt.decide_at(now, (from, self.limit), Why::Jumped);
    }

    /// Closes the window if it says enough under the limit that was in force, and decides.
    fn close_full_window(&mut self, now: Instant, bounds: &Bounds, limit: u32) {
        let before = self.in_force();
        let Some(learnt) = &mut self.learnt else {
            return;
        };
        if !learnt.window.is_full(now, limit, &learnt.kinds) {
            return;
        }
        let window = std::mem::replace(&mut learnt.window, Window::new(now));
        let Some(closed) = window.close(now, &mut learnt.kinds) else {
            return;
        };
        let from = self.limit;
        let (wished, why) = match is_used(closed.flight_max, limit) {
            true => learnt.decide(from, &closed, bounds.max),
            false => learnt.decide_without_demand(from, &closed),
        };
        self.limit = within(wished, bounds);
        let after = learnt.place(self.limit);
        if (after / before).ln().abs() > SETTLE {
            learnt.skip = closed.flight_last.saturating_sub(1);
        }
        learnt.decision = Some(Decision {
            at: now,
            from,
            to: self.limit,
            why,
            m: closed.m.exp(),
            x: closed.rate,
            baseline: learnt.baseline.exp(),
        });
    }
}

/// Whether so many in flight say what a limit does.
fn is_used(in_flight: u32, limit: u32) -> bool {
    f64::from(in_flight) >= USED * f64::from(limit)
}

/// A limit that was wished for, as far as the bounds let it be.
fn within(wished: f64, bounds: &Bounds) -> f64 {
    wished.clamp(1.0, f64::from(bounds.max.max(1)))
}

/// The whole number next to a limit.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, as a limit may"
)]
fn whole(limit: f64) -> u32 {
    (limit + 0.5).max(0.0) as u32
}

#[cfg(test)]
mod tests;
