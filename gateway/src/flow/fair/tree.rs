//! The queues of one target: class, tenant, kind, set of resources, servers; with their tags.

use std::time::Instant;

use super::one::Tags;
use super::{Class, Demand, Fit, Flow, Full, QUEUES_MAX, SERVERS_MAX};

/// Tags of tenants or kinds that wait for nothing are kept at most until there are so many.
const TAGS_MAX: usize = 64;

/// Start and finish of start-time fair queuing, in seconds of service over weight.
#[derive(Clone, Copy, Default)]
struct Tag {
    start: f64,
    waits: bool,
}

impl Tag {
    /// It begins to wait: not before those who wait already.
    fn begin(&mut self, virtual_time: f64) {
        if !self.waits {
            self.start = self.start.max(virtual_time);
            self.waits = true;
        }
    }

    fn serve(&mut self, seconds: f64, weight: f64) {
        self.start += seconds / weight;
    }
}

#[derive(Default)]
struct Tenants {
    virtual_time: f64,
    tenants: Vec<Tenant>,
}

struct Tenant {
    id: u32,
    weight: f64,
    tag: Tag,
    virtual_time: f64,
    kinds: Vec<Kind>,
}

struct Kind {
    id: u32,
    tag: Tag,
    queues: Vec<Queue>,
}

struct Queue {
    resources: u32,
    deadline: Option<Instant>,
    /// Since it has had demand, or since its last grant.
    waits_since: Instant,
    parked: bool,
    /// The last round in which no server could use a permit.
    passed_in: u32,
    /// Server, and what it states.
    servers: Vec<(u32, u32)>,
    last_server: u32,
}

/// Where a queue is; good until the tree changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Path {
    class: usize,
    tenant: usize,
    kind: usize,
    queue: usize,
}

/// All queues of a target.
#[derive(Default)]
pub(super) struct Tree {
    classes: [Tenants; 4],
    queues: usize,
    round: u32,
}

impl Tree {
    pub(super) fn is_empty(&self) -> bool {
        self.queues == 0
    }

    pub(super) fn has_class(&self, class: Class) -> bool {
        let tenants = &self.classes[class.place()].tenants;
        tenants.iter().any(|tenant| tenant.tag.waits)
    }

    pub(super) fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// A server states more than nothing.
    pub(super) fn state(
        &mut self,
        now: Instant,
        server: u32,
        flow: &Flow,
        demand: &Demand,
    ) -> Result<(), Full> {
        let is_new = self.find(flow).is_none();
        if is_new && self.queues >= QUEUES_MAX {
            return Err(Full);
        }
        let class = &mut self.classes[flow.class.place()];
        let virtual_time = class.virtual_time;
        let tenant = class.tenant(flow.tenant);
        tenant.weight = f64::from(demand.weight.max(1));
        tenant.tag.begin(virtual_time);
        let tenant_time = tenant.virtual_time;
        let kind = tenant.kind(flow.kind);
        kind.tag.begin(tenant_time);
        let queue = kind.queue(flow.resources, now);
        queue.deadline = demand.deadline;
        let known = queue.servers.iter().position(|(id, _)| *id == server);
        match known {
            Some(place) => queue.servers[place].1 = demand.count,
            None if queue.servers.len() >= SERVERS_MAX => return Err(Full),
            None => queue.servers.push((server, demand.count)),
        }
        self.queues += usize::from(is_new);
        Ok(())
    }

    pub(super) fn remove_server(&mut self, flow: &Flow, server: u32) {
        if let Some(path) = self.find(flow) {
            let queue = self.queue_mut(path);
            queue.servers.retain(|(id, _)| *id != server);
            self.prune(path.class);
        }
    }

    pub(super) fn remove_server_everywhere(&mut self, server: u32) {
        for class in 0..4 {
            let tenants = self.classes[class].tenants.iter_mut();
            let kinds = tenants.flat_map(|tenant| &mut tenant.kinds);
            for queue in kinds.flat_map(|kind| &mut kind.queues) {
                queue.servers.retain(|(id, _)| *id != server);
            }
            self.prune(class);
        }
    }

    /// The only queue is as it was before there was a tree.
    pub(super) fn restore(
        &mut self,
        flow: &Flow,
        parked: bool,
        tags: Tags,
        last_server: Option<u32>,
    ) {
        let Some(path) = self.find(flow) else { return };
        let class = &mut self.classes[path.class];
        class.virtual_time = tags.tenants_time;
        let tenant = &mut class.tenants[path.tenant];
        tenant.virtual_time = tags.kinds_time;
        tenant.tag.start = tags.tenant;
        tenant.kinds[path.kind].tag.start = tags.kind;
        let queue = self.queue_mut(path);
        queue.parked = parked;
        queue.last_server = last_server.unwrap_or(queue.last_server);
    }

    /// A parked queue waits again; it has saved nothing up meanwhile.
    pub(super) fn unpark(&mut self, flow: &Flow) {
        let Some(path) = self.find(flow) else { return };
        self.queue_mut(path).parked = false;
        let class = &mut self.classes[path.class];
        let tenant = &mut class.tenants[path.tenant];
        tenant.tag.start = tenant.tag.start.max(class.virtual_time);
        let kind = &mut tenant.kinds[path.kind];
        kind.tag.start = kind.tag.start.max(tenant.virtual_time);
    }

    pub(super) fn demand(&self, flow: &Flow) -> u32 {
        let queue = self.find(flow).map(|path| self.queue(path));
        let counts = queue.into_iter().flat_map(|queue| &queue.servers);
        counts.map(|(_, count)| *count).max().unwrap_or(0)
    }

    pub(super) fn flow(&self, path: Path) -> Flow {
        let tenant = &self.classes[path.class].tenants[path.tenant];
        let kind = &tenant.kinds[path.kind];
        Flow {
            class: Class::ALL[path.class],
            tenant: tenant.id,
            kind: kind.id,
            resources: kind.queues[path.queue].resources,
        }
    }

    /// The queue whose turn it is in each class, by what each counts as now. Those that aged into a
    /// class come before its own, the longest wait first.
    pub(super) fn candidates(&self, now: Instant) -> [Option<Path>; 4] {
        let mut aged: [Option<(Instant, Path)>; 4] = [None; 4];
        let mut own: [Option<(Turn, Path)>; 4] = [None; 4];
        for (path, turn, queue) in self.walk() {
            if queue.parked || queue.passed_in == self.round {
                continue;
            }
            let waited = now.saturating_duration_since(queue.waits_since);
            let class = Class::ALL[path.class].aged(waited).place();
            if class == path.class {
                if own[class].is_none_or(|(best, _)| turn.is_before(&best)) {
                    own[class] = Some((turn, path));
                }
            } else if aged[class].is_none_or(|(best, _)| queue.waits_since < best) {
                aged[class] = Some((queue.waits_since, path));
            }
        }
        std::array::from_fn(|class| {
            let own = own[class].map(|(_, path)| path);
            aged[class].map(|(_, path)| path).or(own)
        })
    }

    fn walk(&self) -> impl Iterator<Item = (Path, Turn, &Queue)> {
        self.classes.iter().enumerate().flat_map(|(c, class)| {
            class
                .tenants
                .iter()
                .enumerate()
                .flat_map(move |(t, tenant)| {
                    tenant.kinds.iter().enumerate().flat_map(move |(k, kind)| {
                        kind.queues.iter().enumerate().map(move |(q, queue)| {
                            let path = Path {
                                class: c,
                                tenant: t,
                                kind: k,
                                queue: q,
                            };
                            let turn = Turn {
                                tenant: tenant.tag.start,
                                kind: kind.tag.start,
                                deadline: queue.deadline,
                                waits_since: queue.waits_since,
                            };
                            (path, turn, queue)
                        })
                    })
                })
        })
    }

    /// Asks about the servers of a queue in turn; the one that the permit goes to.
    pub(super) fn ask(
        &mut self,
        path: Path,
        fits: &mut impl FnMut(&Flow, u32) -> Fit,
    ) -> Option<u32> {
        let flow = self.flow(path);
        let round = self.round;
        let queue = self.queue_mut(path);
        queue.servers.sort_unstable();
        let last = queue.last_server;
        let later = queue.servers.iter().filter(|(id, _)| *id > last);
        let earlier = queue.servers.iter().filter(|(id, _)| *id <= last);
        for (server, _) in later.chain(earlier) {
            match fits(&flow, *server) {
                Fit::Take => return Some(*server),
                Fit::OtherServer => {}
                Fit::Park => {
                    queue.parked = true;
                    return None;
                }
            }
        }
        queue.passed_in = round;
        None
    }

    /// A permit of so many seconds goes to a queue.
    pub(super) fn take(&mut self, now: Instant, path: Path, server: u32, seconds: f64) {
        let class = &mut self.classes[path.class];
        let tenant = &mut class.tenants[path.tenant];
        class.virtual_time = class.virtual_time.max(tenant.tag.start);
        let weight = tenant.weight;
        tenant.tag.serve(seconds, weight);
        let kind = &mut tenant.kinds[path.kind];
        tenant.virtual_time = tenant.virtual_time.max(kind.tag.start);
        kind.tag.serve(seconds, 1.0);
        let queue = &mut kind.queues[path.queue];
        queue.waits_since = now;
        queue.last_server = server;
        // Every server stated this process.
        for (_, count) in &mut queue.servers {
            *count = count.saturating_sub(1);
        }
        queue.servers.retain(|(_, count)| *count > 0);
        if queue.servers.is_empty() {
            self.prune(path.class);
        }
    }

    /// An operation took so much longer than it was charged with.
    pub(super) fn correct(&mut self, flow: &Flow, seconds: f64) {
        let class = &mut self.classes[flow.class.place()];
        let mut tenants = class.tenants.iter_mut();
        let Some(tenant) = tenants.find(|tenant| tenant.id == flow.tenant) else {
            return;
        };
        tenant.tag.serve(seconds, tenant.weight);
        let mut kinds = tenant.kinds.iter_mut();
        if let Some(kind) = kinds.find(|kind| kind.id == flow.kind) {
            kind.tag.serve(seconds, 1.0);
        }
    }

    fn find(&self, flow: &Flow) -> Option<Path> {
        let class = flow.class.place();
        let tenants = &self.classes[class].tenants;
        let tenant = tenants.iter().position(|t| t.id == flow.tenant)?;
        let kinds = &tenants[tenant].kinds;
        let kind = kinds.iter().position(|k| k.id == flow.kind)?;
        let queues = &kinds[kind].queues;
        let queue = queues.iter().position(|q| q.resources == flow.resources)?;
        Some(Path {
            class,
            tenant,
            kind,
            queue,
        })
    }

    fn queue(&self, path: Path) -> &Queue {
        &self.classes[path.class].tenants[path.tenant].kinds[path.kind].queues[path.queue]
    }

    fn queue_mut(&mut self, path: Path) -> &mut Queue {
        &mut self.classes[path.class].tenants[path.tenant].kinds[path.kind].queues[path.queue]
    }

    /// Drops queues without demand, and tags that say nothing any more.
    fn prune(&mut self, class: usize) {
        let mut dropped = 0;
        let class = &mut self.classes[class];
        for tenant in &mut class.tenants {
            for kind in &mut tenant.kinds {
                let before = kind.queues.len();
                kind.queues.retain(|queue| !queue.servers.is_empty());
                dropped += before - kind.queues.len();
                kind.tag.waits = !kind.queues.is_empty();
            }
            let (time, many) = (tenant.virtual_time, tenant.kinds.len() > TAGS_MAX);
            let keeps = |tag: &Tag| tag.waits || (tag.start > time && !many);
            tenant.kinds.retain(|kind| keeps(&kind.tag));
            tenant.tag.waits = tenant.kinds.iter().any(|kind| kind.tag.waits);
        }
        let (time, many) = (class.virtual_time, class.tenants.len() > TAGS_MAX);
        let keeps = |tag: &Tag| tag.waits || (tag.start > time && !many);
        class.tenants.retain(|tenant| keeps(&tenant.tag));
        self.queues -= dropped;
    }
}

/// What decides within a class.
#[derive(Clone, Copy)]
struct Turn {
    tenant: f64,
    kind: f64,
    deadline: Option<Instant>,
    waits_since: Instant,
}

impl Turn {
    fn is_before(&self, other: &Self) -> bool {
        // No deadline is later than any.
        let late = |turn: &Self| (turn.deadline.is_none(), turn.deadline, turn.waits_since);
        self.tenant
            .total_cmp(&other.tenant)
            .then(self.kind.total_cmp(&other.kind))
            .then_with(|| late(self).cmp(&late(other)))
            .is_lt()
    }
}

impl Tenants {
    fn tenant(&mut self, id: u32) -> &mut Tenant {
        let place = self.tenants.iter().position(|tenant| tenant.id == id);
        let place = place.unwrap_or_else(|| {
            self.tenants.push(Tenant {
                id,
                weight: 1.0,
                tag: Tag::default(),
                virtual_time: 0.0,
                kinds: Vec::new(),
            });
            self.tenants.len() - 1
        });
        &mut self.tenants[place]
    }
}

impl Tenant {
    fn kind(&mut self, id: u32) -> &mut Kind {
        let place = self.kinds.iter().position(|kind| kind.id == id);
        let place = place.unwrap_or_else(|| {
            self.kinds.push(Kind {
                id,
                tag: Tag::default(),
                queues: Vec::new(),
            });
            self.kinds.len() - 1
        });
        &mut self.kinds[place]
    }
}

impl Kind {
    fn queue(&mut self, resources: u32, now: Instant) -> &mut Queue {
        let place = self.queues.iter().position(|q| q.resources == resources);
        let place = place.unwrap_or_else(|| {
            self.queues.push(Queue {
                resources,
                deadline: None,
                waits_since: now,
                parked: false,
                passed_in: 0,
                servers: Vec::new(),
                last_server: u32::MAX,
            });
            self.queues.len() - 1
        });
        &mut self.queues[place]
    }
}
