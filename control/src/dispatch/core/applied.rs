//! What follows from a batch once it is durable, or once the store has refused it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::flow::Line;
use protocol::ids::{AgentId, Fence, OperationId, ProcessId};
use protocol::link::Request;
use protocol::operation::Command;

use super::{Claim, Core, CreateAnswer, Moment, Pending, operation};
use crate::clock::UnixMs;
use crate::dispatch::fleet::Known;
use crate::dispatch::handle::Ordered;
use crate::process::{Input, State, Tell};
use crate::store::StoreError;
use crate::store::processes::{Applied, Creation, Effect, Names, NewProcess, Now, Work};
use crate::store::queries::ProcessRecord;

/// The first wait after the store has failed; doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait after the store has failed.
const RETRY_LAST: Duration = Duration::from_secs(5);
/// The longest wait while its server does not answer: to ask whether it is back costs little (`store/pen.rs`), and
/// everybody waits for it.
const RETRY_AWAY: Duration = Duration::from_secs(1);

/// A caller that waits for its creations: those decided without the store, by their place, and how
/// many of the batch are its own.
pub(super) struct CreateCaller {
    refused: Vec<(usize, Creation)>,
    asked: usize,
    answer: CreateAnswer,
}

impl Pending {
    pub(super) fn add_creates(
        &mut self,
        processes: Vec<NewProcess>,
        refused: Vec<(usize, Creation)>,
        answer: CreateAnswer,
    ) {
        let bytes = processes.iter().map(|process| process.input.len() + 512);
        self.create_bytes += bytes.sum::<usize>();
        self.create_callers.push(CreateCaller {
            refused,
            asked: processes.len(),
            answer,
        });
        self.creates.extend(processes);
    }
}

impl Core {
    /// Takes what the store says about the batch that was polled last.
    pub(in crate::dispatch) fn handle_applied(
        &mut self,
        now: Moment,
        result: Result<Applied, StoreError>,
    ) {
        let Some((mut batch, started)) = self.in_flight.take() else {
            return;
        };
        let held = std::mem::take(&mut batch.held);
        let inputs = batch.inputs.len() + batch.creates.len();
        match result {
            Ok(applied) => {
                self.failures = 0;
                self.batch_max = self.batch_max.saturating_mul(2);
                self.not_before = None;
                self.stats.store_error = None;
                self.stats.batch_size.saturating_record(inputs as u64);
                let took = now.mono.saturating_duration_since(started);
                self.stats.batch.record(took);
                self.applied(now, batch, applied);
            }
            Err(error) => self.failed(now, batch, &error),
        }
        // Claims that could not be written are given up, so nothing is claimed either way.
        for answer in held {
            answer.send(()).unwrap_or_default();
        }
    }

    fn applied(&mut self, now: Moment, mut batch: Pending, applied: Applied) {
        // Before what was started over: nothing holds that any more.
        if let Some(pauses) = &applied.pauses {
            self.take_pauses(pauses);
        }
        let mut orders = std::mem::take(&mut batch.order_answers)
            .into_iter()
            .peekable();
        for (index, effect) in applied.steps.into_iter().enumerate() {
            while let Some((_, answer)) = orders.next_if(|(at, _)| *at == index) {
                drop(answer.send(Ok(ordered(&effect))));
            }
            self.effect(now, effect, &mut batch.claims);
        }
        // What is left had no step of its own: the claim was decided by an earlier input.
        for claim in std::mem::take(&mut batch.claims).into_values() {
            self.unclaimed(&claim);
        }
        self.pending.resources.extend(applied.freed);
        self.pending.abandoned.extend(applied.abandoned_more);
        self.created(batch, applied.creations, applied.lines);
    }

    fn effect(&mut self, now: Moment, effect: Effect, claims: &mut BTreeMap<ProcessId, Claim>) {
        self.stats.stale += u64::from(effect.stale);
        self.stats.deferred += u64::from(effect.deferred);
        let process = effect.process;
        let Some(after) = effect.now else {
            if let (Some(Tell::Forget), Some(agent)) = (effect.tell, effect.from) {
                self.forget(agent, effect.operation);
            }
            return;
        };
        let agent = after.target;
        // A ready process that turns to another place, or to another line, has moved as well.
        let turned = |names: &Names| names.line_before != names.line;
        if effect.before != Some(after.state)
            || effect.place_before != after.ready_at
            || effect.names.as_ref().is_some_and(turned)
        {
            self.moved(now, process, &effect, after);
        }
        let operation = effect.operation;
        match effect.tell {
            Some(Tell::Forget) => self.forget(agent, operation),
            Some(Tell::Cancel(fence)) => {
                if let Some(target) = self.connected_target(agent) {
                    self.send(Request::Cancel {
                        target,
                        operation,
                        fence,
                    });
                }
            }
            // The answer would come here, and not to whoever has claimed it.
            Some(Tell::Query(_)) if self.observes => {}
            Some(Tell::Query(fence)) => {
                if let Some(target) = self.connected_target(agent) {
                    let operations = vec![(operation, fence)];
                    self.send(Request::Query { target, operations });
                }
            }
            None => {}
        }
        // Another server may have heard of its end first.
        if effect.stale && !after.state.is_active() {
            self.fleet.deactivate(agent, process);
        }
        if let Some(work) = effect.work
            && let Some(claim) = claims.remove(&effect.instead_of.unwrap_or(process))
        {
            self.dispatch(process, claim, after, work);
        }
    }

    fn forget(&mut self, agent: AgentId, operation: OperationId) {
        let operations = self.forget.entry(agent).or_default();
        operations.push(operation);
    }

    /// Keeps the fleet's copy in step with a change of state.
    fn moved(&mut self, now: Moment, process: ProcessId, effect: &Effect, after: Now) {
        let agent = after.target;
        self.living.moved(effect.before, after.state);
        if effect.before == Some(State::Ready) {
            let names = effect.names.as_ref();
            let stood = names
                .and_then(|names| Some((&*names.line_before, (effect.place_before?, process))));
            self.fleet.uncount_ready(agent, stood);
            if let Some(names) = names {
                self.tenants.remove(&names.tenant);
            }
        }
        if after.state == State::Ready {
            self.became_ready(process, effect, after);
        }
        self.paced(now, effect, after);
        let known = effect.names.as_ref().filter(|_| !self.observes);
        if let Some(names) = known.filter(|_| after.state.is_active()) {
            let known = Known {
                fence: after.fence,
                step: after.step,
                state: after.state,
                line: Arc::clone(&names.line),
            };
            let left = now.wall.until(after.deadline_at);
            self.fleet.activate(agent, process, &known, left, now.mono);
        } else if effect.before.is_some_and(State::is_active) {
            self.fleet.deactivate(agent, process);
        }
        self.count(now, effect, after);
        self.wake(agent);
    }

    fn became_ready(&mut self, process: ProcessId, effect: &Effect, after: Now) {
        let agent = after.target;
        self.fleet.count_ready(agent, 1);
        let place = (after.ready_at.unwrap_or(after.created_at), process);
        let Some(names) = &effect.names else {
            return;
        };
        self.tenants.add(&names.tenant, 1);
        let pauses = self.fleet.pauses();
        if !self.observes && !pauses.holds(process, &names.tenant, &names.kind) {
            let entry = (place, after.deadline_at);
            self.fleet.enqueue(agent, &names.line, entry);
        }
    }

    /// Counts what has ended at an agent, for the pace.
    fn paced(&mut self, now: Moment, effect: &Effect, after: Now) {
        let ended = effect.before.is_some_and(State::is_active) && !after.state.is_active();
        if let Some(names) = effect.names.as_ref().filter(|_| ended) {
            self.fleet.completed(after.target, now.mono);
            self.tenants.completed(&names.tenant, now.mono);
        }
    }

    fn count(&mut self, now: Moment, effect: &Effect, after: Now) {
        let age = after.created_at.until(now.wall);
        let stats = &mut self.stats;
        match after.state {
            State::Leased => {
                stats.claimed += 1;
                stats.start.record(age);
                if let Some(since) = ready_since(effect, after) {
                    stats.queue.record(since.until(now.wall));
                }
            }
            State::Succeeded => stats.succeeded += 1,
            State::Failed => stats.failed += 1,
            State::Cancelled => stats.cancelled += 1,
            State::Unknown => stats.unknown += 1,
            // The next step is no return.
            State::Ready | State::Backoff
                if effect.before.is_some_and(State::is_active)
                    && effect.operation.step == after.step.0 =>
            {
                stats.returned += 1;
            }
            _ => {}
        }
        if after.state.is_terminal() {
            stats.total.record(age);
        }
    }

    fn dispatch(&mut self, process: ProcessId, claim: Claim, after: Now, work: Work) {
        let agent = claim.target.agent;
        self.fleet.settle(agent, claim.taken.line, claim.on_offer);
        self.send(Request::Dispatch {
            target: claim.target,
            grant: claim.grant,
            epoch: claim.epoch,
            command: Box::new(Command {
                operation: operation(process, after.step),
                fence: after.fence,
                kind: work.kind,
                input: work.input.into_bytes().into(),
                deadline_ms: work.deadline_at.0,
            }),
        });
    }

    /// The process was not there to be claimed any more: its permit goes back.
    fn unclaimed(&mut self, claim: &Claim) {
        let agent = claim.target.agent;
        self.fleet.settle(agent, claim.taken.line, claim.on_offer);
        self.give_back(claim.target, claim.grant, 1);
        self.wake(agent);
    }

    fn created(&mut self, batch: Pending, creations: Vec<Creation>, lines: Vec<Option<Arc<Line>>>) {
        let mut creations = creations.into_iter();
        let mut lines = lines.into_iter();
        for caller in batch.create_callers {
            let own: Vec<Creation> = creations.by_ref().take(caller.asked).collect();
            for (creation, line) in own.iter().zip(lines.by_ref().take(caller.asked)) {
                if let Creation::Created(record) = creation {
                    self.made(record, line);
                }
            }
            drop(caller.answer.send(Ok(merge(own, caller.refused))));
        }
    }

    /// A process is there; `line`: that in which it is ready.
    fn made(&mut self, record: &ProcessRecord, line: Option<Arc<Line>>) {
        self.stats.created += 1;
        self.living.add(record.state, 1);
        let Some(line) = line else { return };
        self.fleet.count_ready(record.agent, 1);
        self.tenants.add(&record.tenant, 1);
        let pauses = self.fleet.pauses();
        if !self.observes && !pauses.holds(record.id, &record.tenant, &record.kind) {
            let place = (record.created_at, record.id);
            let entry = (place, record.deadline_at);
            self.fleet.enqueue(record.agent, &line, entry);
        }
        self.wake(record.agent);
    }

    /// The store took nothing of it. Callers are told; what was heard is kept, in order.
    fn failed(&mut self, now: Moment, mut batch: Pending, error: &StoreError) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10));
        let most = match error {
            StoreError::Unreachable => RETRY_AWAY,
            _ => RETRY_LAST,
        };
        self.not_before = Some(now.mono + wait.min(most));
        self.failures = self.failures.saturating_add(1);
        self.stats.failed_batches += 1;
        self.stats.store_error = Some(error.to_string());
        for caller in std::mem::take(&mut batch.create_callers) {
            drop(caller.answer.send(Err(error.clone())));
        }
        let mut forsaken = BTreeSet::new();
        for (at, answer) in std::mem::take(&mut batch.order_answers) {
            drop(answer.send(Err(error.clone())));
            forsaken.insert(at);
        }
        let tried = batch.inputs.len();
        let unclaimable = tried == 1 && is_about_content(error);
        // Claims are cheap to make again, and their grants will not live that long.
        for claim in std::mem::take(&mut batch.claims).into_values() {
            self.unclaimed(&claim);
            if unclaimable {
                self.stats.unwritable += 1;
                self.fleet.uncount_ready(claim.target.agent, None);
                tracing::error!(process = %claim.taken.place.1, %error, "a process cannot be claimed");
            } else {
                self.fleet.put_back(claim.target.agent, &claim.taken);
            }
        }
        let heard = std::mem::take(&mut batch.inputs).into_iter().enumerate();
        batch.inputs = heard
            .filter(|(at, input)| !forsaken.contains(at) && input.input != Input::Claim)
            .map(|(_, input)| input)
            .collect();
        if is_about_content(error) {
            self.narrow(&mut batch, tried, error);
        }
        self.pending.put_back(batch);
    }

    /// Something in the batch cannot be written, however often it is tried: halves the batches
    /// until it stands alone, and leaves it out. One damaged row must not stop all others. Of the
    /// `tried` inputs the claims are no longer in `batch`: what was beside one is not to blame yet.
    fn narrow(&mut self, batch: &mut Pending, tried: usize, error: &StoreError) {
        self.not_before = None;
        if tried <= 1 {
            for input in batch.inputs.drain(..) {
                self.stats.unwritable += 1;
                tracing::error!(process = %input.process, %error, "a word about a process was dropped");
            }
            batch.records.clear();
            batch.resources.clear();
            batch.abandoned.clear();
        }
        self.batch_max = (tried / 2).max(1);
    }
}

impl Pending {
    /// Puts what an earlier batch held in front of what has gathered since.
    fn put_back(&mut self, batch: Self) {
        let shift = batch.inputs.len();
        let newer = std::mem::replace(&mut self.inputs, batch.inputs);
        self.inputs.extend(newer);
        for (at, _) in &mut self.order_answers {
            *at += shift;
        }
        let newer = std::mem::replace(&mut self.records, batch.records);
        self.records.extend(newer);
        self.resources.extend(batch.resources);
        self.abandoned.extend(batch.abandoned);
        self.sweep |= batch.sweep;
    }
}

/// When a process that was claimed became ready: its place in the queue says it, unless it came back
/// from an earlier claim and was given its first place again.
fn ready_since(effect: &Effect, after: Now) -> Option<UnixMs> {
    let place = effect.place_before?;
    (place != after.created_at || after.fence == Fence(1)).then_some(place)
}

/// Whether the store failed because of what it was given, not because of itself.
fn is_about_content(error: &StoreError) -> bool {
    match error {
        StoreError::BadRow(_) | StoreError::JobPanicked => true,
        StoreError::Sql(error) => match error.as_ref() {
            sqlx::Error::Database(error) => {
                // Servers have class 22 for data that does not fit.
                let misfit = |code: &str| code.len() == 5 && code.starts_with("22");
                !matches!(error.kind(), sqlx::error::ErrorKind::Other)
                    || error.code().is_some_and(|code| misfit(&code))
            }
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
            _ => false,
        },
        StoreError::Busy | StoreError::Stopped | StoreError::Unreachable | StoreError::Doubtful => {
            false
        }
    }
}

fn ordered(effect: &Effect) -> Ordered {
    match (&effect.now, &effect.refused) {
        (None, _) => Ordered::NotFound,
        (Some(_), Some(why)) => Ordered::Refused(why.clone()),
        (Some(now), None) => Ordered::State(now.state),
    }
}

/// Puts the refused ones back to their places.
fn merge(own: Vec<Creation>, refused: Vec<(usize, Creation)>) -> Vec<Creation> {
    let mut all = Vec::with_capacity(own.len() + refused.len());
    let mut own = own.into_iter();
    for (at, refusal) in refused {
        while all.len() < at {
            match own.next() {
                Some(creation) => all.push(creation),
                None => break,
            }
        }
        all.push(refusal);
    }
    all.extend(own);
    all
}

#[cfg(test)]
mod tests;
