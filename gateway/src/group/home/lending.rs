//! Limits that span homes, at one home: what it was lent, what it uses, what it tells the limits' owner.
//!
//! ```text
//!   Lend ──▶ credit = the key's limit in the ledger ──▶ whoever is parked there is woken
//!   a line parks without credit ──▶ report soon ─┐
//!   each second, while there is use or demand ───┴──▶ Reported: all that is due, in one event
//! ```
//!
//! Each such limit has a [`Child`]; one that nothing uses is silent and costs nothing but its memory. What
//! a home *wants* of a limit is what lines could take that are parked at its key, or at a later one: they
//! keep what they hold of the keys before, and ask for none behind. So of two homes that each hold what
//! the other one needs, the one that needs the earlier key waits, and neither holds up both.
//!
//! A home reports nothing before a group was assigned to its gateway: until then it may not have been told
//! yet what runs on agents that are out of reach.

use std::time::Instant;

use protocol::flow::LimitKey;
use protocol::flow::lending::{Incarnation, Lease, Report};
use protocol::limits::CREDITS_PER_FRAME_MAX;
use protocol::link::Event;

use super::{Home, limits};
use crate::flow::escrow::{Child, Use};
use crate::flow::ledger::Key;

/// Parked lines that are looked at to find out what a home wants of a limit.
const PARKED_SEEN_MAX: usize = 4096;

/// The children of a home, by the numbers that `Limits` gives to limits that span homes. Without any it
/// is empty.
pub(super) struct Lending {
    incarnation: Incarnation,
    children: Vec<Child>,
    /// Reports that were made.
    reports: u64,
    /// When the first child has something to report; no later.
    due_at: Option<Instant>,
    /// When the first credit ends; no later.
    ends_at: Option<Instant>,
    /// Whether it was told all that runs.
    may_report: bool,
}

impl Lending {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation: Incarnation(incarnation),
            children: Vec::new(),
            reports: 0,
            due_at: None,
            ends_at: None,
            may_report: false,
        }
    }

    /// The first group was assigned.
    pub(super) fn begin(&mut self) {
        self.may_report = true;
    }

    /// When time matters next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due_at.filter(|_| self.may_report);
        due.into_iter().chain(self.ends_at).min()
    }

    fn hurry(&mut self, now: Instant, number: u32) {
        if let Some(child) = self.children.get_mut(number as usize) {
            child.hurry(now);
            self.due_at = self.due_at.into_iter().chain(child.poll_timeout()).min();
        }
    }

    /// Finds the next times anew.
    fn look(&mut self) {
        let all = &self.children;
        self.due_at = all.iter().filter_map(Child::poll_timeout).min();
        self.ends_at = all.iter().filter_map(Child::ends_at).min();
    }
}

impl Home {
    /// What this home may use. Limits that are not set, and leases that are late, are passed over.
    pub(super) fn take_leases(&mut self, now: Instant, leases: &[(LimitKey, Lease)]) {
        for (key, lease) in leases {
            let Some(number) = self.limits.number(key) else {
                continue;
            };
            let Some(child) = self.lending.children.get_mut(number as usize) else {
                continue;
            };
            child.handle_lease(now, lease);
            let credit = child.credit(now);
            self.take_credit(number, credit);
        }
        self.lending.look();
    }

    /// The owner of these limits asks.
    pub(super) fn report_on(&mut self, now: Instant, keys: &[LimitKey]) {
        for key in keys {
            if let Some(number) = self.limits.number(key) {
                self.lending.hurry(now, number);
            }
        }
    }

    /// Somebody found no room at a key, or took permits that nobody had granted.
    pub(super) fn want_credit(&mut self, now: Instant, key: Key) {
        if let Some(number) = limits::spanning(key) {
            self.lending.hurry(now, number);
        }
    }

    /// Credit ends with its lease: nothing more is granted on it, and what is in use drains.
    pub(super) fn end_credits(&mut self, now: Instant) {
        if self.lending.ends_at.is_none_or(|at| now < at) {
            return;
        }
        for number in 0..super::index_u32(self.lending.children.len()) {
            let credit = self.lending.children[number as usize].credit(now);
            self.take_credit(number, credit);
        }
        let live = self.lending.children.iter().filter_map(Child::ends_at);
        self.lending.ends_at = live.filter(|at| now < *at).min();
    }

    /// Reports what is due, all in as few events as hold it.
    pub(super) fn report_use(&mut self, now: Instant) {
        let may_report = self.lending.may_report;
        if !may_report || self.lending.due_at.is_none_or(|at| now < at) {
            return;
        }
        self.end_credits(now);
        let mut wants = self.wants();
        let mut reports: Vec<(LimitKey, Report)> = Vec::new();
        let mut credits: Vec<(u32, u32)> = Vec::new();
        for (number, key, name) in self.limits.spanning_keys() {
            let child = &mut self.lending.children[number as usize];
            let used = Use {
                in_use: self.shared.used(key),
                wants: wants.get_mut(number as usize).map_or(0, std::mem::take),
                awaited: self.shared.waiting(key) > 0,
            };
            if let Some(report) = child.poll_report(now, self.lending.reports + 1, used) {
                self.lending.reports += 1;
                reports.push((name.clone(), report));
                credits.push((number, child.credit(now)));
            }
        }
        // Some may just have given everything back.
        for (number, credit) in credits {
            self.take_credit(number, credit);
        }
        self.lending.look();
        while !reports.is_empty() {
            let rest = reports.split_off(reports.len().min(CREDITS_PER_FRAME_MAX));
            self.event(Event::Reported {
                shard: self.shard,
                shards: self.shards,
                reports,
            });
            reports = rest;
        }
    }

    /// The limits were replaced and all that is in use was counted anew: what was lent of those that
    /// stay is kept. `before` has the names that the children had.
    pub(super) fn keep_children(&mut self, now: Instant, before: Vec<LimitKey>) {
        let children = std::mem::take(&mut self.lending.children);
        let mut old: std::collections::BTreeMap<LimitKey, Child> =
            before.into_iter().zip(children).collect();
        let incarnation = self.lending.incarnation;
        let keys: Vec<(u32, Key)> = self
            .limits
            .spanning_keys()
            .map(|(number, key, name)| {
                let kept = old.remove(name);
                let child = kept.unwrap_or_else(|| Child::new(incarnation));
                self.lending.children.push(child);
                (number, key)
            })
            .collect();
        for (number, key) in keys {
            let credit = self.lending.children[number as usize].credit(now);
            self.take_credit(number, credit);
            if self.shared.used(key) > 0 {
                self.lending.hurry(now, number);
            }
        }
        self.lending.look();
    }

    fn take_credit(&mut self, number: u32, credit: u32) {
        if let Some(key) = self.limits.set_credit(number, credit) {
            self.shared.set_limit(key, Some(credit));
        }
    }

    /// What could be taken of each limit besides what is in use, by its number.
    fn wants(&self) -> Vec<u32> {
        let mut wants = vec![0_u32; self.lending.children.len()];
        for (_, parked_at, _) in self.limits.spanning_keys() {
            for (index, line) in self.shared.parked(parked_at).take(PARKED_SEEN_MAX) {
                let Some(member) = self.members.get(index as usize) else {
                    continue;
                };
                let stated = member.statements.all().iter();
                let waiting = stated
                    .filter(|stated| stated.line == line)
                    .map(|stated| stated.waiting(&member.ledger));
                let more = waiting.max().unwrap_or(0).min(member.ledger.free());
                let keys = self.keys(Some(index), member.group, line);
                let before = keys.keys().iter().filter(|key| **key <= parked_at);
                for number in before.filter_map(|key| limits::spanning(*key)) {
                    if let Some(wants) = wants.get_mut(number as usize) {
                        *wants = wants.saturating_add(more);
                    }
                }
            }
        }
        wants
    }
}
