//! Where the knee is: a fit of two lines to the last windows.
//!
//! The model of a window is `m = b + s · max(0, ln f − k)`: below the knee `k` an operation takes its
//! time `b`, above it each one more in flight (`f`) makes all take longer, in proportion (`s` = 1) and
//! a little more, as targets thrash. Every knee on a grid is tried, and the answer is the mean over
//! all, weighted by how well each explains the windows: a posterior mean under a flat prior.
//!
//! The baseline `b` is known from windows below the knee that are forgotten by now. It is believed
//! within [`BELIEF`] at best, and believing in another costs at most [`CHANGED`] nats: when windows at
//! different limits show the same delay, that delay is not of our making, and the baseline has moved.
//! This is how operations that became slower for a reason of their own are told from a target that is
//! overloaded. A baseline is not moved to where nothing was tried: it could be any there.

use super::quicker::Quicker;
use super::window::Closed;

/// Windows that are remembered.
const POINTS: usize = 24;
/// The baseline is never believed more firmly than this (standard deviation).
const BELIEF: f64 = 0.02;
/// And this firmly when it has just changed (precision).
const NEW_BELIEF: f64 = 44.0;
/// How much steeper than in proportion the time grows above the knee. Targets that thrash more than this
/// look smaller than they are, those that thrash less look larger.
const SLOPE: f64 = 1.15;
/// Nats that it costs at most to believe in another baseline.
const CHANGED: f64 = 11.0;
/// Knees are tried from so far below the lowest number in flight to so far above the highest
/// (logarithms), at so many places.
const BELOW: f64 = 1.5;
/// The same while nothing is known of the baseline: nobody can say then how much of it is delay.
const BELOW_UNKNOWN: f64 = 0.15;
const ABOVE: f64 = 0.25;
const PLACES: usize = 80;
/// A window that makes the fit cost so many nats more does not belong to those before: the target has
/// changed.
const MISFIT: f64 = 12.0;
// Otherwise another baseline would look like another target each time, and never be learnt.
const _: () = assert!(MISFIT > CHANGED);
/// Weight of a window in the trend of surprises, and the trend that says that the target changes.
const TREND: f64 = 0.3;
const SLOWER: f64 = 1.05;
/// Windows that are kept when there is a trend.
const KEPT: usize = 3;
/// What the model itself is off, besides noise (standard deviation).
const MODEL_ERROR: f64 = 0.03;

#[derive(Clone, Copy, Default)]
struct Point {
    /// ln of the operations in flight.
    flight: f32,
    m: f32,
    samples: f32,
}

/// What the windows say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    /// ln of the number in flight at the knee.
    pub(super) knee: f64,
    /// ln of the normalised service time below the knee.
    pub(super) baseline: f64,
    /// Probability that the knee is above all that was tried.
    pub(super) beyond: f64,
    /// Probability that the baseline is not what it was believed to be.
    moved: f64,
    /// ln of the highest number in flight that was tried.
    pub(super) tried: f64,
    /// How much longer operations took in this window than in the quickest one.
    pub(super) rise: f64,
    /// The windows before could not be explained together with this one.
    pub(super) changed: bool,
    /// How much longer operations took in this window than without delay.
    pub(super) delay: f64,
    cost: f64,
}

/// The last windows of a target.
#[derive(Default)]
pub(super) struct Knee {
    /// The newest first.
    points: [Point; POINTS],
    len: usize,
    /// What was found last: knee and baseline.
    fit: Option<(f64, f64)>,
    cost: f64,
    trend: f64,
    quicker: Quicker,
    /// The newest window belongs to two states of the target.
    straddles: bool,
    /// What is believed of the baseline by windows that are forgotten: mean and precision.
    belief: Option<(f64, f64)>,
}

impl Knee {
    /// A window ended. `variance` is that of one duration's logarithm.
    pub(super) fn handle_window(&mut self, closed: &Closed, variance: f64) -> Fit {
        let trend = self.surprise(closed, variance);
        self.trend += TREND * (trend - self.trend);
        if self.quicker.is_alarmed() {
            self.settle_alarm(closed, variance);
        }
        if self.straddles {
            // A part of its operations ran before the change.
            self.len = 0;
        }
        self.keep(POINTS - 1, variance);
        self.points.copy_within(..self.len, 1);
        self.points[0] = Point::of(closed);
        self.len += 1;
        let is_trend = self.trend > SLOWER;
        if is_trend {
            self.keep(KEPT, variance);
        }
        let mut fit = self.fit(variance);
        self.straddles = fit.cost > self.cost + MISFIT && self.len > 1;
        if self.straddles {
            self.keep(1, variance);
            fit = self.fit(variance);
            fit.changed = true;
        }
        if is_trend || fit.changed {
            self.trend = 0.0;
            self.quicker = Quicker::default();
            fit.changed = true;
        }
        if fit.moved > 0.5 {
            self.belief = Some((fit.baseline, NEW_BELIEF));
        }
        fit.delay = closed.m - fit.baseline;
        self.fit = Some((fit.knee, fit.baseline));
        self.cost = fit.cost;
        fit
    }

    /// The window after an alarm: if it was no false one, the windows before are of a smaller target.
    fn settle_alarm(&mut self, closed: &Closed, variance: f64) {
        let Some((delay, off)) = self.expect(closed.flight.ln(), closed.m) else {
            return;
        };
        if self.quicker.settle(delay, off, noise(closed, variance)) {
            self.keep(0, variance);
            self.cost = 0.0;
            self.straddles = false;
            self.trend = 0.0;
        }
    }

    /// An operation ended, `m` off its kind's reference, with so many in flight: whether it is clear by
    /// now that the target has become larger.
    pub(super) fn handle_end(&mut self, in_flight: u32, m: f64, variance: f64) -> bool {
        let Some((delay, off)) = self.expect(f64::from(in_flight.max(1)).ln(), m) else {
            return false;
        };
        self.quicker.handle_end(delay, off, variance)
    }

    /// The delay that the last fit expects with so many in flight, and how far `m` is off its
    /// baseline.
    fn expect(&self, flight: f64, m: f64) -> Option<(f64, f64)> {
        let (knee, baseline) = self.fit.filter(|(knee, _)| knee.is_finite())?;
        Some((SLOPE * (flight - knee).max(0.0), m - baseline))
    }

    /// Forgets all but so many windows, but for what those below the knee said of the baseline.
    fn keep(&mut self, windows: usize, variance: f64) {
        let Some((knee, _)) = self.fit.filter(|_| self.len > windows) else {
            return;
        };
        for point in &self.points[windows..self.len] {
            if f64::from(point.flight) <= knee + 0.02 {
                let weight = 1.0 / point.noise(variance);
                let (mean, precision) = self.belief.unwrap_or((0.0, 0.0));
                let all = precision + weight;
                let mean = (mean * precision + f64::from(point.m) * weight) / all;
                self.belief = Some((mean, all.min(1.0 / (BELIEF * BELIEF))));
            }
        }
        self.len = windows;
    }

    /// The windows say nothing about the target as it is now; the baseline is kept.
    pub(super) fn forget(&mut self) {
        self.len = 0;
        self.cost = 0.0;
        self.straddles = false;
        self.trend = 0.0;
        self.quicker = Quicker::default();
        if let Some((knee, _)) = &mut self.fit {
            *knee = f64::INFINITY;
        }
    }

    /// How far a window is off what the last fit expects, in standard deviations.
    fn surprise(&self, closed: &Closed, variance: f64) -> f64 {
        let Some((delay, off)) = self.expect(closed.flight.ln(), closed.m) else {
            return 0.0;
        };
        ((off - delay) / noise(closed, variance).sqrt()).clamp(-4.0, 4.0)
    }

    fn fit(&self, variance: f64) -> Fit {
        let points = &self.points[..self.len];
        let flights = || points.iter().map(|point| f64::from(point.flight));
        let below = if self.belief.is_some() {
            BELOW
        } else {
            BELOW_UNKNOWN
        };
        let lowest = flights().fold(f64::INFINITY, f64::min);
        let least = lowest - below;
        let tried = flights().fold(f64::NEG_INFINITY, f64::max);
        let quickest = points.iter().map(|point| f64::from(point.m));
        let quickest = quickest.fold(f64::INFINITY, f64::min);
        #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
        let step = (tried + ABOVE - least) / (PLACES - 1) as f64;
        let mut tries = [Explained::default(); PLACES];
        let mut knee = least;
        for place in &mut tries {
            let may_move = knee >= lowest - BELOW_UNKNOWN;
            *place = explain(points, knee, self.belief, may_move, variance);
            knee += step;
        }
        let best = tries.iter().map(|explained| explained.cost);
        let cost = best.fold(f64::INFINITY, f64::min);
        let (mut all, mut knees, mut baselines) = (0.0, 0.0, 0.0);
        let (mut beyond, mut moved) = (0.0, 0.0);
        for explained in tries {
            let weight = (cost - explained.cost).exp();
            all += weight;
            knees += weight * explained.knee;
            baselines += weight * explained.baseline;
            moved += weight * f64::from(u8::from(explained.moved));
            if explained.knee > tried - step / 2.0 {
                beyond += weight;
            }
        }
        Fit {
            knee: knees / all,
            baseline: baselines / all,
            beyond: beyond / all,
            moved: moved / all,
            tried,
            rise: f64::from(points[0].m) - quickest,
            changed: false,
            delay: 0.0,
            cost,
        }
    }
}

/// A knee, the baseline that goes best with it, and what it costs to explain the windows so.
#[derive(Clone, Copy, Default)]
struct Explained {
    knee: f64,
    baseline: f64,
    /// In nats.
    cost: f64,
    /// The belief about the baseline was given up.
    moved: bool,
}

fn explain(
    points: &[Point],
    knee: f64,
    belief: Option<(f64, f64)>,
    may_move: bool,
    variance: f64,
) -> Explained {
    let (mut weights, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for point in points {
        let weight = 1.0 / point.noise(variance);
        let own = f64::from(point.m) - SLOPE * (f64::from(point.flight) - knee).max(0.0);
        weights += weight;
        sum += weight * own;
        squares += weight * own * own;
    }
    let free = sum / weights;
    let mut explained = Explained {
        knee,
        baseline: free,
        cost: (squares - weights * free * free).max(0.0) / 2.0,
        moved: false,
    };
    if let Some((believed, precision)) = belief {
        let bound = (sum + precision * believed) / (weights + precision);
        let off = squares - 2.0 * bound * sum + weights * bound * bound;
        let cost = (off + precision * (bound - believed).powi(2)).max(0.0) / 2.0;
        explained.cost += CHANGED;
        explained.moved = true;
        if cost <= explained.cost || !may_move {
            explained = Explained {
                baseline: bound,
                cost,
                moved: false,
                ..explained
            };
        }
    }
    explained
}

/// Variance of a window's mean.
fn noise(closed: &Closed, variance: f64) -> f64 {
    Point::of(closed).noise(variance)
}

impl Point {
    /// Variance of its mean.
    fn noise(&self, variance: f64) -> f64 {
        variance / f64::from(self.samples) + MODEL_ERROR * MODEL_ERROR
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "logarithms, to seven digits"
    )]
    fn of(closed: &Closed) -> Self {
        Self {
            flight: closed.flight.ln() as f32,
            m: closed.m as f32,
            samples: f64::from(closed.samples) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIANCE: f64 = 0.22;

    fn window(flight: f64, m: f64) -> Closed {
        Closed {
            m,
            samples: 24,
            flight,
            flight_max: 12,
            flight_last: 12,
            rate: 4.0,
        }
    }

    /// Windows of a target with so many slots, whose operations take `baseline`.
    fn watch(knee: &mut Knee, slots: f64, baseline: f64, flights: &[f64]) -> Fit {
        let of = |flight: f64| window(flight, baseline + (flight / slots).ln().max(0.0));
        let mut fits = flights
            .iter()
            .map(|f| knee.handle_window(&of(*f), VARIANCE));
        let first = fits.next().expect("a window");
        fits.last().unwrap_or(first)
    }

    #[test]
    fn the_knee_is_found_between_windows_below_and_above() {
        let mut knee = Knee::default();
        let fit = watch(
            &mut knee,
            8.0,
            0.4,
            &[8.0, 9.0, 10.0, 9.0, 8.0, 9.0, 10.0, 9.0],
        );
        assert!((fit.knee.exp() - 8.0).abs() < 0.8, "{fit:?}");
        assert!((fit.baseline - 0.4).abs() < 0.05, "{fit:?}");
        assert!(fit.beyond < 0.2, "{fit:?}");
    }

    #[test]
    fn without_delay_the_knee_is_above_all_that_was_tried() {
        let mut knee = Knee::default();
        let fit = watch(&mut knee, 99.0, 0.0, &[8.0, 9.0, 10.0, 9.0, 8.0]);
        assert!(fit.beyond > 0.5, "{fit:?}");
    }

    #[test]
    fn a_capacity_that_halved_is_told_from_operations_that_became_slower() {
        let mut knee = Knee::default();
        let usual = [8.0, 9.0, 10.0, 9.0, 8.0, 9.0, 10.0, 9.0];
        watch(&mut knee, 8.0, 0.0, &usual);
        let halved = watch(&mut knee, 4.0, 0.0, &[9.0]);
        assert!(
            halved.changed && (halved.knee.exp() - 4.0).abs() < 0.8,
            "{halved:?}"
        );
        let halved = watch(&mut knee, 4.0, 0.0, &[5.0]);
        assert!((halved.knee.exp() - 4.0).abs() < 0.8, "{halved:?}");

        let mut knee = Knee::default();
        watch(&mut knee, 8.0, 0.0, &usual);
        let slower = watch(&mut knee, 8.0, 1.1, &[8.0]);
        assert!(
            slower.knee.exp() < 4.0,
            "one window cannot tell: {slower:?}"
        );
        let slower = watch(&mut knee, 8.0, 1.1, &[4.0, 2.0]);
        assert!(
            slower.beyond > 0.5,
            "others at lower limits can: {slower:?}"
        );
        assert!((slower.baseline - 1.1).abs() < 0.1, "{slower:?}");
    }

    #[test]
    fn a_capacity_that_doubled_is_noticed_by_the_ends_and_then_by_a_window() {
        let mut knee = Knee::default();
        let usual = [8.0, 9.0, 10.0, 9.0, 8.0, 9.0, 10.0, 9.0];
        watch(&mut knee, 8.0, 0.0, &usual);
        watch(&mut knee, 8.0, 0.0, &usual);
        for _ in 0..100 {
            let delay = SLOPE * (10.0_f64 / 8.0).ln();
            assert!(!knee.handle_end(10, delay, VARIANCE), "all as it was");
        }
        let ends = (1..100).find(|_| knee.handle_end(10, 0.0, VARIANCE));
        assert!(
            ends.is_some_and(|ends| (10..40).contains(&ends)),
            "{ends:?}"
        );
        let fit = watch(&mut knee, 16.0, 0.0, &[14.0]);
        assert!(fit.beyond > 0.5 && fit.delay < 0.05, "{fit:?}");
        assert_eq!(knee.len, 1, "the windows before are of another target");
    }

    #[test]
    fn a_false_alarm_costs_one_window_and_nothing_is_forgotten() {
        let mut knee = Knee::default();
        let usual = [8.0, 9.0, 10.0, 9.0, 8.0, 9.0, 10.0, 9.0];
        watch(&mut knee, 8.0, 0.0, &usual);
        assert!((0..100).any(|_| knee.handle_end(10, 0.0, VARIANCE)));
        let fit = watch(&mut knee, 8.0, 0.0, &[14.0]);
        assert!((fit.knee.exp() - 8.0).abs() < 0.8, "{fit:?}");
        assert_eq!(knee.len, 9);
    }

    /// One quick window above the knee once moved the baseline to where nothing had been tried.
    #[test]
    fn a_baseline_does_not_move_to_below_all_that_was_tried() {
        let mut knee = Knee::default();
        let usual = [4.0, 5.0, 6.0, 5.0, 3.0, 5.0, 6.0, 5.0];
        watch(&mut knee, 4.0, 0.0, &usual);
        watch(&mut knee, 4.0, 0.0, &usual);
        watch(&mut knee, 4.0, 0.0, &usual);
        let fit = knee.handle_window(&window(4.0, -0.45), VARIANCE);
        assert!(fit.baseline > -0.2, "{fit:?}");
        assert!(fit.knee.exp() > 3.0, "{fit:?}");
    }
}
