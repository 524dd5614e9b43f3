//! Hosts: processor sharing with thrashing, refusals that cost work, and storage behind several.
//!
//! `n` operations on a host of `K` slots run at full speed each while `n ≤ K`. Above, they share
//! `K / (1 + γ (n − K) / K)`: the more there are, the less is done. A host refuses what comes when
//! `refuse_at` are running; saying so costs it work, as one more item. An operation is finished
//! when it has got its work done, whether somebody still waits for it or not.

use super::events::{Nanos, nanos, seconds};
use super::scenario::Scenario;

/// Of an item that is no operation: the work of a refusal.
const REFUSAL: u64 = u64::MAX;
/// Work is done when less than this is left, in seconds.
const DONE: f64 = 1e-9;

struct Item {
    token: u64,
    /// It ends when its host has given each item so much.
    ends_at: f64,
}

struct Host {
    slots: f64,
    /// Everything takes so many times as long, whatever runs beside it.
    slow: f64,
    items: Vec<Item>,
    /// Seconds of work that each item has been given since the beginning.
    attained: f64,
    since: Nanos,
    rate: f64,
    generation: u32,
    /// The last generation whose end was told.
    told: u32,
}

/// The host refused: it runs all it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused;

/// All hosts, and the storage behind them.
pub(super) struct Plant {
    hosts: Vec<Host>,
    gamma: f64,
    refuse_at: usize,
    refusal_cost: f64,
    /// Hosts behind one storage device, and its slots.
    storage: Option<(usize, f64)>,
    touched: Vec<usize>,
}

impl Plant {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let host = |_| Host {
            slots: scenario.slots,
            slow: 1.0,
            items: Vec::new(),
            attained: 0.0,
            since: 0,
            rate: 1.0,
            generation: 0,
            told: 0,
        };
        Self {
            hosts: (0..scenario.hosts).map(host).collect(),
            gamma: scenario.gamma,
            refuse_at: scenario.refuse_at,
            refusal_cost: scenario.refusal_cost,
            storage: scenario.storage,
            touched: Vec::new(),
        }
    }

    /// An operation of so many seconds of work arrives.
    pub(super) fn start(
        &mut self,
        now: Nanos,
        host: usize,
        token: u64,
        work: f64,
    ) -> Result<(), Refused> {
        let is_full = self.running(host) >= self.refuse_at;
        let (token, work) = match is_full {
            true => (REFUSAL, self.refusal_cost),
            false => (token, work),
        };
        self.advance(now, host);
        let here = &mut self.hosts[host];
        let ends_at = here.attained + work;
        here.items.push(Item { token, ends_at });
        self.touch(host);
        match is_full {
            true => Err(Refused),
            false => Ok(()),
        }
    }

    /// Operations that run on a host.
    pub(super) fn running(&self, host: usize) -> usize {
        let items = self.hosts[host].items.iter();
        items.filter(|item| item.token != REFUSAL).count()
    }

    pub(super) fn set_slots(&mut self, now: Nanos, slots: f64) {
        for host in 0..self.hosts.len() {
            self.advance(now, host);
            self.hosts[host].slots = slots;
        }
        (0..self.hosts.len()).for_each(|host| self.touch(host));
    }

    pub(super) fn set_slow(&mut self, now: Nanos, slow: f64) {
        for host in 0..self.hosts.len() {
            self.advance(now, host);
            self.hosts[host].slow = slow;
        }
        (0..self.hosts.len()).for_each(|host| self.touch(host));
    }

    /// Seconds of work that all hosts together could do in a second at best.
    pub(super) fn capacity(&self) -> f64 {
        let best = |host: &Host| host.slots / host.slow;
        match self.storage {
            None => self.hosts.iter().map(best).sum(),
            Some((behind, slots)) => {
                let groups = self.hosts.chunks(behind);
                groups
                    .map(|group| {
                        let hosts: f64 = group.iter().map(best).sum();
                        hosts.min(slots / group[0].slow)
                    })
                    .sum()
            }
        }
    }

    /// Slots of the first host: all have the same.
    pub(super) fn slots(&self) -> f64 {
        self.hosts.first().map_or(0.0, |host| host.slots)
    }

    /// Operations that ended by now, if the host is still as it was when this was due.
    pub(super) fn handle_due(&mut self, now: Nanos, host: usize, generation: u32) -> Vec<u64> {
        if self.hosts[host].generation != generation {
            return Vec::new();
        }
        self.advance(now, host);
        let here = &mut self.hosts[host];
        let done = here.attained + DONE;
        let mut ended = Vec::new();
        here.items.retain(|item| {
            let ends = item.ends_at <= done;
            if ends && item.token != REFUSAL {
                ended.push(item.token);
            }
            !ends
        });
        self.touch(host);
        ended
    }

    /// The next time at which a host whose state changed has something to say.
    pub(super) fn poll_due(&mut self) -> Option<(usize, Nanos, u32)> {
        while let Some(host) = self.touched.pop() {
            let here = &mut self.hosts[host];
            if here.told == here.generation {
                continue;
            }
            here.told = here.generation;
            let first = here.items.iter().map(|item| item.ends_at);
            let first = first.fold(f64::INFINITY, f64::min);
            if first.is_finite() {
                let wait = (first - here.attained).max(0.0) / here.rate;
                // Rounded up, so that the work is done by then.
                return Some((host, here.since + nanos(wait) + 1, here.generation));
            }
        }
        None
    }

    /// Hosts whose speed depends on this one's load.
    fn together(&self, host: usize) -> std::ops::Range<usize> {
        match self.storage {
            None => host..host + 1,
            Some((behind, _)) => {
                let first = host / behind * behind;
                first..(first + behind).min(self.hosts.len())
            }
        }
    }

    /// Gives all items of this host, and of those behind the same storage, what they got since.
    fn advance(&mut self, now: Nanos, host: usize) {
        for host in self.together(host) {
            let host = &mut self.hosts[host];
            host.attained += host.rate * seconds(now - host.since);
            host.since = now;
        }
    }

    /// The speed from now on, after a change of this host.
    fn touch(&mut self, host: usize) {
        let together = self.together(host);
        let storage = self.storage.map_or(1.0, |(_, slots)| {
            let items = together.clone().map(|host| self.hosts[host].items.len());
            self.share(items.sum(), slots)
        });
        for host in together {
            let share = self.share(self.hosts[host].items.len(), self.hosts[host].slots);
            let here = &mut self.hosts[host];
            here.rate = share.min(storage) / here.slow;
            here.generation = here.generation.wrapping_add(1);
            self.touched.push(host);
        }
    }

    /// How fast each of `items` runs on so many slots.
    #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
    fn share(&self, items: usize, slots: f64) -> f64 {
        let items = items as f64;
        if items <= slots {
            return 1.0;
        }
        let thrash = 1.0 + self.gamma * (items - slots) / slots;
        slots / thrash / items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plant(scenario: Scenario) -> Plant {
        Plant::new(&Scenario {
            hosts: 4,
            gamma: 0.25,
            ..scenario
        })
    }

    /// When each of the tokens ends.
    fn run(plant: &mut Plant, mut now: Nanos) -> Vec<(u64, f64)> {
        let mut ended = Vec::new();
        let mut due = Vec::new();
        loop {
            while let Some(next) = plant.poll_due() {
                due.push(next);
            }
            due.sort_by_key(|(_, at, _)| std::cmp::Reverse(*at));
            let Some((host, at, generation)) = due.pop() else {
                return ended;
            };
            now = now.max(at);
            for token in plant.handle_due(now, host, generation) {
                ended.push((token, (seconds(now) * 1000.0).round() / 1000.0));
            }
        }
    }

    #[test]
    fn below_its_slots_everything_runs_at_full_speed() {
        let mut plant = plant(Scenario::default());
        for token in 0..8 {
            assert_eq!(plant.start(0, 0, token, 2.0), Ok(()));
        }
        assert!(run(&mut plant, 0).iter().all(|(_, at)| *at == 2.0));
    }

    #[test]
    fn twice_its_slots_take_twice_as_long_and_thrash() {
        let mut plant = plant(Scenario::default());
        for token in 0..16 {
            assert_eq!(plant.start(0, 0, token, 2.0), Ok(()));
        }
        // 2 · 16/8 · (1 + 0.25 · 8/8)
        assert!(run(&mut plant, 0).iter().all(|(_, at)| *at == 5.0));
    }

    #[test]
    fn a_full_host_refuses_and_pays_for_it() {
        let mut plant = plant(Scenario {
            refusal_cost: 0.5,
            ..Scenario::default()
        });
        for token in 0..32 {
            assert_eq!(plant.start(0, 0, token, 1.0), Ok(()));
        }
        assert_eq!(plant.start(0, 0, 99, 1.0), Err(Refused));
        assert_eq!(plant.running(0), 32);
        let ended = run(&mut plant, 0);
        assert_eq!(ended.len(), 32);
        let without = 1.0 * 4.0 * 1.75;
        assert!(ended[0].1 > without, "{:?}", ended[0]);
    }

    #[test]
    fn storage_slows_all_hosts_behind_it_and_no_other() {
        let mut plant = plant(Scenario {
            storage: Some((2, 4.0)),
            ..Scenario::default()
        });
        for host in 0..3 {
            for token in 0..4 {
                let token = 10 * host as u64 + token;
                assert_eq!(plant.start(0, host, token, 1.0), Ok(()));
            }
        }
        assert_eq!(plant.capacity(), 8.0);
        for (token, at) in run(&mut plant, 0) {
            let expected = if token < 20 { 2.5 } else { 1.0 };
            assert_eq!(at, expected, "{token}");
        }
    }

    #[test]
    fn a_change_counts_for_what_runs() {
        let mut plant = plant(Scenario::default());
        assert_eq!(plant.start(0, 0, 1, 2.0), Ok(()));
        plant.set_slow(nanos(1.0), 3.0);
        assert_eq!(run(&mut plant, 0), [(1, 4.0)]);
        assert_eq!(plant.capacity(), 32.0 / 3.0);
    }
}
