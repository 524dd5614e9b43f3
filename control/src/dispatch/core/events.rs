//! What gateways say.

use protocol::ids::{AgentId, Epoch, GrantId, OperationId, SessionId};
use protocol::link::{DownReason, Event, SessionUp, Target};
use protocol::operation::{OpenOperation, OperationState, Phase, Progress, Refusal};
use serde_json::json;

use super::{Claim, Core, INVENTORIES_MAX, Moment, SECURITY_LINES, operation};
use crate::dispatch::fleet::LineId;
use crate::dispatch::handle::{EnrolmentAsked, SessionView};
use crate::process::{Input, StepId};
use crate::store::agents::Inventory;
use crate::store::processes::{Happened, Record};

impl Core {
    /// Takes one event of a gateway, in the order in which they arrived.
    pub(in crate::dispatch) fn handle_event(&mut self, now: Moment, event: Event) {
        match event {
            Event::SessionUp(up) => self.session_up(now, *up),
            Event::SessionDown {
                target,
                session,
                reason,
            } => self.session_down(now, target, session, reason),
            Event::Granted {
                target,
                grant,
                epoch,
                permits,
                server,
                line,
                ttl: _,
            } if self.fleet.is_named(server) => {
                self.granted(target, LineId(line), (grant, epoch), permits);
            }
            Event::Offered {
                target,
                grant,
                epoch,
            } => {
                self.fleet.offered(target.agent, grant, epoch);
                self.wake(target.agent);
            }
            Event::Withdrawn { target, grant } => self.fleet.withdrawn(target.agent, grant),
            Event::FlowTold { ticket, flow, .. } => self.asked.handle_flow(ticket, flow),
            Event::LimitTold {
                ticket,
                shard,
                shards,
                used,
            } => self.asked.handle_use(ticket, shard, shards, used),
            Event::Reported {
                shard,
                shards,
                reports,
            } => {
                self.lender
                    .handle_reported(now.mono, shard, shards, &reports);
                self.tell_lent();
            }
            Event::Enrol {
                shard,
                ticket,
                remote,
                request,
            } => self.enrolments.push_back(EnrolmentAsked {
                shard,
                ticket,
                remote,
                request,
            }),
            Event::Security {
                kind,
                agent,
                remote,
            } => {
                let kind = kind.name();
                *self.stats.security.entry(kind).or_default() += 1;
                self.security_seen += 1;
                if self.security_seen <= SECURITY_LINES {
                    // An agent that is not known is left out of the line.
                    let agent = agent.map(tracing::field::display);
                    tracing::warn!(kind, agent, %remote, "a gateway refused a peer");
                }
            }
            // Whoever has claimed it hears it as well.
            _ if self.observes => {}
            about_operation => self.operation_event(about_operation),
        }
    }

    fn operation_event(&mut self, event: Event) {
        match event {
            Event::Accepted {
                target,
                operation,
                fence,
            } => self.said(target, operation, Input::Accepted(fence)),
            Event::Progress {
                target,
                operation,
                fence,
                progress,
            } => self.progress(target, operation, fence, progress),
            Event::Finished {
                target,
                operation,
                fence,
                outcome,
            } => self.said(target, operation, Input::Finished(fence, outcome)),
            Event::Refused {
                target,
                operation,
                fence,
                refusal,
            } => {
                tracing::debug!(agent = %target.agent, %operation, %refusal, "refused");
                if let Refusal::StaleEpoch { seen } = refusal {
                    let highest = self.outdated.entry(target.group).or_insert(seen);
                    *highest = seen.max(*highest);
                }
                self.said(target, operation, Input::Refused(fence, refusal));
            }
            Event::NotDelivered {
                target,
                operation,
                fence,
                reason,
            } => {
                self.fleet.distrust_demand(target.agent);
                self.said(target, operation, Input::NotDelivered(fence, reason));
            }
            Event::Uncertain {
                target,
                operation,
                fence,
            } => self.said(target, operation, Input::Uncertain(fence)),
            Event::Report {
                target,
                operation,
                fence,
                state,
            } => self.said(target, operation, Input::Report(fence, state)),
            Event::SessionUp(_)
            | Event::SessionDown { .. }
            | Event::Granted { .. }
            | Event::Offered { .. }
            | Event::Withdrawn { .. }
            | Event::FlowTold { .. }
            | Event::LimitTold { .. }
            | Event::Reported { .. }
            | Event::Enrol { .. }
            | Event::Security { .. } => {}
        }
    }

    fn said(&mut self, target: Target, operation: OperationId, input: Input) {
        self.pending.said(target.agent, operation, input);
    }

    fn progress(
        &mut self,
        target: Target,
        operation: OperationId,
        fence: protocol::ids::Fence,
        progress: Progress,
    ) {
        let bytes = progress.output.len() + progress.message.len();
        let input = Input::Progress {
            fence,
            sequence: progress.sequence,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        };
        self.pending.inputs.push(Happened {
            from: Some(target.agent),
            step: Some(StepId(operation.step)),
            progress: Some(progress),
            ..Happened::new(operation.process, input)
        });
    }

    fn granted(
        &mut self,
        target: Target,
        line: LineId,
        (grant, epoch): (GrantId, Epoch),
        permits: u32,
    ) {
        let claims = !self.draining && !self.overdue;
        let taken = match claims {
            true => self.fleet.take(target.agent, line, permits),
            false => Vec::new(),
        };
        let used = u32::try_from(taken.len()).unwrap_or(permits);
        let unused = permits.saturating_sub(used);
        self.give_back(target, grant, unused);
        self.fleet.gave_back(target.agent, line, unused);
        for taken in taken {
            self.claim(Claim {
                target,
                grant,
                epoch,
                on_offer: false,
                taken,
            });
        }
        // What may not be claimed is not asked for again either; see `note_time`.
        if claims {
            self.wake(target.agent);
        }
    }

    fn session_up(&mut self, now: Moment, up: SessionUp) {
        let target = up.target;
        let agent = target.agent;
        if self.leads {
            self.record_session(
                agent,
                "agent.up",
                json!({
                    "session": up.session.0,
                    "shard": up.shard.0,
                    "at_home": up.at_home,
                    "remote": up.remote.to_string(),
                    "hostname": up.hostname,
                    "software": up.software,
                }),
            );
            self.note_inventory(now, &up);
        }
        self.reconcile(target, &up.open);
        let session = SessionView {
            session: up.session,
            shard: up.shard,
            at_home: up.at_home,
            remote: up.remote,
            capacity: up.capacity,
            kinds: up.kinds,
            hostname: up.hostname,
            software: up.software,
            labels: up.labels,
        };
        self.fleet.connect(target, session, now.wall);
        self.wake(agent);
    }

    fn note_inventory(&mut self, now: Moment, up: &SessionUp) {
        if self.inventories.len() >= INVENTORIES_MAX {
            self.inventories.pop_front();
        }
        self.inventories.push_back(Inventory {
            agent: up.target.agent,
            at: now.wall,
            hostname: up.hostname.clone(),
            software: up.software.clone(),
            kinds: up.kinds.clone(),
            labels: up.labels.clone(),
        });
    }

    /// Compares what an agent's journal holds with what it may know something about.
    fn reconcile(&mut self, target: Target, open: &[OpenOperation]) {
        let known: Vec<_> = self
            .fleet
            .get(target.agent)
            .map_or_else(Vec::new, |member| {
                let active = member.active().iter();
                active
                    .map(|(process, active)| (*process, *active))
                    .collect()
            });
        let mut missing = known;
        for line in open {
            let place = missing
                .iter()
                .position(|(process, at)| operation(*process, at.step) == line.operation);
            match place {
                Some(place) => drop(missing.swap_remove(place)),
                // Another process server's, which hears of it itself; nobody's, if that is gone.
                None if !self.leads => continue,
                None => {}
            }
            let state = match line.phase {
                Phase::Accepted => OperationState::Accepted,
                Phase::Running => OperationState::Running,
                // Its outcome follows in a report of its own.
                Phase::Finished => continue,
            };
            self.said(target, line.operation, Input::Report(line.fence, state));
        }
        self.ask(target, &missing);
    }

    fn session_down(
        &mut self,
        now: Moment,
        target: Target,
        session: SessionId,
        reason: DownReason,
    ) {
        if !self.fleet.disconnect(target, session, now.wall) {
            return;
        }
        if !self.leads {
            return;
        }
        self.last_seen.insert(target.agent, now.wall);
        self.record_session(
            target.agent,
            "agent.down",
            json!({ "session": session.0, "reason": down_text(reason) }),
        );
    }

    fn record_session(&mut self, agent: AgentId, kind: &'static str, data: serde_json::Value) {
        self.pending.records.push(Record {
            kind,
            process: None,
            agent: Some(agent),
            data,
        });
    }
}

fn down_text(reason: DownReason) -> String {
    match reason {
        DownReason::ClosedHere(code) => code.to_string(),
        DownReason::ClosedByAgent(code) => match protocol::close::CloseCode::from_wire(code) {
            Some(code) => format!("closed by the agent: {code}"),
            None => format!("closed by the agent with code {code:#x}"),
        },
        DownReason::TimedOut => "nothing was heard for the idle time".to_owned(),
        DownReason::TransportError => "a QUIC or TLS error".to_owned(),
    }
}
