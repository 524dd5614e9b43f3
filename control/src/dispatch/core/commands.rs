//! What the rest of the control plane asks for.

use std::collections::BTreeMap;

use protocol::enrol::{EnrolRefusal, EnrolReply};
use protocol::flow::LimitKey;
use protocol::ids::AgentId;
use protocol::link::Request;

use super::{Core, Moment, READY_PER_AGENT_MAX, READY_PER_TENANT_MAX};
use crate::dispatch::asked::{FlowAnswer, UseAnswer};
use crate::dispatch::handle::{Command, EnrolmentAsked, FlowError, WaitingOn};
use crate::process::pause::Pauses;
use crate::store::limits::LimitTable;
use crate::store::pauses::PauseTable;
use crate::store::processes::{Creation, Happened, NewProcess};

impl Core {
    /// Takes one command.
    pub(in crate::dispatch) fn handle_command(&mut self, now: Moment, command: Command) {
        match command {
            Command::Create(processes, answer) => self.create(now, processes, answer),
            Command::Order {
                process,
                input,
                actor,
                answer,
            } => {
                let at = self.pending.inputs.len();
                self.pending.inputs.push(Happened {
                    actor,
                    ..Happened::new(process, input)
                });
                self.pending.order_answers.push((at, answer));
            }
            Command::Pauses(table, answer) => {
                self.take_pauses(&table);
                // What was claimed before is on its way to the store, or goes with the next batch.
                self.pending.held.push(answer);
            }
            Command::Limits(table) => self.take_limits(now, table),
            Command::Flow(agent, answer) => self.ask_flow(now, agent, answer),
            Command::Use(key, answer) => self.ask_use(now, key, answer),
            Command::Send(request) => self.send(request),
            Command::Adopt(group) => self.assign(&group),
            Command::Admit(target, keys) => {
                self.fleet.admit(target);
                self.send(Request::AdmitAgent { target, keys });
            }
            Command::Revoke(agent) => {
                self.fleet.revoke(agent);
                self.pending.abandoned.insert(agent);
                self.send(Request::RevokeAgent { agent });
            }
            // A caller that has gone away no longer wants its answer.
            Command::Agents(agents, answer) => {
                let views = agents.into_iter().map(|agent| self.fleet.view(agent));
                drop(answer.send(views.collect()));
            }
            Command::Connected(answer) => drop(answer.send(self.fleet.connected().clone())),
            Command::WaitingOn(process, agent, answer) => {
                let mut waits = self.fleet.waiting_on(process, agent, now.mono);
                if let Some(WaitingOn::Host(queued)) = &mut waits
                    && let Some(line) = &queued.line
                {
                    queued.tenant_each = self.tenants.each(&line.tenant, now.mono);
                }
                drop(answer.send(waits));
            }
        }
    }

    /// Turns an enrolment away: too many wait.
    pub(in crate::dispatch) fn refuse_enrolment(&mut self, asked: &EnrolmentAsked) {
        self.stats.enrolments_busy += 1;
        self.send(Request::EnrolReply {
            shard: asked.shard,
            ticket: asked.ticket,
            reply: EnrolReply::Refused(EnrolRefusal::Busy),
        });
    }

    /// What is not to be started, unless something newer is known.
    pub(in crate::dispatch) fn take_pauses(&mut self, table: &PauseTable) {
        if table.version < self.pauses_version {
            return;
        }
        self.pauses_version = table.version;
        let pauses = Pauses::new(table.pauses.iter().map(|pause| &pause.key));
        for agent in self.fleet.set_pauses(pauses) {
            self.wake(agent);
        }
    }

    /// The limits that are set, unless something newer is known. The gateway is told what it does not know.
    pub(in crate::dispatch) fn take_limits(&mut self, now: Moment, table: LimitTable) {
        if table.version < self.limits.version {
            return;
        }
        for agent in self.fleet.set_weights(table.weights()) {
            self.wake(agent);
        }
        let limits = table.on_the_wire();
        let known = std::mem::replace(&mut self.limits, table);
        if limits != known.on_the_wire() {
            self.tell_limits(now, limits);
        }
    }

    fn ask_flow(&mut self, now: Moment, agent: AgentId, answer: FlowAnswer) {
        match self.connected_target(agent) {
            None => drop(answer.send(Err(FlowError::NoSession))),
            Some(target) => {
                if let Some(ticket) = self.asked.flow(now.mono, answer) {
                    self.send(Request::AskFlow { target, ticket });
                }
            }
        }
    }

    fn ask_use(&mut self, now: Moment, key: LimitKey, answer: UseAnswer) {
        if let Some(ticket) = self.asked.used(now.mono, answer) {
            self.send(Request::AskLimit { key, ticket });
        }
    }

    /// Whether a process may be made, as far as memory knows.
    fn create(&mut self, now: Moment, processes: Vec<NewProcess>, answer: super::CreateAnswer) {
        let mut refused = Vec::new();
        let mut places = BTreeMap::new();
        let mut by_tenant: BTreeMap<String, u64> = BTreeMap::new();
        let total = processes.len();
        let mut kept = Vec::with_capacity(total);
        for (index, process) in processes.into_iter().enumerate() {
            let agent = process.agent;
            let known = self.fleet.get(agent).is_some_and(|member| member.admitted);
            let more = places.entry(agent).or_insert(0_u32);
            let waiting = self.fleet.waiting_for(agent).saturating_add(*more);
            let theirs = by_tenant.entry(process.tenant.clone()).or_insert(0);
            let tenant = self.tenants.ready(&process.tenant).saturating_add(*theirs);
            if !known {
                refused.push((index, Creation::UnknownAgent));
            } else if waiting >= READY_PER_AGENT_MAX {
                let retry_after = self.fleet.wait_for(agent, u64::from(waiting), now.mono);
                let full = Creation::QueueFull {
                    waiting,
                    retry_after,
                };
                refused.push((index, full));
            } else if tenant >= READY_PER_TENANT_MAX {
                let retry_after = self.tenants.wait_for(&process.tenant, tenant, now.mono);
                let full = Creation::TenantFull {
                    waiting: tenant,
                    retry_after,
                };
                refused.push((index, full));
            } else {
                *more += 1;
                *theirs += 1;
                kept.push(process);
            }
        }
        self.pending.add_creates(kept, refused, answer);
    }
}
