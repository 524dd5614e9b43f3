//! What is learnt of a target that works, and what a window changes about its limit.

use std::time::Instant;

use super::knee::{Fit, Knee};
use super::window::{Closed, Kinds, Window};
use super::{Decision, Why};

/// The limit is so many times the capacity that was found, and one operation more; less than one
/// where the capacity is small, since there one more is a large part.
const HEADROOM: f64 = 1.03;
const ONE_MORE_FROM: f64 = 6.0;
/// A new target takes this much longer (logarithm) when it has enough.
const OVER: f64 = 0.4;
/// Growth of a window without delay, times the root of the limit; at least 1.
const GROWTH: f64 = 0.35;
/// Growth doubles in so many further windows without delay.
const DOUBLINGS: u32 = 4;
/// Of a target that became larger: growth at once, and with every window until there is delay.
const LEAP: f64 = 1.35;
/// Less than this (logarithm) is no delay, then.
const LEAP_DELAY: f64 = 0.1;
/// The limit stands this part above and below in turn, to see what that does; at least by so much: of a
/// small one, one more must be more than what it is rounded by.
const SWAY: f64 = 0.125;
const SWAY_UP: f64 = 1.4;
const SWAY_DOWN: f64 = 1.0;

/// What is known of a target that works. Logarithms are natural ones.
pub(super) struct Learnt {
    /// The limit is still doubled.
    pub(super) starting: bool,
    /// ln of the normalised service time without self-inflicted delay.
    pub(super) baseline: f64,
    pub(super) kinds: Kinds,
    pub(super) window: Window,
    knee: Knee,
    /// Ends still to pass uncounted.
    pub(super) skip: u32,
    /// Windows in a row without delay.
    calm: u32,
    /// Windows since the beginning: the place in the sway.
    windows: u32,
    /// The target became larger, and there is no delay yet.
    leaping: bool,
    pub(super) cut_at: Option<Instant>,
    pub(super) ended_at: Instant,
    pub(super) decision: Option<Decision>,
}

impl Learnt {
    pub(super) fn new(now: Instant, starting: bool) -> Self {
        Self {
            starting,
            baseline: 0.0,
            kinds: Kinds::default(),
            window: Window::new(now),
            knee: Knee::default(),
            skip: 0,
            calm: 0,
            windows: 0,
            leaping: false,
            cut_at: None,
            ended_at: now,
            decision: None,
        }
    }

    /// Where a limit stands in the window that is open: at its place, a little above, or below.
    pub(super) fn place(&self, limit: f64) -> f64 {
        if self.starting || self.calm > 0 {
            return limit;
        }
        let sway = limit * SWAY;
        match self.windows % 8 {
            1 | 5 => limit + sway.max(SWAY_UP),
            3 => limit - sway.max(SWAY_DOWN),
            _ => limit,
        }
    }

    /// The limit was changed between two windows, from and to: what is told is of the last window.
    pub(super) fn decide_at(&mut self, at: Instant, (from, to): (f64, f64), why: Why) {
        let baseline = self.baseline.exp();
        let last = self.decision;
        let (m, x) = last.map_or((baseline, 0.0), |last| (last.m, last.x));
        self.decision = Some(Decision {
            at,
            from,
            to,
            why,
            m,
            x,
            baseline,
        });
    }

    /// The limit was cut.
    pub(super) fn cut(&mut self, now: Instant) {
        self.starting = false;
        self.calm = 0;
        self.leaping = false;
        self.knee.forget();
        self.cut_at = Some(now);
        self.window = Window::new(now);
    }

    /// A window ended in which the limit was not used up. It cannot show that there is room for more,
    /// but it may show that there is less.
    pub(super) fn decide_without_demand(&mut self, limit: f64, closed: &Closed) -> (f64, Why) {
        self.calm = 0;
        self.leaping = false;
        let fit = self.knee.handle_window(closed, self.kinds.variance());
        self.baseline = fit.baseline;
        let is_too_much = fit.beyond < 0.1 && wished(&fit) < limit;
        self.starting &= !is_too_much;
        match is_too_much {
            true => (wished(&fit), Why::Followed),
            false => (limit, Why::NoDemand),
        }
    }

    /// A window ended under a limit: the next limit, and why.
    pub(super) fn decide(&mut self, limit: f64, closed: &Closed, max: u32) -> (f64, Why) {
        self.windows = self.windows.wrapping_add(1);
        let before = self.baseline;
        let fit = self.knee.handle_window(closed, self.kinds.variance());
        self.baseline = fit.baseline;
        let noise = self.kinds.variance() / f64::from(closed.samples);
        if self.starting {
            return self.start(limit, &fit, noise.sqrt(), max);
        }
        let step = (GROWTH * limit.sqrt()).max(1.0);
        self.leaping &= fit.delay < noise.sqrt().max(LEAP_DELAY);
        if self.leaping {
            self.calm += 1;
            return (limit * LEAP, Why::Jumped);
        }
        if fit.beyond > 0.5 {
            let step = step * f64::from(1_u32 << self.calm.min(DOUBLINGS));
            self.calm += 1;
            let why = match fit.baseline - before > 0.2 {
                true => Why::NotOurs,
                false => Why::Calm,
            };
            let proven = limit.max(fit.tried.exp());
            return (proven + step.min(proven / 2.0).max(1.0), why);
        }
        self.calm = 0;
        let why = match fit.changed {
            true => Why::Jumped,
            false => Why::Followed,
        };
        (wished(&fit).min(limit + step), why)
    }

    /// An operation ended, `m` off its kind's reference: whether it is clear by now that the target has
    /// become larger.
    pub(super) fn handle_end(&mut self, m: f64, in_flight: u32) -> bool {
        let variance = self.kinds.variance();
        !self.starting && self.knee.handle_end(in_flight, m, variance)
    }

    /// The target has become larger: the next limit, at once. What ends now began under the old one.
    pub(super) fn leap(&mut self, now: Instant, limit: f64, in_flight: u32) -> f64 {
        self.leaping = true;
        self.calm = self.calm.max(1);
        self.window = Window::new(now);
        self.skip = in_flight.saturating_sub(1);
        LEAP * limit.max(f64::from(in_flight))
    }

    /// A new target: twice as much in every window, until there is delay.
    fn start(&mut self, limit: f64, fit: &Fit, error: f64, max: u32) -> (f64, Why) {
        if fit.rise < OVER.max(2.0 * error) {
            self.starting = limit * 2.0 < f64::from(max);
            return (limit * 2.0, Why::Doubled);
        }
        self.starting = false;
        // Half of it was not too much.
        (wished(fit).clamp(limit / 2.0, limit), Why::Found)
    }
}

/// The limit for the capacity that was found.
fn wished(fit: &Fit) -> f64 {
    let capacity = fit.knee.exp();
    HEADROOM * capacity + (capacity / ONE_MORE_FROM).min(0.6)
}
