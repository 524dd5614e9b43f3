//! When an attempt that failed is made again: a budget, full jitter, and never blindly.
//!
//! | outcome | an attempt? | what follows |
//! |---|---|---|
//! | refused as busy | no | it waits for a permit again |
//! | passing error | yes | a random time, as far as the budget lasts |
//! | unknown | no | the agent is asked by operation id |
//! | lasting error | yes | it failed |
//!
//! The budget (Google, "Site Reliability Engineering", ch. 21) keeps retries a tenth of what
//! succeeds. Full jitter is from Brooker, "Exponential Backoff And Jitter", 2015.

use std::time::Duration;

/// Retries are spread over at most this long.
pub const WAIT_MAX: Duration = Duration::from_secs(120);
/// Attempts at work that failed because its target was overloaded.
pub const OVERLOAD_ATTEMPTS_MAX: u32 = 3;

/// Tokens in tenths: what a success brings, what a retry takes, what fits.
const PER_SUCCESS: u8 = 1;
const PER_RETRY: u8 = 10;
const CAP: u8 = 100;

/// How many retries one target may be burdened with for one kind of operation: a tenth of its
/// successes, ten at most at once. One byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget(u8);

impl Default for Budget {
    fn default() -> Self {
        Self(CAP)
    }
}

impl Budget {
    /// An operation succeeded.
    pub fn handle_success(&mut self) {
        self.0 = (self.0 + PER_SUCCESS).min(CAP);
    }

    /// Takes a retry out, if there is one. Where there is none, wait for successes.
    #[must_use]
    pub fn take(&mut self) -> bool {
        let left = self.0.checked_sub(PER_RETRY);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }

    /// Retries left.
    pub fn left(&self) -> u8 {
        self.0 / PER_RETRY
    }
}

/// How an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The target refused it before it began.
    Busy,
    /// It may succeed another time.
    Passing {
        /// The target asked for so long a pause at least.
        retry_after: Option<Duration>,
        /// Because it has too much to do.
        overload: bool,
    },
    /// Nobody knows whether it ran.
    Unknown,
    /// It will fail every time.
    Lasting,
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait for a permit; no attempt was used up.
    AwaitPermit,
    /// Ask the agent for the operation; no attempt was used up.
    AskAgent,
    /// Try again after this long.
    After(Duration),
    /// The budget is empty: try again after this long if it has filled by then, and ask again.
    AwaitBudget(Duration),
    /// It failed.
    Fail,
}

/// What follows a failure. `attempts` were made, this one included, of at most `attempts_max`;
/// `random` is from 0 (inclusive) to 1 (exclusive).
pub fn decide(
    failure: Failure,
    attempts: u32,
    attempts_max: u32,
    budget: &mut Budget,
    random: f64,
) -> Next {
    match failure {
        Failure::Busy => Next::AwaitPermit,
        Failure::Unknown => Next::AskAgent,
        Failure::Lasting => Next::Fail,
        Failure::Passing {
            retry_after,
            overload,
        } => {
            let most = match overload {
                true => attempts_max.min(OVERLOAD_ATTEMPTS_MAX),
                false => attempts_max,
            };
            if attempts >= most {
                return Next::Fail;
            }
            let wait = backoff(attempts, retry_after, random);
            match budget.take() {
                true => Next::After(wait),
                false => Next::AwaitBudget(wait),
            }
        }
    }
}

/// A time between 0 and min([`WAIT_MAX`], 1 s · 2^(attempts − 1)) that `random` picks, after
/// `retry_after` where the target named one.
pub fn backoff(attempts: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let most = Duration::from_secs(1 << doublings).min(WAIT_MAX);
    let jitter = most.mul_f64(random.clamp(0.0, 1.0));
    retry_after.unwrap_or_default().saturating_add(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSING: Failure = Failure::Passing {
        retry_after: None,
        overload: false,
    };

    #[test]
    fn retries_are_a_tenth_of_successes_and_ten_at_once() {
        let mut budget = Budget::default();
        assert_eq!(budget.left(), 10);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.handle_success();
            retries += u32::from(budget.take());
        }
        assert_eq!(retries, 100);
        for _ in 0..1000 {
            budget.handle_success();
        }
        assert_eq!(budget.left(), 10);
    }

    #[test]
    fn waits_are_spread_over_a_doubling_range_up_to_two_minutes() {
        let ranges = [1, 2, 3, 8, 9, 40].map(|attempts| backoff(attempts, None, 1.0).as_secs());
        assert_eq!(ranges, [1, 2, 4, 120, 120, 120]);
        assert_eq!(backoff(5, None, 0.0), Duration::ZERO);
        assert_eq!(backoff(3, None, 0.25), Duration::from_secs(1));
        let after = backoff(1, Some(Duration::from_secs(30)), 0.5);
        assert_eq!(after, Duration::from_millis(30_500));
        assert!(backoff(1, Some(Duration::MAX), 0.9) == Duration::MAX);
    }

    #[test]
    fn only_a_passing_error_is_tried_again_and_only_so_often() {
        let mut budget = Budget::default();
        let mut next = |failure, attempts| decide(failure, attempts, 5, &mut budget, 0.5);
        assert_eq!(next(Failure::Busy, 99), Next::AwaitPermit);
        assert_eq!(next(Failure::Unknown, 99), Next::AskAgent);
        assert_eq!(next(Failure::Lasting, 1), Next::Fail);
        assert_eq!(next(PASSING, 1), Next::After(Duration::from_millis(500)));
        assert_eq!(next(PASSING, 5), Next::Fail);
        let overload = Failure::Passing {
            retry_after: None,
            overload: true,
        };
        assert_eq!(next(overload, 2), Next::After(Duration::from_secs(1)));
        assert_eq!(next(overload, 3), Next::Fail);
    }

    #[test]
    fn an_empty_budget_waits() {
        let mut budget = Budget::default();
        while budget.take() {}
        let next = decide(PASSING, 1, 5, &mut budget, 0.5);
        assert_eq!(next, Next::AwaitBudget(Duration::from_millis(500)));
    }
}
