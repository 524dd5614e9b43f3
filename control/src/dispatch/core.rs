//! The process server's decisions: a state machine without I/O.
//!
//! ```text
//!   handle_event ───┐                       ┌──▶ poll_batch ──▶ store ──▶ handle_applied
//!   handle_command ─┼──▶ pending · fleet ───┼──▶ poll_request ──▶ gateway
//!   handle_tick ────┘                       └──▶ poll_refill ──▶ store ──▶ handle_refill
//! ```
//!
//! One batch is with the store at a time; what happens meanwhile gathers in the next one. Nothing
//! is told to an agent or a caller before the batch that it follows from is durable. A batch that
//! the store could not write is kept and written again, in the same order.

mod applied;
mod beats;
mod commands;
mod events;
mod lending;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::{AgentId, Epoch, GrantId, GroupId, OperationId, ProcessId, ServerId};
use protocol::limits::OPERATIONS_PER_FRAME_MAX;
use protocol::link::{Request, Target};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::asked::Asked;
use super::census::Living;
use super::fleet::{Fleet, Known, Taken};
use super::handle::{EnrolmentAsked, Ordered};
use super::telemetry::EngineStats;
use super::tenants::Tenants;
use crate::clock::UnixMs;
use crate::lending::Lender;
use crate::process::pause::Pauses;
use crate::process::{Input, State, StepId};
use crate::store::StoreError;
use crate::store::agents::Inventory;
use crate::store::groups::Group;
use crate::store::limits::LimitTable;
use crate::store::lines::{Found, ReadyCount, Want};
use crate::store::pauses::PauseTable;
use crate::store::processes::{Batch, Creation, Happened, NewProcess};
use crate::store::recovery::Lease;

/// Inputs that gather for the next batch before nothing more is taken from the gateway.
const INPUTS_MAX: usize = 4096;
/// Bytes of new processes that gather before no further command is taken.
const CREATE_BYTES_MAX: usize = 32 << 20;
/// Processes ready for one agent before newcomers are turned away.
pub(crate) const READY_PER_AGENT_MAX: u32 = 20_000;
/// Processes ready of one tenant before newcomers are turned away.
pub(crate) const READY_PER_TENANT_MAX: u64 = if cfg!(test) { 100 } else { 1_000_000 };
/// Requests that wait for room at the gateway before nothing more is claimed or read.
const OUTBOX_MAX: usize = 4096;
/// Bytes of commands that wait for room at the gateway before nothing more is claimed.
const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// Timers that one batch looks at.
const SWEEP: u32 = 1024;
/// Agents whose queues are refilled at once.
const REFILL_MAX: usize = 64;
/// After a refill that failed, the next one waits so long.
const REFILL_AGAIN: Duration = Duration::from_millis(500);
/// Inventories that gather before the oldest is dropped: they are for people.
const INVENTORIES_MAX: usize = 16_384;
/// Notes that are written at once: they share the writer with everybody else.
const NOTES_MAX: usize = 128;
/// Security events that are logged one by one between two ticks; the metrics count all.
const SECURITY_LINES: u64 = 5;
/// How often timers of the store, questions and demands are looked at.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Demand is told anew this often, in case a word was lost.
const DEMAND_AGAIN: Duration = Duration::from_secs(30);

/// Epochs are raised no more often than this: every raise costs a group's grants.
const RAISE_EVERY: Duration = Duration::from_secs(5);

/// The present, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) mono: Instant,
    pub(super) wall: UnixMs,
}

type CreateAnswer = oneshot::Sender<Result<Vec<Creation>, StoreError>>;
type OrderAnswer = oneshot::Sender<Result<Ordered, StoreError>>;

/// A claim on its way through the store.
struct Claim {
    target: Target,
    grant: GrantId,
    epoch: Epoch,
    /// The permit was offered, not asked for.
    on_offer: bool,
    taken: Taken,
}

/// What the store is being asked for.
struct Refilling {
    /// Under the pauses of this version.
    pauses_version: u64,
    /// Whose queues.
    agents: Vec<AgentId>,
}

/// What gathers for one batch, and who waits for it.
#[derive(Default)]
struct Pending {
    creates: Vec<NewProcess>,
    create_bytes: usize,
    /// Who waits for `creates`, in order.
    create_callers: Vec<applied::CreateCaller>,
    inputs: Vec<Happened>,
    /// The input of each order.
    order_answers: Vec<(usize, OrderAnswer)>,
    claims: BTreeMap<ProcessId, Claim>,
    /// Who waits until nothing is claimed any more that a pause holds.
    held: Vec<oneshot::Sender<()>>,
    resources: BTreeSet<String>,
    abandoned: BTreeSet<AgentId>,
    records: Vec<crate::store::processes::Record>,
    sweep: bool,
}

/// The state machine; see the module.
pub(super) struct Core {
    /// Who we are: every claim says so.
    worker: Uuid,
    fleet: Fleet,
    living: Living,
    tenants: Tenants,
    /// Of the pauses that the fleet knows.
    pauses_version: u64,
    /// The limits that the gateway was told.
    limits: LimitTable,
    /// Who waits for a gateway's answer.
    asked: Asked,
    /// Until then nobody takes our claims for a dead server's.
    believed_until: Instant,
    /// It is later than that: nothing is claimed, or asked for.
    overdue: bool,
    /// Others may suspect us before our beats are missed for long.
    watched: bool,
    /// It keeps the read model, and passes orders on; what is ready is the process servers' business.
    observes: bool,
    /// What other servers have changed is to be looked at, if there are any.
    news_due: bool,
    pending: Pending,
    in_flight: Option<(Pending, Instant)>,
    /// Requests in order; the front one is the next to go.
    outbox: VecDeque<Request>,
    outbox_bytes: usize,
    /// Agents whose demand may have changed.
    restless: BTreeSet<AgentId>,
    /// Agents whose queues have run out; see [`Fleet::wants_refill`].
    hungry: BTreeSet<AgentId>,
    refilling: Option<Refilling>,
    /// The store is not asked for queues before this: it has just failed to answer.
    refill_at: Option<Instant>,
    forget: BTreeMap<AgentId, Vec<OperationId>>,
    inventories: VecDeque<Inventory>,
    last_seen: BTreeMap<AgentId, UnixMs>,
    enrolments: VecDeque<EnrolmentAsked>,
    /// When the store's earliest timer is due.
    next_due: Option<UnixMs>,
    /// Of the process servers that share the store this one has the duty to look at timers.
    sweeps: bool,
    demand_again_at: Instant,
    /// The highest epochs that agents have seen, where those are above ours: the store is older
    /// than its agents' last owner (restored from a backup).
    outdated: BTreeMap<GroupId, Epoch>,
    raise_at: Instant,
    /// Limits that span homes, if this is the server that lends them.
    lender: Lender,
    draining: bool,
    /// Of the process servers that share the gateway this one records what is to be recorded once.
    leads: bool,
    /// No batch before this: the store has just failed.
    not_before: Option<Instant>,
    failures: u32,
    /// Security events since the last tick.
    security_seen: u64,
    /// Inputs of the next batch at most: smaller while the one that cannot be written is looked for.
    batch_max: usize,
    pub(super) stats: EngineStats,
}

/// What is noted about agents, for people.
pub(super) struct Notes {
    pub(super) inventories: Vec<Inventory>,
    pub(super) last_seen: Vec<(AgentId, UnixMs)>,
}

/// What the store knew at the start.
pub(super) struct Recovered {
    /// Agents that may connect.
    pub(super) targets: Vec<Target>,
    /// How many processes wait, by state.
    pub(super) waiting: Vec<(State, u64)>,
    /// How many processes are ready for each agent, in each line.
    pub(super) ready: Vec<ReadyCount>,
    /// What is not to be started.
    pub(super) pauses: PauseTable,
    /// The limits that the gateway has been told.
    pub(super) limits: LimitTable,
    /// What agents may know something about.
    pub(super) active: Vec<Lease>,
    /// Resources that somebody waits for and nobody holds.
    pub(super) resources: Vec<String>,
    /// Revoked agents whose processes have not all ended.
    pub(super) abandoned: Vec<AgentId>,
}

impl Core {
    pub(super) fn new(
        now: Moment,
        (server, worker): (ServerId, Uuid),
        recovered: Recovered,
    ) -> Self {
        let mut core = Self {
            worker,
            fleet: Fleet::new(server),
            living: Living::default(),
            tenants: Tenants::default(),
            pauses_version: 0,
            limits: recovered.limits,
            asked: Asked::new(worker),
            believed_until: now.mono + beats::BELIEF,
            overdue: false,
            watched: false,
            observes: false,
            news_due: false,
            pending: Pending::default(),
            in_flight: None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            restless: BTreeSet::new(),
            hungry: BTreeSet::new(),
            refilling: None,
            refill_at: None,
            forget: BTreeMap::new(),
            inventories: VecDeque::new(),
            last_seen: BTreeMap::new(),
            enrolments: VecDeque::new(),
            next_due: None,
            sweeps: false,
            demand_again_at: now.mono + DEMAND_AGAIN,
            outdated: BTreeMap::new(),
            raise_at: now.mono,
            lender: Lender::new(),
            draining: false,
            leads: true,
            not_before: None,
            failures: 0,
            security_seen: 0,
            batch_max: usize::MAX,
            stats: EngineStats::new(),
        };
        for target in recovered.targets {
            core.fleet.admit(target);
        }
        core.take_pauses(&recovered.pauses);
        core.fleet.set_weights(core.limits.weights());
        core.lender.set_limits(now.mono, &core.limits.on_the_wire());
        for count in recovered.ready {
            core.tenants.add(&count.line.tenant, u64::from(count.ready));
            core.fleet.recover_ready(&count);
        }
        for (state, count) in recovered.waiting {
            core.living.add(state, count);
        }
        for lease in recovered.active {
            core.know(now, &lease);
        }
        core.pending.resources.extend(recovered.resources);
        core.pending.abandoned.extend(recovered.abandoned);
        core
    }

    /// An operation is this server's to look after.
    fn know(&mut self, now: Moment, lease: &Lease) {
        self.living.add(lease.state, 1);
        let left = now.wall.until(lease.deadline_at);
        let known = Known {
            fence: lease.fence,
            step: lease.step,
            state: lease.state,
            line: Arc::clone(&lease.line),
        };
        let (agent, process) = (lease.agent, lease.process);
        self.fleet.activate(agent, process, &known, left, now.mono);
    }

    /// How many events can be taken now. None while draining: what agents still say they will
    /// say again, to the next server.
    pub(super) fn event_room(&self) -> usize {
        if self.draining || self.outbox.len() >= OUTBOX_MAX || self.outbox_bytes >= OUTBOX_BYTES_MAX
        {
            return 0;
        }
        let gathered = self.pending.inputs.len() + self.pending.records.len();
        INPUTS_MAX.saturating_sub(gathered)
    }

    /// Whether another command can be taken now.
    pub(super) fn command_room(&self) -> bool {
        self.pending.create_bytes < CREATE_BYTES_MAX
            && self.pending.inputs.len() < INPUTS_MAX
            && self.outbox.len() < OUTBOX_MAX
    }

    /// Takes the passing of time; call every [`TICK`].
    pub(super) fn handle_tick(&mut self, now: Moment) {
        let unsaid = self.security_seen.saturating_sub(SECURITY_LINES);
        if unsaid > 0 {
            tracing::warn!("and {unsaid} more peers refused; the metrics count each by kind");
        }
        self.security_seen = 0;
        self.asked.handle_tick(now.mono);
        self.lender.handle_tick(now.mono);
        self.tell_lent();
        for (target, about) in self.fleet.due_questions(now.mono) {
            self.ask(target, &about);
        }
        if now.mono >= self.demand_again_at {
            self.demand_again_at = now.mono + DEMAND_AGAIN;
            let waiting: Vec<AgentId> = self.fleet.waiting_agents().collect();
            for agent in waiting {
                self.fleet.look_again(agent);
                self.wake(agent);
            }
        }
    }

    /// Takes when the store's earliest timer is due; to be told whenever that has changed.
    pub(super) fn set_next_due(&mut self, due: Option<UnixMs>) {
        self.next_due = due;
    }

    /// When this server is to look at timers of the store, if it has the duty to and any are set.
    pub(super) fn next_due(&self) -> Option<UnixMs> {
        self.next_due.filter(|_| self.sweeps)
    }

    /// What is to be written now, if anything and if the store is free. Answer with
    /// [`Core::handle_applied`].
    pub(super) fn poll_batch(&mut self, now: Moment, seed: u64) -> Option<Batch> {
        if self.in_flight.is_some() || self.not_before.is_some_and(|at| now.mono < at) {
            return None;
        }
        if self.next_due().is_some_and(|due| due <= now.wall) {
            self.pending.sweep = true;
        }
        if self.pending.is_empty() {
            return None;
        }
        let pending = self.pending.take(self.batch_max);
        let batch = Batch {
            at: now.wall,
            seed,
            worker: Some(self.worker),
            creates: pending.creates.clone(),
            inputs: pending.inputs.clone(),
            resources: pending.resources.iter().cloned().collect(),
            abandoned: pending.abandoned.iter().copied().collect(),
            sweep: if pending.sweep { SWEEP } else { 0 },
            records: pending.records.clone(),
        };
        self.in_flight = Some((pending, now.mono));
        Some(batch)
    }

    /// Whether everything that was taken in is durable and told.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.pending.is_empty() && self.outbox.is_empty()
    }

    /// When a batch may be tried again after a failure.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// Whether it claims nothing more.
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Claims nothing more from now on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether this process server records what is to be recorded once, from now on.
    pub(super) fn set_leads(&mut self, leads: bool) {
        self.leads = leads;
    }

    /// The next request for the gateway. Give it back with [`Core::unsent`] if there is no room.
    pub(super) fn poll_request(&mut self) -> Option<Request> {
        if self.outbox.is_empty() {
            self.gather_requests();
        }
        let request = self.outbox.pop_front()?;
        self.outbox_bytes -= weight(&request);
        Some(request)
    }

    /// The gateway had no room for it: it goes first next time.
    pub(super) fn unsent(&mut self, request: Request) {
        self.stats.link_full += 1;
        self.outbox_bytes += weight(&request);
        self.outbox.push_front(request);
    }

    /// What is to be read of agents' ready processes. Answer with [`Core::handle_refill`], or with
    /// [`Core::refill_failed`].
    pub(super) fn poll_refill(&mut self, now: Moment) -> Option<Vec<Want>> {
        let waits = self.refill_at.is_some_and(|at| now.mono < at);
        if waits || self.refilling.is_some() || self.hungry.is_empty() {
            return None;
        }
        let mut wants = Vec::new();
        while wants.len() < REFILL_MAX
            && let Some(agent) = self.hungry.pop_first()
        {
            if self.fleet.wants_refill(agent) {
                wants.extend(self.fleet.refill_begins(agent));
            }
        }
        if wants.is_empty() {
            return None;
        }
        self.refilling = Some(Refilling {
            pauses_version: self.pauses_version,
            agents: wants.iter().map(|want| want.agent).collect(),
        });
        Some(wants)
    }

    /// When the store may be asked for queues again that it did not read; nothing while none is to be read.
    pub(super) fn refill_due(&self) -> Option<Instant> {
        let waits = self.refilling.is_none() && !self.hungry.is_empty();
        self.refill_at.filter(|_| waits)
    }

    /// The store did not answer. Its agents are asked for again: nothing else would look at them until
    /// [`DEMAND_AGAIN`] is over.
    pub(super) fn refill_failed(&mut self, now: Moment) {
        if let Some(asked) = self.refilling.take() {
            self.hungry.extend(asked.agents);
        }
        self.refill_at = Some(now.mono + REFILL_AGAIN);
    }

    /// Takes what the store has found.
    pub(super) fn handle_refill(&mut self, found: Vec<Found>) {
        let asked = self.refilling.take();
        let current = asked.is_some_and(|asked| asked.pauses_version == self.pauses_version);
        self.refill_at = None;
        for mut found in found {
            let agent = found.agent;
            // What was found under other pauses may be what is not to be started.
            if current {
                for line in &mut found.lines {
                    line.places
                        .retain(|((_, process), _)| !self.is_claiming(*process));
                }
                self.fleet.refill(found);
            }
            self.wake(agent);
        }
    }

    /// What is left out when the store is asked for queues.
    pub(super) fn pauses(&self) -> &Pauses {
        self.fleet.pauses()
    }

    /// Groups whose epoch must rise above what their agents have seen. Answer with
    /// [`Core::handle_raised`].
    pub(super) fn poll_outdated(&mut self, now: Moment) -> Option<Vec<(GroupId, Epoch)>> {
        if self.outdated.is_empty() || now.mono < self.raise_at {
            return None;
        }
        self.raise_at = now.mono + RAISE_EVERY;
        Some(std::mem::take(&mut self.outdated).into_iter().collect())
    }

    /// Takes the groups whose epoch has risen.
    pub(super) fn handle_raised(&mut self, groups: Vec<Group>) {
        for group in groups {
            tracing::warn!(
                group = group.name,
                epoch = %group.epoch,
                "agents had seen a later owner of their group (a restored backup?); its epoch was raised"
            );
            self.assign(&group);
        }
    }

    fn assign(&mut self, group: &Group) {
        self.send(Request::AssignGroup {
            group: group.id,
            slot: group.slot,
            epoch: group.epoch,
        });
    }

    /// What agents said about themselves and when they were last heard of, for the store.
    pub(super) fn take_notes(&mut self) -> Option<Notes> {
        let inventories = self.inventories.len().min(NOTES_MAX);
        let mut notes = Notes {
            inventories: self.inventories.drain(..inventories).collect(),
            last_seen: Vec::new(),
        };
        while notes.last_seen.len() < NOTES_MAX
            && let Some(seen) = self.last_seen.pop_first()
        {
            notes.last_seen.push(seen);
        }
        (!notes.inventories.is_empty() || !notes.last_seen.is_empty()).then_some(notes)
    }

    /// The next enrolment, for the identity service.
    pub(super) fn poll_enrolment(&mut self) -> Option<EnrolmentAsked> {
        self.enrolments.pop_front()
    }

    /// Figures that are read off rather than counted.
    pub(super) fn refresh_stats(&mut self) {
        self.stats.connected = self.fleet.connected().values().sum();
        self.stats.census = self.fleet.census(self.living.counts());
        self.stats.ready = self.fleet.ready_stored();
        self.stats.active = self.fleet.active() as u64;
        self.stats.outbox = self.outbox.len() as u64;
    }

    /// Whether anything has gathered for the next batch.
    pub(super) fn wants_batch(&self) -> bool {
        !self.pending.is_empty()
    }

    /// How much has gathered for the next batch.
    pub(super) fn gathered(&self) -> usize {
        self.pending.inputs.len() + self.pending.creates.len()
    }

    fn is_claiming(&self, process: ProcessId) -> bool {
        let in_flight = self.in_flight.as_ref();
        self.pending.claims.contains_key(&process)
            || in_flight.is_some_and(|(batch, _)| batch.claims.contains_key(&process))
    }

    /// Something changed for an agent's queue.
    fn wake(&mut self, agent: AgentId) {
        if self.observes {
            return;
        }
        self.use_offer(agent);
        self.restless.insert(agent);
        if self.fleet.wants_refill(agent) {
            self.hungry.insert(agent);
        }
    }

    /// Claims what is first in an agent's queue on the permit that was offered, if there is one: so
    /// most processes need no round-trip to the gateway before they are claimed.
    fn use_offer(&mut self, agent: AgentId) {
        let room = self.outbox.len() < OUTBOX_MAX && self.outbox_bytes < OUTBOX_BYTES_MAX;
        // What finds no room here is asked for: after an outage every agent waits at once.
        if room
            && self.pending.inputs.len() < INPUTS_MAX
            && !self.draining
            && !self.overdue
            && let Some((target, grant, epoch, taken)) = self.fleet.take_on_offer(agent)
        {
            self.claim(Claim {
                target,
                grant,
                epoch,
                on_offer: true,
                taken,
            });
        }
    }

    fn claim(&mut self, claim: Claim) {
        let process = claim.taken.place.1;
        self.pending.inputs.push(Happened {
            grant: claim.grant,
            line: self.fleet.line(claim.taken.line).cloned(),
            ..Happened::new(process, Input::Claim)
        });
        self.pending.claims.insert(process, claim);
    }

    fn send(&mut self, request: Request) {
        self.outbox_bytes += weight(&request);
        self.outbox.push_back(request);
    }

    /// Words that replace or gather: told only when the queue is empty, in their latest form.
    fn gather_requests(&mut self) {
        let forget = std::mem::take(&mut self.forget);
        for (agent, mut operations) in forget {
            // Without a session the next inventory shows what is left to forget.
            let Some(target) = self.connected_target(agent) else {
                continue;
            };
            while !operations.is_empty() {
                let rest = operations.split_off(operations.len().min(OPERATIONS_PER_FRAME_MAX));
                self.send(Request::Forget { target, operations });
                operations = rest;
            }
        }
        if self.draining {
            return;
        }
        while self.outbox.len() < OUTBOX_MAX
            && let Some(agent) = self.restless.pop_first()
        {
            // While nothing may be claimed, permits would only go to and fro.
            if let Some(request) = self.fleet.demand(agent, !self.overdue) {
                self.send(request);
            }
            // After the demand, or the gateway would offer the same place again.
            if !self.overdue
                && let Some((target, grant)) = self.fleet.useless_offer(agent)
            {
                self.give_back(target, grant, 1);
            }
        }
    }

    fn connected_target(&self, agent: AgentId) -> Option<Target> {
        let member = self.fleet.get(agent)?;
        member.session.as_ref().map(|_| member.target)
    }

    fn give_back(&mut self, target: Target, grant: GrantId, unused: u32) {
        if unused > 0 {
            self.stats.permits_returned += u64::from(unused);
            self.send(Request::ReturnPermits {
                target,
                grant,
                unused,
            });
        }
    }

    /// Asks an agent about operations, and repeats the cancel of those that are to be cancelled.
    fn ask(&mut self, target: Target, about: &[(ProcessId, super::fleet::Active)]) {
        let mut operations = Vec::with_capacity(about.len());
        for (process, active) in about {
            let operation = operation(*process, active.step);
            if active.state == State::Cancelling {
                self.send(Request::Cancel {
                    target,
                    operation,
                    fence: active.fence,
                });
            }
            operations.push((operation, active.fence));
        }
        if !operations.is_empty() {
            self.send(Request::Query { target, operations });
        }
    }
}

impl Pending {
    /// Takes everything, or what belongs to the first `max` inputs.
    fn take(&mut self, max: usize) -> Self {
        let mut taken = std::mem::take(self);
        if taken.inputs.len() <= max {
            return taken;
        }
        self.inputs = taken.inputs.split_off(max);
        self.held = std::mem::take(&mut taken.held);
        for input in self
            .inputs
            .iter()
            .filter(|input| input.input == Input::Claim)
        {
            if let Some(claim) = taken.claims.remove(&input.process) {
                self.claims.insert(input.process, claim);
            }
        }
        let cancels = std::mem::take(&mut taken.order_answers);
        for (at, answer) in cancels {
            match at.checked_sub(max) {
                Some(at) => self.order_answers.push((at, answer)),
                None => taken.order_answers.push((at, answer)),
            }
        }
        taken
    }

    fn is_empty(&self) -> bool {
        self.create_callers.is_empty()
            && self.held.is_empty()
            && self.inputs.is_empty()
            && self.resources.is_empty()
            && self.abandoned.is_empty()
            && self.records.is_empty()
            && !self.sweep
    }

    /// An agent's word about an operation.
    fn said(&mut self, from: AgentId, operation: OperationId, input: Input) {
        self.inputs.push(Happened {
            from: Some(from),
            step: Some(StepId(operation.step)),
            ..Happened::new(operation.process, input)
        });
    }
}

/// The operation of a process's step.
pub(super) fn operation(process: ProcessId, step: StepId) -> OperationId {
    OperationId::new(process, step.0)
}

/// What a request weighs while it waits, in bytes, about.
fn weight(request: &Request) -> usize {
    match request {
        Request::Dispatch { command, .. } => command.input.len() + size_of::<Request>(),
        _ => size_of::<Request>(),
    }
}
