//! What waits for one agent, line by line: a bounded part of what is in the store.
//!
//! ```text
//!   open lines, at most LINES_OPEN      lines that are held back: in the store only
//!   ┌───┬───┬────────┐ more in          a line that runs empty is closed, and those held back
//!   │ 1 │ 2 │ 3      │ the store        are read in their order, the most urgent first
//!   └───┴───┴────────┘
//!   all of them together keep at most READY_KEPT; when these are used up, the longest
//!   gives up its last, and none its first
//! ```
//!
//! Within a line the order is that of age. Between lines the gateway decides, so each is filled and
//! claimed by itself: one that is stuck holds up none of the others. Lines that are all stuck give way:
//! whenever the agent is looked at ([`Queues::look_again`]), up to half of them, the least urgent first, are
//! closed for the next ones that are held back. So every line has its turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::flow::{Class, Line};
use protocol::limits::LINES_MAX;

use super::lines::{LineId, Lines};
use super::{DEMAND_LOW, DEMAND_MAX, Place, READY_KEPT};
use crate::clock::UnixMs;
use crate::process::pause::Pauses;
use crate::store::lines::{Found, FoundLine, Others};

/// Lines of one agent that are kept in memory and stated to its gateway; few in this crate's own tests,
/// to reach the limit.
pub(super) const LINES_OPEN: usize = if cfg!(test) { 4 } else { LINES_MAX };
const _: () = assert!(LINES_OPEN <= LINES_MAX && READY_KEPT >= 2 * LINES_OPEN);

/// One open line.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) line: Arc<Line>,
    /// In order, with their deadlines.
    pub(super) ready: BTreeMap<Place, UnixMs>,
    /// The store may have more behind these.
    more: bool,
    /// The store is being asked for those, and nothing new has come since.
    reading: bool,
    /// Taken from `ready` for a claim and not dispatched yet.
    claiming: u32,
    /// Of those: on an offer, so that the gateway knows of no demand for them.
    on_offer: u32,
    /// What the gateway believes to be waiting.
    told: u32,
    /// Something of it was taken since the agent was last looked at.
    served: bool,
    /// Emptied, as part of it was not in the store any more. The gateway keeps the last word about it until it
    /// is read anew, within milliseconds: a line that comes and goes would lose its turn there.
    anew: bool,
}

impl Queue {
    fn new(line: Arc<Line>, more: bool) -> Self {
        Self {
            line,
            ready: BTreeMap::new(),
            more,
            reading: false,
            claiming: 0,
            on_offer: 0,
            told: 0,
            served: true,
            anew: false,
        }
    }

    /// It needs nothing but its agent, as far as its operator's limits can say.
    fn is_plain(&self) -> bool {
        self.line.work.is_empty() && self.line.resources.is_empty()
    }

    /// What the gateway should know to be waiting.
    fn wanted(&self, ready: bool) -> u32 {
        let asked_for = self.claiming.saturating_sub(self.on_offer);
        if !ready {
            return asked_for.min(DEMAND_MAX);
        }
        let known = if self.anew { self.told } else { 0 };
        let here = u32::try_from(self.ready.len()).unwrap_or(u32::MAX);
        let here = here.saturating_add(asked_for).min(DEMAND_MAX);
        here.max(known)
    }

    /// The earliest deadline of what waits.
    fn deadline(&self) -> UnixMs {
        let earliest = self.ready.values().min().copied();
        earliest.unwrap_or(UnixMs(u64::MAX))
    }

    fn is_over(&self, pauses: &Pauses) -> bool {
        let more = self.more && !is_paused(&self.line, pauses);
        self.ready.is_empty() && !more && self.claiming == 0 && self.told == 0
    }
}

/// What the queues of an agent share with those of others.
pub(super) struct Within<'a> {
    pub(super) lines: &'a mut Lines,
    /// Lines of paused tenants are not opened: the end of a pause reads all lines anew.
    pub(super) pauses: &'a Pauses,
    /// So many more may be kept in memory, besides the first of each line.
    pub(super) room: usize,
}

/// A line's demand.
pub(super) struct Wanted {
    pub(super) id: LineId,
    pub(super) line: Arc<Line>,
    pub(super) ready: u32,
    pub(super) deadline: UnixMs,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queues {
    open: BTreeMap<LineId, Queue>,
    /// How many are in memory.
    kept: usize,
    /// The store may have lines that are not open.
    held: bool,
    /// Of these, those up to here have been read.
    cursor: Option<Arc<Line>>,
    /// After the last one they are to be read once more.
    again: bool,
    /// The gateway is to be told everything anew.
    restate: bool,
}

impl Queues {
    /// How many are in memory.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Taken for a claim and not dispatched yet.
    pub(super) fn claiming(&self) -> u32 {
        self.open.values().map(|queue| queue.claiming).sum()
    }

    /// Lines that are open.
    pub(super) fn open(&self) -> &BTreeMap<LineId, Queue> {
        &self.open
    }

    /// Puts a ready process into its line, if it is among those to be kept.
    pub(super) fn enqueue(
        &mut self,
        within: &mut Within<'_>,
        line: &Arc<Line>,
        entry: (Place, UnixMs),
    ) {
        match self.find_or_open(within.lines, line, self.held) {
            Some(id) => self.put(within, id, entry),
            None => self.hold_back(),
        }
    }

    /// Puts a process back that was taken.
    pub(super) fn put(
        &mut self,
        within: &Within<'_>,
        id: LineId,
        (place, deadline): (Place, UnixMs),
    ) {
        let Some(queue) = self.open.get_mut(&id) else {
            return self.hold_back();
        };
        queue.reading = false;
        // What comes after the last one here is for later, with more in the store than here.
        let last = queue.ready.last_key_value().map(|(last, _)| *last);
        if queue.more && last.is_none_or(|last| place > last) {
            return;
        }
        if self.make_room(id, place, within.room)
            && let Some(queue) = self.open.get_mut(&id)
        {
            self.kept += usize::from(queue.ready.insert(place, deadline).is_none());
        }
    }

    /// Makes sure that one more may be kept in a line, at this place. False: not this one.
    fn make_room(&mut self, id: LineId, place: Place, room: usize) -> bool {
        let own = self.open.get(&id).map_or(0, |queue| queue.ready.len());
        // The first of a line is kept whatever others keep: without it nobody hears that the line waits.
        if self.kept < READY_KEPT && (room > 0 || own == 0) {
            return true;
        }
        let others = self.open.iter().filter(|(other, _)| **other != id);
        let longest = others.max_by_key(|(_, queue)| queue.ready.len());
        let longest = longest.map(|(other, queue)| (*other, queue.ready.len()));
        let loser = match longest {
            Some((other, length)) if length > own + 1 => other,
            _ => id,
        };
        let Some(queue) = self.open.get_mut(&loser) else {
            return false;
        };
        queue.more = true;
        if loser == id
            && queue
                .ready
                .last_key_value()
                .is_none_or(|(last, _)| place > *last)
        {
            return false;
        }
        self.kept -= usize::from(queue.ready.pop_last().is_some());
        true
    }

    /// The number of a line, opened if it may be; `more`: the store may have something of it that is not
    /// known here.
    fn find_or_open(&mut self, lines: &mut Lines, line: &Arc<Line>, more: bool) -> Option<LineId> {
        let known = lines.find(line).filter(|id| self.open.contains_key(id));
        if known.is_some() {
            return known;
        }
        if self.open.len() >= LINES_OPEN {
            let idle = |queue: &&Queue| queue.claiming == 0 && queue.line.class > line.class;
            let idle = self.open.values().filter(idle);
            let last = idle.max_by(|a, b| a.line.cmp(&b.line))?;
            let less_urgent = Arc::clone(&last.line);
            self.close(lines, &less_urgent);
        }
        let id = lines.enter(line);
        self.open.insert(id, Queue::new(Arc::clone(line), more));
        Some(id)
    }

    /// Gives a line's place to another one. It stays in the store.
    fn close(&mut self, lines: &mut Lines, line: &Line) {
        let Some(id) = lines.find(line) else { return };
        if let Some(queue) = self.open.remove(&id) {
            self.kept -= queue.ready.len();
            self.restate |= queue.told > 0;
            lines.leave(id);
            self.hold_back();
        }
    }

    /// There is a line that is not open.
    fn hold_back(&mut self) {
        match self.held {
            true => self.again = true,
            false => {
                self.held = true;
                self.cursor = None;
            }
        }
    }

    /// The store has no more than `stored` of each open line, and nothing of others. Where more is here, part of
    /// it is gone and nobody can say which: the line is emptied and read anew.
    pub(super) fn drop_gone(&mut self, stored: &BTreeMap<&Line, u32>) {
        for queue in self.open.values_mut() {
            let stored = stored.get(&*queue.line).copied().unwrap_or(0);
            // What is being claimed is ready in the store until that is committed.
            let here = queue.ready.len() + queue.claiming as usize;
            if here > stored as usize {
                self.kept -= queue.ready.len();
                queue.ready.clear();
                queue.more = stored > 0;
                queue.anew = stored > 0;
                queue.reading = false;
            }
        }
    }

    /// The store has so many of a line, at least.
    pub(super) fn expect(&mut self, within: &mut Within<'_>, line: &Arc<Line>, stored: u32) {
        if is_paused(line, within.pauses) {
            return;
        }
        match self.find_or_open(within.lines, line, true) {
            Some(id) => {
                if let Some(queue) = self.open.get_mut(&id) {
                    let here = queue.ready.len() + queue.claiming as usize;
                    if stored as usize > here {
                        queue.more = true;
                        // What is being read may be from before.
                        queue.reading = false;
                    }
                }
            }
            None => self.hold_back(),
        }
    }

    /// A process is no longer ready.
    pub(super) fn remove(&mut self, lines: &Lines, line: &Line, place: Place) {
        let queue = lines.find(line).and_then(|id| self.open.get_mut(&id));
        let gone = queue.and_then(|queue| queue.ready.remove(&place));
        self.kept -= usize::from(gone.is_some());
    }

    /// Takes up to `permits` from the head of a line, to be claimed.
    pub(super) fn take(&mut self, id: LineId, permits: u32) -> Vec<(Place, UnixMs)> {
        let mut taken = Vec::new();
        let Some(queue) = self.open.get_mut(&id) else {
            return taken;
        };
        while (taken.len() as u64) < u64::from(permits)
            && let Some(first) = queue.ready.pop_first()
        {
            self.kept -= 1;
            queue.claiming += 1;
            queue.served = true;
            taken.push(first);
        }
        taken
    }

    /// Takes what a permit of no line may be used for: the first of the most urgent lines that wait, if it
    /// needs nothing but its agent.
    pub(super) fn take_on_offer(&mut self, pauses: &Pauses) -> Option<(LineId, (Place, UnixMs))> {
        let waits = |queue: &&Queue| {
            !queue.ready.is_empty() || (queue.more && !is_paused(&queue.line, pauses))
        };
        let urgent = self.open.values().filter(waits);
        let urgent: Class = urgent.map(|queue| queue.line.class).min()?;
        let plain = self.open.iter().filter_map(|(id, queue)| {
            let fits = queue.line.class == urgent && queue.is_plain();
            let (place, _) = queue.ready.first_key_value().filter(|_| fits)?;
            Some((*place, *id))
        });
        let (_, id) = plain.min()?;
        let taken = self.take(id, 1).pop()?;
        if let Some(queue) = self.open.get_mut(&id) {
            queue.on_offer += 1;
        }
        Some((id, taken))
    }

    /// One of those taken has been dispatched, or its permit was given back. Either way the gateway
    /// lowers the demand that it knows of, unless it was taken on an offer.
    pub(super) fn settle(&mut self, id: LineId, on_offer: bool) {
        if let Some(queue) = self.open.get_mut(&id) {
            queue.claiming = queue.claiming.saturating_sub(1);
            if on_offer {
                queue.on_offer = queue.on_offer.saturating_sub(1);
            } else {
                queue.told = queue.told.saturating_sub(1);
            }
        }
    }

    /// Permits were given back that nothing had been taken for.
    pub(super) fn gave_back(&mut self, id: LineId, permits: u32) {
        if let Some(queue) = self.open.get_mut(&id) {
            queue.told = queue.told.saturating_sub(permits);
        }
    }

    /// The gateway knows of no demand.
    pub(super) fn forget_told(&mut self) {
        self.open.values_mut().for_each(|queue| queue.told = 0);
    }

    /// The gateway is to be told everything once more, as far as it is to know of it.
    pub(super) fn restate(&mut self) {
        self.restate = true;
    }

    /// Whether the gateway knows of something that waits.
    pub(super) fn is_told(&self) -> bool {
        self.open.values().any(|queue| queue.told > 0)
    }

    /// Whether something waits, beyond what is being claimed, and the gateway knows of it.
    pub(super) fn waits_for_grant(&self) -> bool {
        let mut open = self.open.values();
        open.any(|queue| queue.told > 0 && !queue.ready.is_empty())
    }

    /// What the gateway must be told now, if anything; `ready`: what is not claimed yet may be.
    pub(super) fn demand(&mut self, ready: bool) -> Option<Vec<Wanted>> {
        let off = |queue: &Queue| {
            let wanted = queue.wanted(ready);
            queue.told < wanted.min(DEMAND_LOW) || queue.told > wanted
        };
        if !self.restate && !self.open.values().any(off) {
            return None;
        }
        self.restate = false;
        let mut all = Vec::new();
        for (id, queue) in &mut self.open {
            queue.told = queue.wanted(ready);
            if queue.told > 0 {
                all.push(Wanted {
                    id: *id,
                    line: Arc::clone(&queue.line),
                    ready: queue.told,
                    deadline: queue.deadline(),
                });
            }
        }
        Some(all)
    }

    /// What is here may not be what is to be started: all of it is read anew.
    pub(super) fn empty(&mut self) {
        for queue in self.open.values_mut() {
            queue.ready.clear();
            queue.more = true;
            queue.reading = false;
            queue.anew = false;
        }
        self.kept = 0;
        self.hold_back();
    }

    /// Called from time to time, while the store has `missing` that are not here: words may be lost, and
    /// lines that nothing can be taken from make room for others.
    pub(super) fn look_again(&mut self, within: &mut Within<'_>, missing: bool) {
        if missing {
            for queue in self.open.values_mut() {
                queue.more |= queue.ready.is_empty();
            }
        }
        if self.held && self.open.len() >= LINES_OPEN {
            let stuck = self.open.values();
            let stuck = stuck.filter(|queue| !queue.served && queue.claiming == 0);
            let mut stuck: Vec<_> = stuck.map(|queue| Arc::clone(&queue.line)).collect();
            stuck.sort_unstable_by(|a, b| b.cmp(a));
            for line in stuck.iter().take(LINES_OPEN / 2) {
                self.close(within.lines, line);
            }
        }
        for queue in self.open.values_mut() {
            queue.served = false;
        }
        if missing {
            self.hold_back();
        }
    }

    /// Whether the store is to be asked for a line that has run out, or for lines that are held back.
    pub(super) fn wants_refill(&self, pauses: &Pauses) -> bool {
        self.may_look() || self.open.values().any(|queue| is_hungry(queue, pauses))
    }

    fn may_look(&self) -> bool {
        self.held && self.open.len() < LINES_OPEN
    }

    /// What the store is to be asked for, while so many more may be kept: it is being asked now.
    pub(super) fn refill_begins(
        &mut self,
        pauses: &Pauses,
        room: usize,
    ) -> (Vec<(Arc<Line>, u32)>, Option<Others>) {
        let others = self.may_look().then(|| Others {
            after: self.cursor.clone(),
            // Those that are open may be among them.
            limit: u32::try_from(2 * LINES_OPEN).unwrap_or(u32::MAX),
        });
        let most = READY_KEPT.min(self.kept.saturating_add(room));
        let share = most / self.open.len().max(1);
        let share = u32::try_from(share.max(1)).unwrap_or(u32::MAX);
        let hungry = self.open.values_mut();
        let hungry = hungry.filter(|queue| is_hungry(queue, pauses));
        let asked = hungry.map(|queue| {
            queue.reading = true;
            // What is being claimed still stands in the store.
            (
                Arc::clone(&queue.line),
                share.saturating_add(queue.claiming),
            )
        });
        (asked.collect(), others)
    }

    /// Takes what the store has found, without what is being claimed.
    pub(super) fn refill(&mut self, within: &mut Within<'_>, found: Found) {
        let most = self.kept.saturating_add(within.room);
        for line in found.lines {
            self.refill_line(within.lines, line, most);
        }
        if let Some(others) = found.others {
            self.open_others(within, &others);
        }
    }

    fn refill_line(&mut self, lines: &Lines, found: FoundLine, most: usize) {
        let id = lines.find(&found.line);
        let Some((id, queue)) = id.and_then(|id| Some((id, self.open.get_mut(&id)?))) else {
            return;
        };
        // Something that came meanwhile may not have been there to be read.
        let all = std::mem::take(&mut queue.reading) && found.all;
        queue.more = !all;
        queue.anew = false;
        for (place, deadline) in found.places {
            let room = most.saturating_sub(self.kept);
            if !self.make_room(id, place, room) {
                return;
            }
            if let Some(queue) = self.open.get_mut(&id) {
                self.kept += usize::from(queue.ready.insert(place, deadline).is_none());
            }
        }
    }

    /// Opens lines that were held back, as far as there is room.
    fn open_others(&mut self, within: &mut Within<'_>, found: &[Arc<Line>]) {
        let lines = &mut *within.lines;
        for line in found {
            let known = lines
                .find(line)
                .is_some_and(|id| self.open.contains_key(&id));
            let wanted = !known && !is_paused(line, within.pauses);
            if wanted && self.open.len() >= LINES_OPEN {
                return;
            }
            if wanted {
                let id = lines.enter(line);
                self.open.insert(id, Queue::new(Arc::clone(line), true));
            }
            self.cursor = Some(Arc::clone(line));
        }
        if found.len() < 2 * LINES_OPEN {
            // That was the last one.
            self.cursor = None;
            self.held = std::mem::take(&mut self.again);
        }
    }

    /// Whether nothing of the store is left out here.
    pub(super) fn is_all(&self) -> bool {
        !self.held && self.open.values().all(|queue| !queue.more)
    }

    /// Closes what has nothing any more.
    pub(super) fn tidy(&mut self, within: &mut Within<'_>) {
        self.open.retain(|id, queue| {
            let over = queue.is_over(within.pauses);
            if over {
                within.lines.leave(*id);
            }
            !over
        });
    }
}

fn is_paused(line: &Line, pauses: &Pauses) -> bool {
    pauses.tenants().contains(&line.tenant)
}

/// Whether a line has run out while the store may have more of it.
fn is_hungry(queue: &Queue, pauses: &Pauses) -> bool {
    queue.ready.is_empty() && queue.more && !is_paused(&queue.line, pauses)
}
