//! Counts of permits by key, taken as a vector or not at all.
//!
//! An operation needs permits of several things at once: its agent, a storage device, a tenant, its
//! group, the whole cloud. They are looked at in one fixed order. Whoever finds one used up takes
//! nothing and is parked at the *first* key without room; that key wakes it, and nobody polls.
//!
//! A woken asker has a claim on the place that woke it, until it asks again or declines. So no
//! newcomer overtakes it, and no wake is lost: where somebody is parked, use and claims fill the key.
//! Only those that come later in turn are bound by a claim. So the first in turn of those that are woken meets
//! nothing but what is in use, and takes its permits or waits for their end; were claims binding for all, three
//! askers could pass the places of two keys around for ever.
//!
//! A limit may change at any time. One that shrinks below what is in use drains: nothing is cancelled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hash;

use rustc_hash::FxHashMap;

/// Keys in one vector at most.
pub const KEYS_MAX: usize = 8;
/// Askers parked in one ledger at most.
pub const PARKED_MAX: usize = 1 << 20;

/// What a key counts. The order is the one in which vectors are looked at: the most crowded, and
/// the cheapest to wait for, first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// One agent.
    Agent,
    /// A class of work on one agent.
    AgentClass,
    /// A device that agents share, such as a storage pool.
    Resource,
    /// One tenant.
    Tenant,
    /// One group of agents.
    Group,
    /// Everything.
    Global,
}

/// One counter: a scope and a number that the caller gave out. Four bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(u32);

/// Bits of a key that hold the number.
const NUMBER_BITS: u32 = 29;

impl Key {
    /// Nothing where the number needs more than 29 bits.
    pub fn new(scope: Scope, number: u32) -> Option<Self> {
        let scope = match scope {
            Scope::Agent => 0,
            Scope::AgentClass => 1,
            Scope::Resource => 2,
            Scope::Tenant => 3,
            Scope::Group => 4,
            Scope::Global => 5,
        };
        (number >> NUMBER_BITS == 0).then_some(Self(scope << NUMBER_BITS | number))
    }

    /// What it counts.
    pub fn scope(self) -> Scope {
        match self.0 >> NUMBER_BITS {
            0 => Scope::Agent,
            1 => Scope::AgentClass,
            2 => Scope::Resource,
            3 => Scope::Tenant,
            4 => Scope::Group,
            _ => Scope::Global,
        }
    }

    /// The caller's number.
    pub fn number(self) -> u32 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

/// More than [`KEYS_MAX`] different keys in one vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an operation takes permits of more than {KEYS_MAX} keys: name fewer shared resources")]
pub struct TooManyKeys;

/// The keys that one operation takes a permit of: sorted, each once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Vector {
    keys: [Key; KEYS_MAX],
    len: u8,
}

impl Default for Vector {
    /// Without a key.
    fn default() -> Self {
        Self {
            keys: [Key(0); KEYS_MAX],
            len: 0,
        }
    }
}

impl Vector {
    /// Sorts the keys and drops repeated ones.
    ///
    /// # Errors
    /// [`TooManyKeys`].
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Result<Self, TooManyKeys> {
        let mut vector = Self::default();
        for key in keys {
            let Err(place) = vector.keys().binary_search(&key) else {
                continue;
            };
            let len = usize::from(vector.len);
            if len == KEYS_MAX {
                return Err(TooManyKeys);
            }
            vector.keys.copy_within(place..len, place + 1);
            vector.keys[place] = key;
            vector.len += 1;
        }
        Ok(vector)
    }

    /// In the order in which they are looked at.
    pub fn keys(&self) -> &[Key] {
        &self.keys[..usize::from(self.len)]
    }
}

/// Nothing was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// The asker is parked at this key, and is woken when it has room.
    #[error("a limit is used up; the asker is woken when there is room")]
    Parked(Key),
    /// The key has no room and [`PARKED_MAX`] askers are parked already.
    #[error("a limit is used up and too many wait already: ask again later")]
    Full(Key),
}

/// Rank, then ticket: the lower goes first.
type Turn = (u64, u64);

/// Where an asker is.
#[derive(Clone, Copy)]
enum Place {
    /// Parked, under its rank and ticket.
    Parked(Key, Turn),
    /// Woken by this key, with the turn that it had.
    Woken(Key, Turn),
}

#[derive(Debug)]
struct Count<A> {
    used: u32,
    limit: Option<u32>,
    /// The turns of woken askers, which have a claim on a place.
    claims: BTreeSet<Turn>,
    waiting: BTreeMap<Turn, A>,
}

impl<A> Default for Count<A> {
    fn default() -> Self {
        Self {
            used: 0,
            limit: None,
            claims: BTreeSet::new(),
            waiting: BTreeMap::new(),
        }
    }
}

impl<A> Count<A> {
    /// Whether there is room besides what is in use and claimed.
    fn has_room(&self) -> bool {
        self.fits(self.claims.len())
    }

    /// Whether there is room besides what is in use and claimed by those before.
    fn has_room_at(&self, turn: Turn) -> bool {
        self.fits(self.claims.range(..turn).count())
    }

    fn fits(&self, claims: usize) -> bool {
        let taken = (self.used as usize).saturating_add(claims);
        self.limit.is_none_or(|limit| taken < limit as usize)
    }

    fn is_forgettable(&self) -> bool {
        self.used == 0 && self.limit.is_none() && self.claims.is_empty() && self.waiting.is_empty()
    }
}

/// The counts of one owner. `A` names whoever asks: an asker waits in one place at a time.
///
/// A key costs memory while it is in use, has a limit or somebody waits for it.
pub struct Ledger<A> {
    counts: FxHashMap<Key, Count<A>>,
    places: FxHashMap<A, Place>,
    wakes: VecDeque<A>,
    tickets: u64,
}

impl<A> Default for Ledger<A> {
    fn default() -> Self {
        Self {
            counts: FxHashMap::default(),
            places: FxHashMap::default(),
            wakes: VecDeque::new(),
            tickets: 0,
        }
    }
}

impl<A: Copy + Eq + Hash> Ledger<A> {
    /// Changes a limit; `None` lifts it. A higher one wakes, a lower one drains.
    pub fn set_limit(&mut self, key: Key, limit: Option<u32>) {
        self.counts.entry(key).or_default().limit = limit;
        self.wake(key);
        self.tidy(key);
    }

    /// Takes one permit of every key, or none and waits. Of those who wait at a key, the lowest
    /// `rank` is woken first, and of equals whoever came first; an asker that was woken and finds
    /// another key used up keeps its turn.
    ///
    /// # Errors
    /// [`Denied`]: nothing was taken.
    pub fn acquire(&mut self, asker: A, rank: u64, vector: &Vector) -> Result<(), Denied> {
        let ticket = self.leave(asker).unwrap_or_else(|| {
            self.tickets += 1;
            self.tickets
        });
        let turn = (rank, ticket);
        let denied = match self.exhausted(vector, |count| count.has_room_at(turn)) {
            None => {
                self.charge(vector);
                self.settle(asker);
                return Ok(());
            }
            Some(key) if self.places.len() >= PARKED_MAX => Denied::Full(key),
            Some(key) => {
                let count = self.counts.entry(key).or_default();
                count.waiting.insert(turn, asker);
                self.settle_at(asker, Some(Place::Parked(key, turn)));
                return Err(Denied::Parked(key));
            }
        };
        self.settle(asker);
        Err(denied)
    }

    /// Counts an operation that runs already, over any limit: what an inventory says is so.
    pub fn charge(&mut self, vector: &Vector) {
        for key in vector.keys() {
            let count = self.counts.entry(*key).or_default();
            count.used = count.used.saturating_add(1);
        }
    }

    /// Gives one permit of every key back, and wakes whoever fits.
    pub fn release(&mut self, vector: &Vector) {
        for key in vector.keys() {
            if let Some(count) = self.counts.get_mut(key) {
                debug_assert!(count.used > 0, "a permit is given back twice");
                count.used = count.used.saturating_sub(1);
            }
            self.wake(*key);
            self.tidy(*key);
        }
    }

    /// An asker wants nothing any more, parked or woken.
    pub fn withdraw(&mut self, asker: A) {
        self.leave(asker);
        self.settle(asker);
    }

    /// A woken asker does not ask now: its claim passes on. One that is parked stays so.
    pub fn decline(&mut self, asker: A) {
        if matches!(self.places.get(&asker), Some(Place::Woken(..))) {
            self.withdraw(asker);
        }
    }

    /// Whoever has room now and should ask again, or [decline](Self::decline).
    pub fn poll_wake(&mut self) -> Option<A> {
        while let Some(asker) = self.wakes.pop_front() {
            // It may have asked or withdrawn since.
            if matches!(self.places.get(&asker), Some(Place::Woken(..))) {
                return Some(asker);
            }
        }
        None
    }

    /// Permits of a key in use.
    pub fn used(&self, key: Key) -> u32 {
        self.counts.get(&key).map_or(0, |count| count.used)
    }

    /// A key's limit, where it has one.
    pub fn limit(&self, key: Key) -> Option<u32> {
        self.counts.get(&key)?.limit
    }

    /// Askers parked at a key.
    pub fn waiting(&self, key: Key) -> usize {
        self.counts.get(&key).map_or(0, |count| count.waiting.len())
    }

    /// Who is parked at a key, in the order of their turns.
    pub fn parked(&self, key: Key) -> impl Iterator<Item = A> + '_ {
        let count = self.counts.get(&key);
        count
            .into_iter()
            .flat_map(|count| count.waiting.values().copied())
    }

    /// Where an asker is parked, and how many are before it.
    pub fn position(&self, asker: A) -> Option<(Key, usize)> {
        let Some(Place::Parked(key, turn)) = self.places.get(&asker) else {
            return None;
        };
        let waiting = &self.counts.get(key)?.waiting;
        Some((*key, waiting.range(..turn).count()))
    }

    /// Whether nothing is in use and nobody waits.
    pub fn is_idle(&self) -> bool {
        // Without an order, as only a yes or no comes of it.
        self.places.is_empty() && self.counts.values().all(|count| count.used == 0)
    }

    fn exhausted(&self, vector: &Vector, room: impl Fn(&Count<A>) -> bool) -> Option<Key> {
        let has_room = |key: &Key| self.counts.get(key).is_none_or(&room);
        vector.keys().iter().copied().find(|key| !has_room(key))
    }

    /// Takes an asker from where it is; its ticket. Its claim stays free for it until it settles.
    fn leave(&mut self, asker: A) -> Option<u64> {
        match *self.places.get(&asker)? {
            Place::Parked(key, turn) => {
                if let Some(count) = self.counts.get_mut(&key) {
                    count.waiting.remove(&turn);
                }
                Some(turn.1)
            }
            Place::Woken(key, turn) => {
                if let Some(count) = self.counts.get_mut(&key) {
                    count.claims.remove(&turn);
                }
                Some(turn.1)
            }
        }
    }

    fn settle(&mut self, asker: A) {
        self.settle_at(asker, None);
    }

    /// An asker is somewhere else now: what it left may have room for the next one.
    fn settle_at(&mut self, asker: A, place: Option<Place>) {
        let before = match place {
            Some(place) => self.places.insert(asker, place),
            None => self.places.remove(&asker),
        };
        if let Some(Place::Parked(key, _) | Place::Woken(key, _)) = before {
            self.wake(key);
            self.tidy(key);
        }
    }

    fn wake(&mut self, key: Key) {
        let Some(count) = self.counts.get_mut(&key) else {
            return;
        };
        while count.has_room() {
            let Some((turn, asker)) = count.waiting.pop_first() else {
                return;
            };
            count.claims.insert(turn);
            self.places.insert(asker, Place::Woken(key, turn));
            self.wakes.push_back(asker);
        }
    }

    fn tidy(&mut self, key: Key) {
        if self.counts.get(&key).is_some_and(Count::is_forgettable) {
            self.counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
