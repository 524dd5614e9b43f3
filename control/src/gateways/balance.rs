//! Who should own which group. Pure.
//!
//! A group that nobody owns who is alive goes to the server with the least load, among those that have room if any has.
//! Where loads differ by more than [`TOLERATED`], or one has more than its capacity and another has room, groups go
//! from the one with the most to the one with the least, a few at a time, and only where that brings the two nearer:
//! so a fleet that is even stays where it is. Pins go before all of that.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use protocol::ids::{GatewayId, GroupId};

use super::Placed;
use crate::store::groups::Group;

/// Loads may differ by so many hundredths of the mean.
const TOLERATED: u64 = 10;

/// The weight of an agent, where that of a group without any is 1.
const AGENT: u64 = 100;

/// A group for a new owner: the group as it was, by whose epoch it is taken.
pub(crate) type Gift = (Group, GatewayId);

/// An agent server that may be given groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Taker {
    /// What pins name.
    pub(crate) link: String,
    /// Agents that it is given at most, while another one has room.
    pub(crate) capacity: u32,
}

/// Which agent servers there are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Field {
    /// These may be given groups.
    pub(crate) servers: BTreeMap<GatewayId, Taker>,
    /// These keep what they own, though not all may be given more.
    pub(crate) alive: Vec<GatewayId>,
    /// These give theirs away.
    pub(crate) leaving: Vec<GatewayId>,
    /// Those of them that are about to stop.
    pub(crate) hurried: Vec<GatewayId>,
}

/// How many groups whose owner is alive may change hands at once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Pace {
    /// Because somebody has asked for it now: those with a pin that ends by itself.
    pub(super) asked: usize,
    /// For any reason.
    pub(super) all: usize,
    /// Because their owner is about to stop.
    pub(super) hurried: usize,
}

/// Who owns what, as far as it may be given groups, while a plan is made.
#[derive(Default)]
struct Table {
    loads: BTreeMap<GatewayId, u64>,
    owners: BTreeMap<GroupId, GatewayId>,
}

/// When two loads are even enough.
#[derive(Clone, Copy)]
struct Aim {
    /// They may differ by so many hundredths of the mean.
    tolerated: u64,
    /// What is lighter is not worth a move.
    least: u64,
}

/// Which groups should change hands now.
pub(super) fn plan(field: &Field, groups: &[Placed], pace: Pace) -> Vec<Gift> {
    let mut table = Table::of(field);
    let (mut orphans, mut left) = (Vec::new(), 0);
    for placed in groups {
        match placed.owner.filter(|owner| field.alive.contains(owner)) {
            Some(owner) if left < field.may_go(placed, owner, pace) => {
                left += 1;
                orphans.push(placed);
            }
            Some(owner) => table.put(placed, owner),
            None => orphans.push(placed),
        }
    }
    let mut gifts = Vec::new();
    // The heaviest first, so that the light ones fill what is left.
    orphans.sort_by_key(|placed| (std::cmp::Reverse(weight(placed)), placed.group.id));
    for placed in orphans {
        let least = || least(field, &table, weight(placed));
        let Some(to) = field.pinned(placed).or_else(least) else {
            return Vec::new();
        };
        table.put(placed, to);
        gifts.push((placed.group.clone(), to));
    }
    let aim = Aim {
        tolerated: TOLERATED,
        least: 1,
    };
    for _ in left..pace.all {
        let Some((placed, to)) = next_move(field, &table, groups, aim) else {
            break;
        };
        table.shift(placed, to);
        // A group that was given away above goes once, to the last of them.
        gifts.retain(|(group, _): &Gift| group.id != placed.group.id);
        gifts.push((placed.group.clone(), to));
    }
    gifts
}

/// The moves after which loads are as even as whole groups let them be. Groups that are pinned stay.
pub(crate) fn even(field: &Field, groups: &[Placed]) -> Vec<Gift> {
    let mut table = Table::of(field);
    let owned = |placed: &Placed| placed.owner.filter(|owner| field.alive.contains(owner));
    for placed in groups {
        if let Some(owner) = owned(placed) {
            table.put(placed, owner);
        }
    }
    let empty = groups.iter().all(|placed| placed.agents == 0);
    let aim = Aim {
        tolerated: 0,
        least: if empty { 1 } else { AGENT },
    };
    // Each brings two loads nearer, so there is an end; no plan needs more than two moves a group.
    for _ in 0..2 * groups.len() {
        let Some((placed, to)) = next_move(field, &table, groups, aim) else {
            break;
        };
        table.shift(placed, to);
    }
    let moved = groups.iter().filter_map(|placed| {
        let to = *table.owners.get(&placed.group.id)?;
        (placed.owner != Some(to)).then(|| (placed.group.clone(), to))
    });
    moved.collect()
}

/// Where a group goes that its owner is to give away: the best of the others, if there is one.
pub(crate) fn elsewhere(field: &Field, groups: &[Placed], group: &Placed) -> Option<GatewayId> {
    let mut others = field.clone();
    if let Some(owner) = group.owner {
        others.servers.remove(&owner);
    }
    let mut table = Table::of(&others);
    for placed in groups {
        if let Some(owner) = placed.owner {
            table.put(placed, owner);
        }
    }
    least(&others, &table, weight(group))
}

/// An empty group counts a little: it will be filled, but must not outweigh agents that are there.
fn weight(placed: &Placed) -> u64 {
    placed.agents.saturating_mul(AGENT) + 1
}

/// The least loaded, of those with room where any has.
fn least(field: &Field, table: &Table, weight: u64) -> Option<GatewayId> {
    let key = |(server, load): &(&GatewayId, &u64)| {
        let full = **load + weight > field.capacity(**server);
        (full, **load)
    };
    let least = table.loads.iter().min_by_key(key);
    least.map(|(server, _)| *server)
}

impl Table {
    /// Where nobody owns anything.
    fn of(field: &Field) -> Self {
        let servers = field.servers.keys();
        Self {
            loads: servers.map(|server| (*server, 0)).collect(),
            owners: BTreeMap::new(),
        }
    }

    /// A group is this one's, if it may be given groups: others' loads do not matter.
    fn put(&mut self, placed: &Placed, owner: GatewayId) {
        if let Some(load) = self.loads.get_mut(&owner) {
            *load += weight(placed);
            self.owners.insert(placed.group.id, owner);
        }
    }

    fn shift(&mut self, placed: &Placed, to: GatewayId) {
        let from = self.owners.get(&placed.group.id).copied();
        if let Some(load) = from.and_then(|from| self.loads.get_mut(&from)) {
            *load -= weight(placed);
        }
        self.put(placed, to);
    }
}

impl Field {
    /// Where a group is pinned to, if it may be given there.
    fn pinned(&self, placed: &Placed) -> Option<GatewayId> {
        let pin = placed.pin.as_ref()?;
        let mut servers = self.servers.iter();
        servers.find_map(|(run, taker)| (taker.link == pin.link).then_some(*run))
    }

    /// How many groups may have left living owners when this one leaves its own; 0: it stays.
    fn may_go(&self, placed: &Placed, owner: GatewayId, pace: Pace) -> usize {
        let asked = placed.pin.as_ref().is_some_and(|pin| pin.until.is_some());
        match self.pinned(placed) {
            _ if self.hurried.contains(&owner) => pace.hurried,
            Some(pinned) if pinned != owner && asked => pace.asked,
            Some(pinned) if pinned != owner => pace.all,
            _ if self.leaving.contains(&owner) => pace.all,
            _ => 0,
        }
    }

    /// What a server may have, as a weight: rounded up by what its empty groups count.
    fn capacity(&self, server: GatewayId) -> u64 {
        let taker = self.servers.get(&server);
        taker.map_or(0, |taker| (u64::from(taker.capacity) + 1) * AGENT)
    }
}

/// The group whose move brings the heaviest and the lightest server nearest to each other.
fn next_move<'a>(
    field: &Field,
    table: &Table,
    groups: &'a [Placed],
    aim: Aim,
) -> Option<(&'a Placed, GatewayId)> {
    let (to, low) = table.loads.iter().min_by_key(|(_, load)| **load)?;
    let (from, high) = table.loads.iter().max_by_key(|(_, load)| **load)?;
    let (all, servers) = (table.loads.values().sum::<u64>(), table.loads.len() as u64);
    let gap = high - low;
    let even = gap * 100 * servers <= aim.tolerated * all;
    if even && *high <= field.capacity(*from) {
        return None;
    }
    let room = field.capacity(*to).saturating_sub(*low);
    let of_it = groups
        .iter()
        .filter(|placed| field.pinned(placed).is_none())
        .filter(|placed| table.owners.get(&placed.group.id) == Some(from))
        .filter(|placed| (aim.least..gap).contains(&weight(placed)))
        // Nearly even loads are left alone, unless that is how one has room that the other lacks.
        .filter(|placed| !even || weight(placed) <= room);
    let best = of_it.min_by_key(|placed| (gap.abs_diff(2 * weight(placed)), placed.group.id))?;
    Some((best, *to))
}
