//! When the next batch begins: at once where little happens, and in few, large commits under load.

use std::time::{Duration, Instant};

/// A batch gathers this long, since the last one began.
const GATHER: Duration = Duration::from_millis(5);
/// Under load it gathers so long for each process server on the store: as many commits in all, however many
/// servers there are. More servers than this do not make it longer.
const SERVERS_MAX: u64 = 8;
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
        let servers = match self.run >= LOAD_RUN {
            true => u32::try_from(servers.clamp(1, SERVERS_MAX)).unwrap_or(1),
            false => 1,
        };
        self.last + GATHER * servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_under_load_commit_as_often_together_as_one_alone() {
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
        assert!((95..=110).contains(&of_four), "{of_four}");
        assert!((48..=60).contains(&of_many), "{of_many}");
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
