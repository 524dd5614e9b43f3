//! A target for which one server states one queue: the usual case, without a tree.
//!
//! It decides as the tree would, and becomes one when a second queue or server comes.

use std::time::{Duration, Instant};

use super::tree::Tree;
use super::{Class, Cost, Demand, Fit, Flow, Full, Grant, Inner, Room, UNKNOWN_SECONDS, learned};

/// See the module.
#[derive(Clone, Copy)]
pub(super) struct One {
    flow: Flow,
    server: u32,
    /// More than nothing.
    demand: Demand,
    /// Since it has had demand, or since its last grant.
    waits_since: Instant,
    parked: bool,
    /// It has had a permit.
    served: bool,
    /// Mean seconds of its kind, once some ended.
    seconds: Option<f64>,
    tags: Tags,
}

/// What the tree keeps of a queue: virtual time among tenants and its tenant's start, and the same of
/// kinds within the tenant.
#[derive(Clone, Copy, Default)]
pub(super) struct Tags {
    pub(super) tenants_time: f64,
    pub(super) tenant: f64,
    pub(super) kinds_time: f64,
    pub(super) kind: f64,
}

impl Tags {
    /// It was served so many seconds, in its turn.
    fn serve(&mut self, seconds: f64, weight: f64) {
        self.tenants_time = self.tenants_time.max(self.tenant);
        self.kinds_time = self.kinds_time.max(self.kind);
        self.tenant += seconds / weight;
        self.kind += seconds;
    }

    /// Nothing was saved up.
    fn catch_up(&mut self) {
        self.tenant = self.tenant.max(self.tenants_time);
        self.kind = self.kind.max(self.kinds_time);
    }
}

impl One {
    pub(super) fn new(now: Instant, server: u32, flow: &Flow, demand: &Demand) -> Self {
        Self {
            flow: *flow,
            server,
            demand: *demand,
            waits_since: now,
            parked: false,
            served: false,
            seconds: None,
            tags: Tags::default(),
        }
    }

    pub(super) fn is(&self, server: u32, flow: &Flow) -> bool {
        self.server == server && self.flow == *flow
    }

    pub(super) fn is_of(&self, server: u32) -> bool {
        self.server == server
    }

    /// The same server states the same queue again.
    pub(super) fn state(&mut self, demand: &Demand) {
        self.demand = *demand;
    }

    pub(super) fn unpark(&mut self, flow: &Flow) {
        if self.flow == *flow {
            self.parked = false;
            self.tags.catch_up();
        }
    }

    pub(super) fn handle_end(&mut self, flow: &Flow, cost: Cost, service: Duration) {
        let seconds = service.as_secs_f64();
        let off = seconds - f64::from(cost.0);
        let is_its_kind = flow.kind == self.flow.kind;
        if (flow.class, flow.tenant) == (self.flow.class, self.flow.tenant) {
            self.tags.tenant += off / self.weight();
            self.tags.kind += if is_its_kind { off } else { 0.0 };
        }
        if is_its_kind && !service.is_zero() {
            self.seconds = Some(match self.seconds {
                Some(known) => learned(known, seconds),
                None => seconds,
            });
        }
    }

    pub(super) fn demand(&self, flow: &Flow) -> u32 {
        match self.flow == *flow {
            true => self.demand.count,
            false => 0,
        }
    }

    /// The next permit; it has no demand left when that was the last.
    pub(super) fn next(
        &mut self,
        now: Instant,
        room: Room,
        fits: &mut impl FnMut(&Flow, u32) -> Fit,
    ) -> Option<Grant> {
        let has_room = room.free > 0 || (room.reserve > 0 && self.flow.class == Class::System);
        if !has_room || self.parked {
            return None;
        }
        match fits(&self.flow, self.server) {
            Fit::Take => {}
            Fit::OtherServer => return None,
            Fit::Park => {
                self.parked = true;
                return None;
            }
        }
        let seconds = self.seconds.unwrap_or(UNKNOWN_SECONDS);
        self.tags.serve(seconds, self.weight());
        self.demand.count = self.demand.count.saturating_sub(1);
        self.waits_since = now;
        self.served = true;
        Some(Grant {
            flow: self.flow,
            server: self.server,
            cost: Cost::of(seconds),
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.demand.count == 0
    }

    /// The same as a tree.
    pub(super) fn grow(&self) -> Result<Inner, Full> {
        let mut tree = Tree::default();
        tree.state(self.waits_since, self.server, &self.flow, &self.demand)?;
        let last_server = self.served.then_some(self.server);
        tree.restore(&self.flow, self.parked, self.tags, last_server);
        let seconds = self.seconds.map(|seconds| (self.flow.kind, seconds));
        Ok(Inner {
            tree,
            owed: [0.0; 4],
            kinds: seconds.into_iter().collect(),
        })
    }

    fn weight(&self) -> f64 {
        f64::from(self.demand.weight.max(1))
    }
}
