//! What people see of an agent, and of a process that waits for it.

use std::time::Instant;

use protocol::ids::{AgentId, ProcessId};

use super::{Fleet, LineId, Member};
use crate::dispatch::handle::{AgentView, Queued, WaitingOn};

impl Fleet {
    /// An agent.
    pub(in crate::dispatch) fn view(&self, agent: AgentId) -> AgentView {
        let member = self.get(agent);
        AgentView {
            agent,
            session: member.and_then(|member| member.session.as_deref().cloned()),
            in_use: member.map_or(0, Member::in_use),
            ready: member.map_or(0, |member| member.ready_stored),
            since: member.and_then(|member| member.since),
        }
    }

    /// The line that a process of an agent waits in, and its place there, from 1; nothing where it is
    /// further back than what is in memory.
    pub(in crate::dispatch) fn line_of(
        &self,
        agent: AgentId,
        process: ProcessId,
    ) -> Option<(LineId, u32)> {
        let open = self.get(agent)?.queues.open().iter();
        let mut places = open.filter_map(|(id, queue)| {
            let at = queue
                .ready
                .keys()
                .position(|(_, waits)| *waits == process)?;
            Some((*id, u32::try_from(at + 1).unwrap_or(u32::MAX)))
        });
        places.next()
    }

    /// What a ready process of an agent waits on.
    pub(in crate::dispatch) fn waiting_on(
        &self,
        process: ProcessId,
        agent: AgentId,
        now: Instant,
    ) -> Option<WaitingOn> {
        let member = self.get(agent)?;
        let Some(session) = &member.session else {
            return Some(WaitingOn::Session { agent });
        };
        let (line, position) = self.line_of(agent, process).unzip();
        // One that is not made yet comes last; one that is not in memory as well, at most.
        let before = match line {
            Some(line) => member.before(line, process),
            None => u64::from(member.ready_stored).max(1),
        };
        Some(WaitingOn::Host(Queued {
            agent,
            capacity: session.capacity,
            in_use: member.in_use(),
            line: line.and_then(|id| self.line(id).cloned()),
            position: position.unwrap_or(0),
            depth: u32::try_from(before).unwrap_or(u32::MAX),
            each: member.ends.pace().eta(1, now),
            // The fleet knows agents only.
            tenant_each: None,
        }))
    }
}

impl Member {
    /// Where a process stands among all in memory, from 1, if urgency and age alone decided.
    fn before(&self, line: LineId, process: ProcessId) -> u64 {
        let all = self.queues.open().iter().flat_map(|(id, queue)| {
            let places = queue.ready.keys();
            places.map(move |place| (*id, (queue.line.class, *place)))
        });
        let own = all
            .clone()
            .find(|(id, (_, (_, of)))| *id == line && *of == process);
        let Some((_, own)) = own else { return 1 };
        all.filter(|(_, place)| *place <= own).count() as u64
    }
}
