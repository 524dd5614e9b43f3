//! When the next batch begins: at once where little happens, and in few, large commits under load.

use std::time::{Duration, Instant};

/// A batch gathers this long, since the last one began.
const GATHER: Duration = Duration::from_millis(5);
/// Under load it gathers twice as long where other process servers share the store: fewer commits in all. No longer:
/// a claim that waits is a place at an agent that stands idle, and 20 ms of operations of 2 s are a hundredth of the
/// goodput.
const SHARED: u32 = 2;
/// Batches that follow each other within this are load...
const LOAD_WITHIN: Duration = Duration::from_millis(50);
/// ... if there are so many of them; the steps of a single process are fewer.
const LOAD_RUN: u32 = 8;

/// The rhythm of a process server's batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    last: Instant,
    /// Batches that followed each other quickly, up to the last one.
    run: u32,
}

impl Rhythm {
    /// Nothing was written yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, run: 0 }
    }

    /// A batch begins.
    pub(super) fn began(&mut self, now: Instant) {
        let quick = now.saturating_duration_since(self.last) <= LOAD_WITHIN;
        self.run = if quick { self.run.saturating_add(1) } else { 0 };
        self.last = now;
    }

    /// When the next one may begin, with so many process servers on the store.
    pub(super) fn next(&self, servers: u64) -> Instant {
        let shared = servers > 1 && self.run >= LOAD_RUN;
        self.last + if shared { GATHER * SHARED } else { GATHER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_load_batches_are_fewer_where_the_store_is_shared() {
        let start = crate::clock::monotonic();
        let mut rhythm = Rhythm::new(start);
        let mut now = start;
        let mut began = 0_u32;
        let mut run_for = |rhythm: &mut Rhythm, now: &mut Instant, servers| {
            let end = *now + Duration::from_secs(2);
            while rhythm.next(servers) < end {
                *now = rhythm.next(servers);
                rhythm.began(*now);
                began += 1;
            }
            *now = end;
            std::mem::take(&mut began)
        };
        let alone = run_for(&mut rhythm, &mut now, 1);
        let of_four = run_for(&mut rhythm, &mut now, 4);
        let of_many = run_for(&mut rhythm, &mut now, 1000);
        assert!((395..=405).contains(&alone), "{alone}");
        assert!((195..=210).contains(&of_four), "{of_four}");
        assert_eq!(of_many, 200);
    }

    #[test]
    fn a_single_process_waits_for_no_load() {
        let start = crate::clock::monotonic();
        let mut rhythm = Rhythm::new(start);
        for _ in 0..3 {
            for _ in 0..4 {
                let at = rhythm.next(16);
                assert!(at <= rhythm.last + GATHER);
                rhythm.began(at);
            }
            rhythm.began(rhythm.last + Duration::from_secs(1));
        }
    }
}
