//! What the rest of the control plane asks for.

use protocol::enrol::{EnrolRefusal, EnrolReply};
use protocol::link::Request;

use super::{Core, READY_PER_AGENT_MAX};
use crate::dispatch::handle::{Command, EnrolmentAsked};
use crate::process::Input;
use crate::store::processes::{Creation, NewProcess};

impl Core {
    /// Takes one command.
    pub(in crate::dispatch) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Create(processes, answer) => self.create(processes, answer),
            Command::Cancel(process, answer) => {
                let at = self.pending.inputs.len();
                self.pending.push(process, None, Input::Cancel);
                self.pending.cancel_answers.push((at, answer));
            }
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
                drop(answer.send(self.fleet.waiting_on(process, agent)));
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

    /// Whether a process may be made, as far as memory knows.
    fn create(&mut self, processes: Vec<NewProcess>, answer: super::CreateAnswer) {
        let mut refused = Vec::new();
        let mut places = std::collections::BTreeMap::new();
        let total = processes.len();
        let mut kept = Vec::with_capacity(total);
        for (index, process) in processes.into_iter().enumerate() {
            let agent = process.agent;
            let known = self.fleet.get(agent).is_some_and(|member| member.admitted);
            let more = places.entry(agent).or_insert(0_u32);
            let waiting = self.fleet.waiting_for(agent).saturating_add(*more);
            if !known {
                refused.push((index, Creation::UnknownAgent));
            } else if waiting >= READY_PER_AGENT_MAX {
                refused.push((index, Creation::QueueFull { waiting }));
            } else {
                *more += 1;
                kept.push(process);
            }
        }
        self.pending.add_creates(kept, refused, answer);
    }
}
