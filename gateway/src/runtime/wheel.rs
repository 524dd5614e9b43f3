//! A timer wheel for one entry per session: two levels, 12 bytes an entry, no allocation per timer.
//!
//! ```text
//!   near: 256 slots of 1 ms      │ the next 255 ms, exactly
//!   far: 1024 slots of 256 ms    │ the next 262 s; a slot is spread over `near` when its time comes
//!   due                          │ deadlines that were past when they were scheduled
//! ```
//!
//! Every slot is the head of a doubly linked list through one array, with `u32` links: 9–16 ns for
//! a random re-arm among 100,000, against 189–346 ns for an async runtime's sleep.
//!
//! Re-arming is lazy: a deadline that moves *later* (an idle timeout, at every packet) is only
//! written down; when the old place comes up, the entry moves on. So a slot may come up for
//! nothing, and [`Wheel::next_deadline`] may be early; an entry never fires early, nor later than
//! one millisecond after its deadline, provided that [`Wheel::advance`] is called.
//!
//! A deadline beyond the far level waits in its last slot and moves on from there. One more than
//! 20 days ahead fires after 20 days.

use std::time::{Duration, Instant};

const NEAR: u32 = 256;
const FAR: u32 = 1024;
const NEAR_BITS: u32 = NEAR.trailing_zeros();
/// Slots: `near`, then `far`, then `due`.
const DUE: u32 = NEAR + FAR;
const SLOTS: u32 = DUE + 1;
/// The furthest deadline, in ticks ahead: differences must fit an `i32`.
const AHEAD_MAX: u64 = 20 * 24 * 3_600_000;

/// Deadlines that are not near lie on multiples of this.
pub(crate) const GRID: Duration = Duration::from_millis(GRID_TICKS);
const GRID_TICKS: u64 = 16;
/// A deadline nearer than this is kept as it is: pacing, and packets that are known to be lost.
const SOON: Duration = Duration::from_millis(20);
/// Deadlines that are far lie on multiples of at most this: the pings of an idle fleet leave together,
/// their answers come back together, and many sessions share what one wake costs.
const FAR_GRID_TICKS: u64 = 256;
/// The far grid is as fine as leaves so many sessions together, if each has a deadline every
/// [`PING_TICKS`]: by then a wake costs little of a ping, and a command that comes in between should
/// not wait for hundreds of them.
const TOGETHER: u64 = 32;
/// A ping of each idle session comes about so often.
const PING_TICKS: u64 = 10_000;
/// A deadline at least so far away is far: pings and idle timeouts, but not the door's deadlines.
const LATE: Duration = Duration::from_secs(8);

/// No entry.
const NONE: u32 = u32::MAX;
/// In `previous`: the rest is not an entry but the slot whose first entry this is.
const SLOT: u32 = 1 << 31;

#[derive(Debug, Clone, Copy)]
struct Entry {
    next: u32,
    /// `NONE` when not scheduled.
    previous: u32,
    /// The low half of the tick of the deadline.
    deadline: u32,
}

const IDLE: Entry = Entry {
    next: NONE,
    previous: NONE,
    deadline: 0,
};
const _: () = assert!(size_of::<Entry>() == 12);

/// See the module. Keys are small dense numbers below 2³¹, such as slab indices.
#[derive(Debug)]
pub(crate) struct Wheel {
    origin: Instant,
    /// Ticks (ms since `origin`) up to and with this one have come up.
    current: u64,
    entries: Vec<Entry>,
    heads: Box<[u32]>,
    near: [u64; (NEAR / 64) as usize],
    far: [u64; (FAR / 64) as usize],
}

/// The low half of a tick.
fn low(tick: u64) -> u32 {
    let [a, b, c, d, ..] = tick.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The first set bit of the ring `bits` at or after `from`, as a distance from it.
fn first_set(bits: &[u64], from: u32) -> Option<u32> {
    let words = bits.len();
    let (word, bit) = ((from / 64) as usize, from % 64);
    let ahead = bits[word] >> bit;
    if ahead != 0 {
        return Some(ahead.trailing_zeros());
    }
    let mut distance = 64 - bit;
    for step in 1..words {
        let bits = bits[(word + step) % words];
        if bits != 0 {
            return Some(distance + bits.trailing_zeros());
        }
        distance += 64;
    }
    let behind = bits[word] & ((1 << bit) - 1);
    (behind != 0).then(|| distance + behind.trailing_zeros())
}

impl Wheel {
    /// An empty wheel that has come up to `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            origin: now,
            current: 0,
            entries: Vec::new(),
            heads: vec![NONE; SLOTS as usize].into_boxed_slice(),
            near: [0; (NEAR / 64) as usize],
            far: [0; (FAR / 64) as usize],
        }
    }

    /// Sets the one deadline of `key`, replacing the one that it has.
    pub(crate) fn schedule(&mut self, key: u32, deadline: Instant) {
        let index = key as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, IDLE);
        }
        let tick = self.tick_at(deadline).min(self.current + AHEAD_MAX);
        let entry = &mut self.entries[index];
        if entry.previous != NONE {
            let later = low(tick).wrapping_sub(entry.deadline).cast_signed() >= 0;
            if later {
                entry.deadline = low(tick);
                return;
            }
            self.unlink(key);
        }
        self.link(key, tick);
    }

    /// `deadline`, moved up to the next multiple of [`GRID`] if it is at least 20 ms away, and of up to
    /// 256 ms, less in a large fleet, if it is at least 8 s away: what is not urgent comes up together,
    /// so that sessions share one wake and one batch of packets.
    pub(crate) fn rounded(&self, now: Instant, deadline: Instant) -> Instant {
        let grid = match deadline.saturating_duration_since(now) {
            wait if wait < SOON => return deadline,
            wait if wait < LATE => GRID_TICKS,
            _ => self.far_grid(),
        };
        let ticks = self.tick_at(deadline).next_multiple_of(grid);
        self.origin + Duration::from_millis(ticks)
    }

    /// A power of two, so that every coarser grid lies on this one.
    fn far_grid(&self) -> u64 {
        let sessions = (self.entries.len() as u64).max(1);
        let ticks = (TOGETHER * PING_TICKS / sessions).clamp(GRID_TICKS, FAR_GRID_TICKS);
        1 << ticks.ilog2()
    }

    /// Forgets the deadline of `key`, if it has one.
    pub(crate) fn cancel(&mut self, key: u32) {
        if self.is_scheduled(key) {
            self.unlink(key);
        }
    }

    /// Whether `key` has a deadline that has not fired.
    pub(crate) fn is_scheduled(&self, key: u32) -> bool {
        self.entries
            .get(key as usize)
            .is_some_and(|entry| entry.previous != NONE)
    }

    /// Appends the keys whose deadline is past at `now` and forgets their deadlines. Deadlines that
    /// lie in different milliseconds come in their order.
    pub(crate) fn advance(&mut self, now: Instant, due: &mut Vec<u32>) {
        // Down: a tick is past once the whole of it is.
        let target = u64::try_from(now.saturating_duration_since(self.origin).as_millis())
            .unwrap_or(u64::MAX)
            .max(self.current);
        self.empty(DUE, due);
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= target) {
            self.current = tick;
            if low(tick).is_multiple_of(NEAR) {
                self.empty(NEAR + far_slot(tick), due);
            }
            self.empty(near_slot(tick), due);
        }
        self.current = target;
    }

    /// When [`advance`](Self::advance) next has something to do; at the latest when the earliest
    /// deadline is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.heads[DUE as usize] != NONE {
            return Some(self.origin + Duration::from_millis(self.current));
        }
        self.next_tick()
            .map(|tick| self.origin + Duration::from_millis(tick))
    }

    /// The first tick after the current one whose slot on either level is not empty.
    fn next_tick(&self) -> Option<u64> {
        let near = first_set(&self.near, near_slot(self.current + 1))
            .map(|distance| self.current + 1 + u64::from(distance));
        let block = (self.current >> NEAR_BITS) + 1;
        let far = first_set(&self.far, far_slot(block << NEAR_BITS))
            .map(|distance| (block + u64::from(distance)) << NEAR_BITS);
        near.into_iter().chain(far).min()
    }

    /// Up: never before the deadline.
    fn tick_at(&self, deadline: Instant) -> u64 {
        let nanos = deadline.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Takes everything out of `slot`: what is due goes to `due`, the rest to its new place.
    fn empty(&mut self, slot: u32, due: &mut Vec<u32>) {
        let mut key = std::mem::replace(&mut self.heads[slot as usize], NONE);
        self.mark(slot, false);
        while key != NONE {
            let entry = std::mem::replace(&mut self.entries[key as usize], IDLE);
            let ahead = entry.deadline.wrapping_sub(low(self.current)).cast_signed();
            match u32::try_from(ahead) {
                Ok(ahead @ 1..) => self.link(key, self.current + u64::from(ahead)),
                _ => due.push(key),
            }
            key = entry.next;
        }
    }

    fn link(&mut self, key: u32, tick: u64) {
        let slot = match tick.saturating_sub(self.current) {
            0 => DUE,
            ahead if ahead < u64::from(NEAR) => near_slot(tick),
            _ => {
                let last = (self.current >> NEAR_BITS) + u64::from(FAR - 1);
                NEAR + far_slot((tick >> NEAR_BITS).min(last) << NEAR_BITS)
            }
        };
        let next = std::mem::replace(&mut self.heads[slot as usize], key);
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = key;
        }
        self.entries[key as usize] = Entry {
            next,
            previous: SLOT | slot,
            deadline: low(tick),
        };
        self.mark(slot, true);
    }

    fn unlink(&mut self, key: u32) {
        let Entry { next, previous, .. } = std::mem::replace(&mut self.entries[key as usize], IDLE);
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = previous;
        }
        if previous & SLOT == 0 {
            self.entries[previous as usize].next = next;
            return;
        }
        let slot = previous & !SLOT;
        self.heads[slot as usize] = next;
        if next == NONE {
            self.mark(slot, false);
        }
    }

    fn mark(&mut self, slot: u32, full: bool) {
        let (bits, bit) = match slot {
            DUE.. => return,
            NEAR.. => (&mut self.far[..], slot - NEAR),
            _ => (&mut self.near[..], slot),
        };
        let word = &mut bits[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        *word = if full { *word | mask } else { *word & !mask };
    }
}

fn near_slot(tick: u64) -> u32 {
    low(tick) % NEAR
}

fn far_slot(tick: u64) -> u32 {
    low(tick >> NEAR_BITS) % FAR
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::clock;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[derive(Debug, Clone)]
    enum Step {
        Schedule(u32, u64),
        Cancel(u32),
        Advance(u64),
        AdvanceToNext,
    }

    fn micros() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..3_000u64,
            0..400_000u64,
            0..40_000_000u64,
            200_000_000..1_000_000_000u64,
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..40u32, micros()).prop_map(|(key, at)| Step::Schedule(key, at)),
            1 => (0..40u32).prop_map(Step::Cancel),
            2 => micros().prop_map(Step::Advance),
            2 => Just(Step::AdvanceToNext),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn fires_what_a_map_of_deadlines_would_never_early_and_within_a_millisecond(
            steps in steps()
        ) {
            let start = clock::now();
            let mut now = start;
            let mut wheel = Wheel::new(start);
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Schedule(key, ahead) => {
                        // Also into the past, a little.
                        let at = now + Duration::from_micros(ahead);
                        let at = at.checked_sub(Duration::from_micros(500)).unwrap();
                        wheel.schedule(key, at);
                        model.insert(key, at);
                    }
                    Step::Cancel(key) => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    Step::Advance(ahead) => now += Duration::from_micros(ahead),
                    Step::AdvanceToNext => {
                        if let Some(next) = wheel.next_deadline() {
                            let first = model.values().min().copied().unwrap();
                            prop_assert!(next <= (first + MS).max(now), "would sleep too long");
                            now = now.max(next);
                        } else {
                            prop_assert!(model.is_empty(), "lost: {model:?}");
                        }
                    }
                }
                let mut due = Vec::new();
                wheel.advance(now, &mut due);
                for key in due {
                    let at = model.remove(&key);
                    prop_assert!(at.is_some_and(|at| at <= now), "{key} fired early or twice");
                }
                for (key, at) in &model {
                    prop_assert!(*at + MS > now, "{key} is late");
                    prop_assert!(wheel.is_scheduled(*key));
                }
            }
        }

        #[test]
        fn the_first_set_bit_is_found_as_a_scan_would(
            bits in proptest::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u64>()], 4..5),
            from in 0..256u32,
        ) {
            let set = |at: u32| bits[(at / 64) as usize] >> (at % 64) & 1 == 1;
            let scan = (0..256).find(|distance| set((from + distance) % 256));
            prop_assert_eq!(first_set(&bits, from), scan);
        }
    }

    #[test]
    fn an_empty_wheel_has_no_deadline_and_survives_a_long_sleep() {
        let start = clock::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(wheel.next_deadline(), None);
        // Past the wrap of 2³² milliseconds.
        let later = start + Duration::from_secs(60 * 24 * 3600);
        let mut due = Vec::new();
        wheel.advance(later, &mut due);
        wheel.schedule(1, later + 30 * MS);
        wheel.advance(later + 29 * MS, &mut due);
        assert!(due.is_empty());
        wheel.advance(later + 31 * MS, &mut due);
        assert_eq!(due, [1]);
    }

    #[test]
    fn a_deadline_that_keeps_moving_later_stays_in_its_place_until_that_comes_up() {
        let start = clock::now();
        let mut wheel = Wheel::new(start);
        wheel.schedule(7, start + 10 * MS);
        wheel.schedule(7, start + 30_000 * MS);
        let early = wheel.next_deadline().unwrap();
        assert!(early <= start + 11 * MS);
        let mut due = Vec::new();
        wheel.advance(early, &mut due);
        assert!(due.is_empty() && wheel.is_scheduled(7));
        assert!(wheel.next_deadline().unwrap() > start + 29_000 * MS);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_fires_on_time() {
        let start = clock::now();
        let mut wheel = Wheel::new(start);
        let deadline = start + Duration::from_secs(3600);
        wheel.schedule(0, deadline);
        let (mut now, mut due, mut wakes) = (start, Vec::new(), 0);
        while due.is_empty() {
            now = wheel.next_deadline().unwrap();
            wheel.advance(now, &mut due);
            wakes += 1;
        }
        assert!(now >= deadline && now <= deadline + MS);
        assert!(wakes < 40);
    }

    #[test]
    fn what_is_not_urgent_shares_a_grid() {
        let origin = clock::now();
        let wheel = Wheel::new(origin);
        let rounded = |millis| {
            let at = wheel.rounded(origin, origin + Duration::from_millis(millis));
            at.duration_since(origin).as_millis()
        };
        assert_eq!((rounded(3), rounded(19)), (3, 19));
        assert_eq!((rounded(25), rounded(33)), (32, 48));
        assert_eq!((rounded(5_000), rounded(7_999)), (5_008, 8_000));
        assert_eq!((rounded(10_000), rounded(10_240)), (10_240, 10_240));
    }

    #[test]
    fn what_is_far_shares_a_grid_that_is_finer_in_a_large_fleet() {
        let origin = clock::now();
        let mut wheel = Wheel::new(origin);
        let mut grid = |sessions: u32| {
            wheel.schedule(sessions - 1, origin);
            wheel.far_grid()
        };
        let grids = [1, 1_000, 5_000, 10_000, 100_000].map(&mut grid);
        assert_eq!(grids, [256, 256, 64, 32, 16]);
    }
}
