//! What follows from an attempt: done, again later, given up, or never again.

use std::time::Duration;

use crate::clock::UnixMs;

/// How long everything takes. Tests shorten it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// An attempt takes no longer, from looking the name up to the answer.
    pub timeout: Duration,
    /// The wait after the first failure is a random part of this; each further one doubles it.
    pub retry_base: Duration,
    /// No wait is a part of more than this.
    pub retry_max: Duration,
    /// An event is given up this long after its first attempt.
    pub give_up: Duration,
    /// A webhook is disabled when nothing has succeeded for this long.
    pub disable: Duration,
    /// After [`FAILING`] failures in a row, attempts of all kinds are this far apart at most.
    pub probe_max: Duration,
    /// How often there is a look for events that come without a hint, and how often a cursor is
    /// stored that moves over events which nobody wants.
    pub sweep: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            retry_base: Duration::from_secs(5),
            retry_max: Duration::from_secs(6 * 3600),
            give_up: Duration::from_secs(3 * 24 * 3600),
            disable: Duration::from_secs(5 * 24 * 3600),
            probe_max: Duration::from_secs(60),
            sweep: Duration::from_secs(2),
        }
    }
}

/// Failures in a row after which a webhook counts as failing: it gets one attempt at a time, and
/// pauses between them, until one succeeds.
pub(crate) const FAILING: u32 = 5;

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ended {
    /// The status of the answer, or why there was none.
    pub(crate) result: Result<u16, String>,
    /// When the answer asks for the next attempt.
    pub(crate) retry_after: Option<Duration>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// What follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The receiver has it.
    Done,
    /// Another attempt, not before `at`; `asked`: the receiver named the time.
    Again {
        /// When.
        at: UnixMs,
        /// Whether the receiver asked for a pause, which counts for every event.
        asked: bool,
        /// Why.
        why: String,
    },
    /// No further attempt.
    Dead {
        /// Why.
        why: String,
    },
    /// No further attempt of anything: the receiver is gone (410).
    Gone,
}

/// The attempt before has been the `attempts`-th for this event, whose first one was at `first_at`.
/// `chance` is a fresh random number, 0 ≤ chance < 1.
pub(crate) fn judge(
    ended: &Ended,
    attempts: u32,
    first_at: UnixMs,
    now: UnixMs,
    chance: f64,
    timing: &Timing,
) -> Verdict {
    let why = match &ended.result {
        Ok(200..=299) => return Verdict::Done,
        Ok(410) => return Verdict::Gone,
        Ok(status @ 300..=399) => {
            format!("the answer was {status}; redirects are not followed: update the webhook's URL")
        }
        Ok(status) => format!("the answer was {status}"),
        Err(why) => why.clone(),
    };
    let asked = ended
        .retry_after
        .filter(|_| matches!(ended.result, Ok(429 | 503)));
    let wait = match asked {
        Some(wait) => wait.clamp(Duration::from_secs(1), timing.retry_max),
        None => backoff(attempts, chance, timing),
    };
    let at = now.plus(wait);
    if at > first_at.plus(timing.give_up) {
        return Verdict::Dead { why };
    }
    Verdict::Again {
        at,
        asked: asked.is_some(),
        why,
    }
}

/// Full jitter: a random part of `retry_base` · 2ⁿ⁻¹, at most of `retry_max`, after the n-th failed
/// attempt (AWS Architecture Blog, "Exponential Backoff And Jitter").
fn backoff(attempts: u32, chance: f64, timing: &Timing) -> Duration {
    part(
        timing.retry_base,
        attempts.saturating_sub(1),
        timing.retry_max,
        chance,
    )
}

/// How long a failing webhook is left alone after its n-th failure in a row: at least half of the
/// bound, so that a dead receiver costs little.
pub(crate) fn pause(failures: u32, chance: f64, timing: &Timing) -> Duration {
    let times = failures.saturating_sub(FAILING);
    let chance = 0.5 + chance.clamp(0.0, 1.0) / 2.0;
    part(timing.retry_base, times, timing.probe_max, chance)
}

fn part(base: Duration, times: u32, max: Duration, chance: f64) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    let bound = base.saturating_mul(factor).min(max);
    bound.mul_f64(chance.clamp(0.0, 1.0))
}

/// The wait that a `Retry-After` header asks for: seconds or an HTTP date (RFC 9110 §10.2.3).
pub(crate) fn retry_after(text: &str, now: UnixMs) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`, which is RFC 2822 but for the zone's name.
    let date = text.strip_suffix("GMT")?;
    let at = time::OffsetDateTime::parse(
        &format!("{date}+0000"),
        &time::format_description::well_known::Rfc2822,
    )
    .ok()?;
    let ms = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?;
    Some(now.until(UnixMs(ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMs = UnixMs(1_795_512_600_000);

    fn ended(result: Result<u16, &str>) -> Ended {
        Ended {
            result: result.map_err(str::to_owned),
            retry_after: None,
            took: Duration::from_millis(3),
        }
    }

    fn verdict(ended: &Ended, attempts: u32, now: UnixMs, chance: f64) -> Verdict {
        judge(ended, attempts, START, now, chance, &Timing::default())
    }

    #[test]
    fn success_is_any_2xx_and_410_is_the_end() {
        for status in [200, 202, 204, 299] {
            assert_eq!(verdict(&ended(Ok(status)), 1, START, 0.5), Verdict::Done);
        }
        assert_eq!(verdict(&ended(Ok(410)), 1, START, 0.5), Verdict::Gone);
    }

    #[test]
    fn waits_are_random_parts_of_5_s_doubling_to_6_h() {
        let bound = |attempts| match verdict(&ended(Ok(500)), attempts, START, 1.0) {
            Verdict::Again { at, asked, .. } => {
                assert!(!asked);
                START.until(at).as_secs()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(bound(1), 5);
        assert_eq!(bound(2), 10);
        assert_eq!(bound(10), 2560);
        assert_eq!(bound(13), 20_480);
        assert_eq!(bound(14), 21_600);
        assert_eq!(bound(4_000_000_000), 21_600);
        let Verdict::Again { at, .. } = verdict(&ended(Err("no answer")), 3, START, 0.25) else {
            panic!("not again");
        };
        assert_eq!(START.until(at), Duration::from_secs(5));
    }

    #[test]
    fn an_event_is_given_up_after_three_days() {
        let late = START.plus(Duration::from_secs(3 * 24 * 3600 - 10));
        assert!(matches!(
            verdict(&ended(Ok(500)), 30, late, 0.0),
            Verdict::Again { .. }
        ));
        let dead = verdict(&ended(Ok(404)), 30, late, 1.0);
        assert_eq!(
            dead,
            Verdict::Dead {
                why: "the answer was 404".to_owned()
            }
        );
    }

    #[test]
    fn a_receiver_may_name_the_time_but_not_without_end() {
        let asked = |status, seconds| {
            let mut ended = ended(Ok(status));
            ended.retry_after = Some(Duration::from_secs(seconds));
            verdict(&ended, 1, START, 0.0)
        };
        for status in [429, 503] {
            let Verdict::Again { at, asked, .. } = asked(status, 120) else {
                panic!("not again");
            };
            assert!(asked);
            assert_eq!(START.until(at).as_secs(), 120);
        }
        let at = |verdict| match verdict {
            Verdict::Again { at, asked, .. } => (START.until(at).as_secs(), asked),
            other => panic!("{other:?}"),
        };
        assert_eq!(at(asked(429, 10_000_000)), (21_600, true));
        assert_eq!(at(asked(429, 0)), (1, true));
        assert_eq!(at(asked(500, 120)), (0, false), "only 429 and 503 may ask");
    }

    #[test]
    fn a_redirect_says_that_it_is_not_followed() {
        let Verdict::Again { why, .. } = verdict(&ended(Ok(302)), 1, START, 0.0) else {
            panic!("not again");
        };
        assert!(why.contains("302") && why.contains("not followed"), "{why}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UnixMs(784_111_700_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(77)));
        assert_eq!(retry_after(date, UnixMs(u64::MAX)), Some(Duration::ZERO));
        for bad in ["", "soon", "-1", "1.5", "Sun, 06 Nov"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn pauses_between_probes_grow_to_their_bound() {
        let timing = Timing::default();
        assert_eq!(pause(FAILING, 1.0, &timing), Duration::from_secs(5));
        assert_eq!(pause(FAILING + 1, 0.0, &timing), Duration::from_secs(5));
        assert_eq!(pause(FAILING + 9, 1.0, &timing), Duration::from_secs(60));
        assert_eq!(pause(u32::MAX, 0.0, &timing), Duration::from_secs(30));
    }
}
