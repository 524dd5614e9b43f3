//! Whether a target has become larger: a sequential test over the ends of operations.
//!
//! Each end above the knee says a little about two hypotheses: that it was delayed as it should be
//! there, or not at all. The logarithms of their likelihood ratios are summed, never below 0, and an
//! alarm is given once there are [`ALARM`] nats (Page's cumulative sum test, "Continuous inspection
//! schemes", Biometrika 1954). So what a larger capacity shows clearly is acted upon within a few
//! ends, and nobody waits for whole windows.

/// Nats that make an alarm. One of noise alone comes after some hundred ends, and costs one window at a
/// limit that is too high.
const ALARM: f64 = 4.0;
/// One end says at most so much.
const END: f64 = 1.0;

/// What speaks for a larger capacity.
#[derive(Clone, Copy, Default)]
pub(super) struct Quicker {
    nats: f64,
}

impl Quicker {
    /// Whether the alarm was given, and not settled since.
    pub(super) fn is_alarmed(self) -> bool {
        self.nats > ALARM
    }

    /// An operation ended, `off` above the baseline where `delay` was expected (both logarithms);
    /// whether this gives the alarm.
    pub(super) fn handle_end(&mut self, delay: f64, off: f64, variance: f64) -> bool {
        if self.is_alarmed() {
            return false;
        }
        let says = ratio(delay, off, variance).clamp(-END, END);
        self.nats = (self.nats + says).max(0.0);
        self.is_alarmed()
    }

    /// After the alarm a window ended at a higher limit, where the two hypotheses differ more: whether
    /// the capacity is larger. The test begins anew.
    pub(super) fn settle(&mut self, delay: f64, off: f64, variance: f64) -> bool {
        let before = std::mem::take(&mut self.nats);
        before > ALARM && before + ratio(delay, off, variance) > 0.0
    }
}

/// ln of the likelihood ratio of no delay over this delay, for a normal `off`.
fn ratio(delay: f64, off: f64, variance: f64) -> f64 {
    delay * (delay / 2.0 - off) / variance
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIANCE: f64 = 0.22;

    #[test]
    fn ends_without_the_delay_that_was_expected_give_an_alarm_soon() {
        let mut quicker = Quicker::default();
        let ends = (1..100).find(|_| quicker.handle_end(0.4, 0.0, VARIANCE));
        assert_eq!(ends, Some(11), "4 nats of 0.36 each");
        assert!(
            !quicker.handle_end(0.4, 0.0, VARIANCE),
            "one alarm is enough"
        );
    }

    #[test]
    fn ends_with_that_delay_and_ends_below_the_knee_give_none() {
        let mut quicker = Quicker::default();
        for n in 0..10_000 {
            let noise = if n % 2 == 0 { 0.45 } else { -0.45 };
            assert!(!quicker.handle_end(0.25, 0.25 + noise, VARIANCE));
            assert!(!quicker.handle_end(0.0, noise, VARIANCE));
        }
    }

    #[test]
    fn one_end_however_quick_is_no_alarm() {
        let mut quicker = Quicker::default();
        for _ in 0..4 {
            assert!(!quicker.handle_end(0.5, -9.0, VARIANCE));
        }
        assert!(quicker.handle_end(0.5, -9.0, VARIANCE));
    }

    #[test]
    fn the_window_after_an_alarm_says_whether_it_was_a_false_one() {
        let alarmed = Quicker { nats: 4.5 };
        let noise = VARIANCE / 12.0;
        for (off, is_larger) in [(0.0, true), (0.3, true), (0.55, false)] {
            let mut quicker = alarmed;
            assert!(quicker.is_alarmed());
            assert_eq!(quicker.settle(0.55, off, noise), is_larger, "{off}");
            assert!(!quicker.is_alarmed());
        }
        assert!(!Quicker::default().settle(0.55, 0.0, noise), "no alarm");
    }
}
