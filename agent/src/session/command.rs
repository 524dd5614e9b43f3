//! Commands, cancels, queries and forgets: who is served, who is refused, and why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::ids::{Epoch, Fence, OperationId};
use protocol::limits;
use protocol::operation::{Command, Refusal};

use super::durable::Effect;
use super::{Lane, LaneState, Link, Output, Run, Session, Step, deadline_of};
use crate::driver::StopReason;
use crate::journal::{Body, Record, Verdict};

/// What a full agent tells its gateway; permits normally keep this from happening.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Session {
    /// The command of a new command stream. `now_ms` is the wall clock.
    pub fn handle_command(
        &mut self,
        now: Instant,
        now_ms: u64,
        lane: Lane,
        epoch: Epoch,
        command: Command,
    ) {
        self.lanes.push(LaneState {
            lane,
            operation: command.operation,
            fence: command.fence,
            told: false,
        });
        if let Err(refusal) = self.take(now, now_ms, lane, epoch, command) {
            self.refuse(lane, refusal);
        }
    }

    fn take(
        &mut self,
        now: Instant,
        now_ms: u64,
        lane: Lane,
        epoch: Epoch,
        command: Command,
    ) -> Result<(), Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::StaleEpoch { seen: self.epoch });
        }
        self.note_epoch(epoch);
        let (operation, fence) = (command.operation, command.fence);
        match self.journal.judge(operation, fence) {
            Verdict::Stale(seen) => Err(Refusal::StaleFence { seen }),
            Verdict::Cancelled => Err(Refusal::Cancelled),
            Verdict::Open { raise } | Verdict::Finished { raise, .. } => {
                if raise {
                    self.record(Record::Raised { operation, fence });
                }
                self.defer(Effect::Join(lane));
                Ok(())
            }
            // A transient failure whose end is not durable yet: let that settle first.
            Verdict::New if self.run_at(operation).is_some() => Err(Refusal::Busy {
                retry_after: BUSY_RETRY_AFTER,
            }),
            Verdict::New => {
                self.check_new(now_ms, &command)?;
                self.accept(deadline_of(now, now_ms, &command), lane, command);
                Ok(())
            }
        }
    }

    /// Everything that speaks against an operation that the journal does not know.
    fn check_new(&self, now_ms: u64, command: &Command) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let driver = self.drivers.get(&command.kind);
        let driver = driver.ok_or_else(|| Refusal::UnknownKind {
            kind: command.kind.clone(),
        })?;
        driver.validate(&command.input).map_err(|mut message| {
            super::clip(&mut message, limits::MESSAGE_BYTES_MAX);
            Refusal::InvalidInput { message }
        })?;
        if command.deadline_ms <= now_ms {
            return Err(Refusal::DeadlinePassed);
        }
        let capacity = usize::try_from(self.profile.capacity).unwrap_or(usize::MAX);
        if self.runs.len() >= capacity {
            let retry_after = BUSY_RETRY_AFTER;
            return Err(Refusal::Busy { retry_after });
        }
        if self.journal.open_count() >= limits::JOURNAL_OPEN_MAX {
            return Err(Refusal::JournalFull);
        }
        Ok(())
    }

    fn accept(&mut self, deadline: Instant, lane: Lane, command: Command) {
        let command = Arc::new(command);
        self.record(Record::Accepted(Arc::clone(&command)));
        let operation = command.operation;
        self.runs.push(Run {
            command,
            deadline,
            step: Step::Preparing,
            lane: Some(lane),
            sequence: 0,
            stop: None,
            unsaid: None,
        });
        self.defer(Effect::Accept(operation));
    }

    /// Remembers the highest epoch, durably with the next batch.
    pub(super) fn note_epoch(&mut self, epoch: Epoch) {
        if epoch < self.epoch {
            tracing::warn!(
                agent = %self.agent, %epoch, seen = %self.epoch,
                "the gateway's epoch is lower than one seen before: its store may have been \
                 restored from an old copy; its commands are refused until the epoch is higher"
            );
        }
        self.epoch = self.epoch.max(epoch);
        if self.epoch > self.journal.epoch() {
            self.record(Record::Epoch(self.epoch));
        }
    }

    /// Says what is known; an operation never seen gets a tombstone, so that the answer stays true.
    pub(super) fn query(&mut self, link: Link, operation: OperationId, fence: Fence) {
        self.mark(operation, fence, false);
        self.defer(Effect::Report(link, operation));
    }

    /// Stops a running operation, or keeps one from ever starting here.
    pub(super) fn cancel(
        &mut self,
        link: Link,
        operation: OperationId,
        fence: Fence,
        epoch: Epoch,
    ) {
        if epoch < self.epoch {
            tracing::info!(agent = %self.agent, %operation, %epoch, seen = %self.epoch,
                "ignored a cancel from a replaced owner");
            return;
        }
        self.note_epoch(epoch);
        let known = self.journal.entry(operation).map(|entry| entry.fence);
        if known.is_some_and(|known| fence < known) {
            // Meant for an earlier claim; what runs here is newer.
            self.defer(Effect::Report(link, operation));
            return;
        }
        self.mark(operation, fence, true);
        match self.run_at(operation) {
            Some(at) => self.stop(at, StopReason::Cancelled),
            None => self.defer(Effect::Report(link, operation)),
        }
    }

    /// From now on this operation is known here under `fence` at least.
    fn mark(&mut self, operation: OperationId, fence: Fence, cancel: bool) {
        let (raise, cancelled) = match self.journal.entry(operation) {
            None => (true, false),
            Some(entry) => {
                let cancelled = match entry.body {
                    Body::Tombstone { cancelled, .. } => cancelled,
                    _ => true,
                };
                if !matches!(entry.body, Body::Tombstone { .. }) {
                    if fence > entry.fence {
                        self.record(Record::Raised { operation, fence });
                    }
                    return;
                }
                (fence > entry.fence, cancelled)
            }
        };
        if raise || (cancel && !cancelled) {
            self.record(Record::Tombstone {
                operation,
                fence,
                cancelled: cancel || cancelled,
            });
        }
    }

    /// The outcome is safe elsewhere.
    pub(super) fn forget(&mut self, operation: OperationId) {
        let known = self.journal.entry(operation).map(|entry| &entry.body);
        let over = matches!(known, Some(Body::Finished(_) | Body::Tombstone { .. }));
        if over && self.run_at(operation).is_none() {
            self.record(Record::Forgotten(operation));
            self.outputs.push_back(Output::Forgotten(operation));
        }
    }

    /// Stops a run; the first reason counts.
    pub(super) fn stop(&mut self, at: usize, reason: StopReason) {
        let run = &mut self.runs[at];
        if run.stop.is_some() || matches!(run.step, Step::Ended(_)) {
            return;
        }
        run.stop = Some(reason);
        // Before it works the reason is looked at when the step is over.
        if matches!(run.step, Step::Working) {
            let operation = run.command.operation;
            self.outputs.push_back(Output::Stop { operation, reason });
        }
    }
}
