//! Several process servers on one gateway: what each says goes to the gateway, what the gateway says
//! goes to whom it concerns.
//!
//! ```text
//!   server 1 ─ Request ─▶ ┌───────────── Hub ─────────────┐ ─ Request ─▶ gateway
//!   server 2 ─ Request ─▶ │ whose operation, whose demand │
//!        …   ◀─ Event ─── └───────────────────────────────┘ ◀─ Event ───
//! ```
//!
//! | event | goes to |
//! |---|---|
//! | `SessionUp`, `SessionDown` | all |
//! | `Reported` | all: one of them lends, whoever that is |
//! | `LimitTold` | all: only the asker knows the ticket |
//! | `Granted` | the server that it names; if that is gone, the permits go back |
//! | words about an operation | the server that dispatched it or asked for it last; all, where nobody is known to have |
//! | `FlowTold` | the asker |
//! | `Offered`, `Enrol`, `Security` | the leader: of those that hear and do more than that, the server with the lowest number |
//! | `Withdrawn` | who was offered it |
//!
//! Whoever hears of an operation that is not its own changes nothing by it: the store decides by fences.
//! Epochs belong to the gateway, so several servers assign the same ones.
//!
//! A server hears from its first [come](Hub::handle_come) on: what it does before may take long. One that
//! drains hears nothing more and states no demand; one that leaves gives back what it was offered, and its
//! grants expire. What it had not read is given to the others.
//!
//! The gateway may outlive a server that has yet to say what the store says already. So whoever begins to hear has
//! said before, after it joined, all agents that may come in; those that nobody has let in since are revoked.
//!
//! One that *observes* belongs to an API server: it hears as all others do, and asks, but it claims nothing and never
//! leads. Where only such are, the gateway is not read: nobody would take what its agents say.
//!
//! One that hangs would stop all the others, since the gateway is read no faster than the slowest reads. So
//! whoever does not come for [`SILENCE_MAX`] while another one does is *cut off*: it has left, whatever it
//! does later. A slow disk stops all alike; then nobody is cut off.
//!
//! Pure: `handle_*` takes something in, `poll_*` gives something out. Everything is bounded: a server's
//! events by [`EVENTS_MAX`] and [`EVENT_BYTES_MAX`] (the gateway is not read while one has no room) and by what
//! others leave unread, of which nothing is kept twice; requests by [`REQUESTS_MAX`], the rest by agents that are
//! let in and by [`ROUTES_MAX`].

mod kept;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::flow::Limit;
use protocol::ids::{AgentId, GrantId, ServerId};
use protocol::link::{Event, Request, SessionUp, Target};

use self::kept::Kept;
use self::tables::{Offers, Questions, Routes, Sessions, Targets};

/// Events that wait for one process server before the gateway is not read any more.
pub const EVENTS_MAX: usize = 8192;
/// Bytes in those events.
pub const EVENT_BYTES_MAX: usize = 16 << 20;
/// Requests that wait for room at the gateway before servers are told to come again.
pub const REQUESTS_MAX: usize = 1024;
/// Process servers on one gateway.
pub const SERVERS_MAX: usize = 64;
/// Operations whose server is known. Words about further ones go to all.
pub const ROUTES_MAX: usize = 1 << 18;
/// Questions about flow that wait for their answer. More push out the oldest, which is not answered then.
pub const QUESTIONS_MAX: usize = 4096;
/// Whoever does not come to read for so long, while another one does, is cut off.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often [`Hub::handle_tick`] is to be called.
pub const TICK: Duration = Duration::from_secs(1);
/// What one tick counts at most: when the whole program stood still, nobody could come.
const TICK_COUNTS_MAX: Duration = Duration::from_secs(2);
/// Whoever leads anew has had time to learn of the last change of limits after this.
const LIMITS_AFTER: Duration = Duration::from_secs(5);

/// Why a process server could not join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// The number is taken.
    #[error("process server {0} is on this gateway already; give each a number of its own")]
    Taken(ServerId),
    /// There are too many.
    #[error("this gateway has {SERVERS_MAX} process servers, its limit; use another gateway")]
    TooMany,
}

/// The state machine; see the module.
#[derive(Default)]
pub struct Hub {
    ends: BTreeMap<ServerId, End>,
    routes: Routes,
    questions: Questions,
    offers: Offers,
    sessions: Sessions,
    /// Agents that the gateway lets in, and how many servers had joined when that was said last.
    admitted: BTreeMap<AgentId, u64>,
    joined: u64,
    /// What the gateway was told last: several servers say the same.
    limits: Option<Vec<Limit>>,
    /// For how long the leader has meant something else than that.
    limits_differ: Duration,
    requests: VecDeque<Request>,
    ticked_at: Option<Instant>,
}

/// One process server's end.
#[derive(Default)]
struct End {
    events: VecDeque<Kept>,
    bytes: usize,
    /// Sessions that were up when it came first and that it has not been told of.
    to_meet: VecDeque<AgentId>,
    /// How many had joined with it.
    joined: u64,
    /// It hears, and never leads.
    observes: bool,
    /// Agents for which it states a demand.
    demand: Targets,
    /// The limits that it said last.
    limits: Option<Vec<Limit>>,
    /// It has come to read once.
    began: bool,
    draining: bool,
    /// It has come to read since the last tick.
    came: bool,
    /// For how long it has not come while others did.
    silent: Duration,
}

impl End {
    /// Whether it is told anything.
    fn hears(&self) -> bool {
        self.began && !self.draining
    }

    fn push(&mut self, event: Kept) {
        self.bytes += event.weight();
        self.events.push_back(event);
    }

    fn room(&self) -> usize {
        match self.bytes < EVENT_BYTES_MAX {
            true => EVENTS_MAX.saturating_sub(self.events.len()),
            false => 0,
        }
    }
}

impl Hub {
    /// A process server is there, and may say what the gateway has to know. It hears nothing before it has
    /// [come](Self::handle_come).
    ///
    /// # Errors
    /// [`JoinError`]; nothing has changed.
    pub fn handle_join(&mut self, server: ServerId) -> Result<(), JoinError> {
        if self.ends.contains_key(&server) {
            return Err(JoinError::Taken(server));
        }
        if self.ends.len() >= SERVERS_MAX {
            return Err(JoinError::TooMany);
        }
        self.joined += 1;
        let end = End {
            joined: self.joined,
            ..End::default()
        };
        self.ends.insert(server, end);
        Ok(())
    }

    /// The same for one that observes.
    ///
    /// # Errors
    /// As [`Self::handle_join`].
    pub fn handle_observe(&mut self, server: ServerId) -> Result<(), JoinError> {
        self.handle_join(server)?;
        if let Some(end) = self.ends.get_mut(&server) {
            end.observes = true;
        }
        Ok(())
    }

    /// A process server comes to read, or would if it had room: it does not hang. The first time it begins to
    /// hear: of all sessions that are up, with empty inventories (it asks about whatever it takes over),
    /// and of what happens from now on.
    pub fn handle_come(&mut self, server: ServerId) {
        let Some(end) = self.ends.get_mut(&server) else {
            return;
        };
        end.came = true;
        if !end.began && !end.draining {
            end.began = true;
            end.to_meet = self.sessions.agents().collect();
            let joined = end.joined;
            self.revoke_all_of_before(joined);
        }
    }

    /// Whoever joined then has read from the store since who may come in, and has said so.
    fn revoke_all_of_before(&mut self, joined: u64) {
        let gone = self.admitted.extract_if(.., |_, said| *said < joined);
        for (agent, _) in gone {
            self.routes.forget_agent(agent);
            self.requests.push_back(Request::RevokeAgent { agent });
        }
    }

    /// Takes the passing of time; call it every [`TICK`]. Who hangs is cut off, and named: it has left, and
    /// what it says is not passed on.
    pub fn handle_tick(&mut self, now: Instant) -> Vec<ServerId> {
        let before = self.ticked_at.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before).min(TICK_COUNTS_MAX);
        let others_come = self.ends.values().any(|end| end.hears() && end.came);
        let mut hanging = Vec::new();
        for (server, end) in self.ends.iter_mut().filter(|(_, end)| end.hears()) {
            if std::mem::take(&mut end.came) {
                end.silent = Duration::ZERO;
            } else if others_come {
                end.silent += passed;
                if end.silent >= SILENCE_MAX {
                    hanging.push(*server);
                }
            }
        }
        for server in &hanging {
            self.handle_leave(*server);
        }
        self.follow_limits(passed);
        hanging
    }

    /// Whoever leads anew may have said its limits when it did not lead, and the leader before it may not
    /// have come to saying them.
    fn follow_limits(&mut self, passed: Duration) {
        let leader = self.leader().and_then(|leader| self.ends.get(&leader));
        let Some(meant) = leader.and_then(|end| end.limits.as_ref()) else {
            return;
        };
        if self.limits.as_ref() == Some(meant) {
            self.limits_differ = Duration::ZERO;
            return;
        }
        self.limits_differ += passed;
        if self.limits_differ >= LIMITS_AFTER {
            let limits = meant.clone();
            self.tell_limits(limits);
        }
    }

    fn tell_limits(&mut self, limits: Vec<Limit>) {
        self.limits_differ = Duration::ZERO;
        self.limits = Some(limits.clone());
        self.requests.push_back(Request::SetLimits { limits });
    }

    /// A process server reads no more events and claims nothing more; what it still says is passed on.
    pub fn handle_drain(&mut self, server: ServerId) {
        let Some(end) = self.ends.get_mut(&server) else {
            return;
        };
        end.draining = true;
        end.to_meet.clear();
        let (unread, demand) = (end.take_events(), std::mem::take(&mut end.demand));
        self.routes.forget_server(server);
        self.withdraw(server, demand);
        self.hand_over(unread);
    }

    /// A process server is gone, in whatever way.
    pub fn handle_leave(&mut self, server: ServerId) {
        let Some(mut end) = self.ends.remove(&server) else {
            return;
        };
        self.routes.forget_server(server);
        self.questions.forget_server(server);
        self.withdraw(server, std::mem::take(&mut end.demand));
        for (target, grant) in self.offers.take_of(server) {
            self.give_back(target, grant, 1);
        }
        // What it was offered has just been given back.
        let mut unread = end.take_events();
        unread.retain(|kept| {
            !matches!(
                kept.event(),
                Event::Offered { .. } | Event::Withdrawn { .. }
            )
        });
        self.hand_over(unread);
    }

    /// Takes a request of a process server, to be passed on in order.
    ///
    /// # Errors
    /// Too many wait: here it is again, whole.
    pub fn handle_request(&mut self, from: ServerId, request: Request) -> Result<(), Box<Request>> {
        // Whoever starts first says what the limits are before anybody hears.
        let leads = self.leader().is_none_or(|leader| leader == from);
        let Some(end) = self.ends.get_mut(&from) else {
            // Whoever has left has nothing more to say.
            return Ok(());
        };
        if self.requests.len() >= REQUESTS_MAX {
            return Err(Box::new(request));
        }
        let passed_on = match request {
            Request::Demand { target, lines, .. } => {
                if end.draining {
                    return Ok(());
                }
                end.demand.note(target, !lines.is_empty());
                Request::Demand {
                    target,
                    server: from,
                    lines,
                }
            }
            Request::AskFlow { target, ticket } => Request::AskFlow {
                target,
                ticket: self.questions.ask(from, ticket),
            },
            Request::SetLimits { limits } => {
                end.limits = Some(limits.clone());
                // The others learn of a change later, and may say what is no longer so.
                if leads && self.limits.as_ref() != Some(&limits) {
                    self.tell_limits(limits);
                }
                return Ok(());
            }
            request => {
                self.note(from, &request);
                request
            }
        };
        self.requests.push_back(passed_on);
        Ok(())
    }

    /// What a request that is passed on as it is says about operations and offers.
    fn note(&mut self, from: ServerId, request: &Request) {
        // Whoever drains hears nothing: words about what it still sends are for the others.
        let hears = self.ends.get(&from).is_some_and(End::hears);
        match request {
            Request::Dispatch {
                target,
                grant,
                command,
                ..
            } => {
                if hears {
                    self.routes.learn(command.operation, from, target.agent);
                }
                self.offers.used(target.agent, *grant);
            }
            Request::Query { target, operations } if hears => {
                for (operation, _) in operations {
                    self.routes.learn(*operation, from, target.agent);
                }
            }
            Request::Forget { operations, .. } => {
                for operation in operations {
                    self.routes.forget(*operation);
                }
            }
            Request::ReturnPermits { target, grant, .. } => {
                self.offers.used(target.agent, *grant);
            }
            Request::AdmitAgent { target, .. } => {
                self.admitted.insert(target.agent, self.joined);
            }
            Request::RevokeAgent { agent } => {
                self.routes.forget_agent(*agent);
                self.admitted.remove(agent);
            }
            Request::AssignGroup { .. }
            | Request::AskLimit { .. }
            | Request::ReleaseGroup { .. }
            | Request::Demand { .. }
            | Request::AskFlow { .. }
            | Request::SetLimits { .. }
            | Request::Charge { .. }
            | Request::Lend { .. }
            | Request::AskUse { .. }
            | Request::Cancel { .. }
            | Request::Query { .. }
            | Request::EnrolReply { .. }
            | Request::Drain { .. } => {}
        }
    }

    /// How many process servers there are, without those that observe.
    pub fn servers(&self) -> usize {
        self.ends.values().filter(|end| !end.observes).count()
    }

    /// How many events may be taken from the gateway now: as many as everybody has room for, and none
    /// while nobody hears who could lead.
    pub fn room(&self) -> usize {
        if self.leader().is_none() {
            return 0;
        }
        let hearing = self.ends.values().filter(|end| end.hears());
        hearing.map(End::room).min().unwrap_or(0)
    }

    /// Takes an event of the gateway; see the module for where it goes.
    pub fn handle_event(&mut self, event: Event) {
        match event {
            Event::SessionUp(up) => self.session_up(up),
            Event::SessionDown {
                target, session, ..
            } => {
                if self.sessions.down(target.agent, session) {
                    self.session_over(target.agent);
                }
                self.tell_all(event);
            }
            Event::Granted {
                target,
                server,
                grant,
                permits,
                ..
            } => match self.ends.get_mut(&server) {
                Some(end) if end.hears() => end.push(Kept::Own(event)),
                _ => self.give_back(target, grant, permits),
            },
            Event::Offered { target, grant, .. } => match self.leader() {
                Some(leader) => {
                    self.offers.offered(target, grant, leader);
                    self.tell(leader, event);
                }
                None => self.give_back(target, grant, 1),
            },
            Event::Withdrawn { target, grant } => {
                if let Some(server) = self.offers.used(target.agent, grant) {
                    self.tell(server, event);
                }
            }
            Event::FlowTold { .. } => self.flow_told(event),
            // Whose it is says its ticket, or the store.
            Event::Reported { .. } | Event::LimitTold { .. } => self.tell_all(event),
            Event::Enrol { .. } | Event::Security { .. } => {
                if let Some(leader) = self.leader() {
                    self.tell(leader, event);
                }
            }
            about_operation => self.operation_event(about_operation),
        }
    }

    /// Whoever asked is told, under its own ticket.
    fn flow_told(&mut self, mut event: Event) {
        if let Event::FlowTold { ticket, .. } = &mut event
            && let Some((server, own)) = self.questions.answered(*ticket)
        {
            *ticket = own;
            self.tell(server, event);
        }
    }

    fn operation_event(&mut self, event: Event) {
        match event {
            Event::Accepted { operation, .. }
            | Event::Progress { operation, .. }
            | Event::Uncertain { operation, .. } => {
                self.tell_of(self.routes.server(operation), event);
            }
            Event::Finished { operation, .. }
            | Event::Refused { operation, .. }
            | Event::NotDelivered { operation, .. } => {
                let server = self.routes.forget(operation);
                self.tell_of(server, event);
            }
            Event::Report {
                operation,
                ref state,
                ..
            } => {
                use protocol::operation::OperationState::{Accepted, Finished, NeverSeen, Running};
                let server = match state {
                    Accepted | Running => self.routes.server(operation),
                    Finished(_) | NeverSeen => self.routes.forget(operation),
                };
                self.tell_of(server, event);
            }
            // None of these is about an operation.
            _ => {}
        }
    }

    /// The next event for a process server.
    pub fn poll_event(&mut self, server: ServerId) -> Option<Event> {
        let end = self.ends.get_mut(&server)?;
        while let Some(agent) = end.to_meet.pop_front() {
            if let Some(up) = self.sessions.up(agent) {
                return Some(Event::SessionUp(Box::new(up)));
            }
        }
        let kept = end.events.pop_front()?;
        end.bytes -= kept.weight();
        Some(kept.read())
    }

    /// Whether something waits for a process server.
    pub fn has_event(&self, server: ServerId) -> bool {
        let end = self.ends.get(&server);
        end.is_some_and(|end| !end.events.is_empty() || !end.to_meet.is_empty())
    }

    /// The next request for the gateway. If it has no room, give it back with [`Hub::unsent`].
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// The gateway had no room for it: it goes first next time.
    pub fn unsent(&mut self, request: Request) {
        self.requests.push_front(request);
    }

    /// The server that speaks for all: of those that hear and do more than that, the one with the lowest number.
    pub fn leader(&self) -> Option<ServerId> {
        let mut ends = self.ends.iter();
        ends.find_map(|(server, end)| (end.hears() && !end.observes).then_some(*server))
    }

    fn session_up(&mut self, up: Box<SessionUp>) {
        self.session_over(up.target.agent);
        self.sessions.begin(&up);
        self.tell_all(Event::SessionUp(up));
    }

    /// Demand and offers end with a session.
    fn session_over(&mut self, agent: AgentId) {
        self.offers.forget(agent);
        for end in self.ends.values_mut() {
            end.demand.forget(agent);
        }
    }

    fn tell(&mut self, server: ServerId, event: Event) {
        if let Some(end) = self.ends.get_mut(&server).filter(|end| end.hears()) {
            end.push(Kept::Own(event));
        }
    }

    fn tell_all(&mut self, event: Event) {
        let ends = self.ends.values_mut().filter(|end| end.hears());
        let ends: Vec<&mut End> = ends.collect();
        for (end, kept) in ends.into_iter().zip(Kept::copies(event)) {
            end.push(kept);
        }
    }

    fn tell_of(&mut self, server: Option<ServerId>, event: Event) {
        match server {
            Some(server) => self.tell(server, event),
            None => self.tell_all(event),
        }
    }

    /// What one server has not read, for the others: not what they hear themselves, nor answers to what it
    /// had asked.
    fn hand_over(&mut self, unread: VecDeque<Kept>) {
        for event in unread.into_iter().filter_map(Kept::unheard) {
            match event {
                Event::SessionUp(_)
                | Event::SessionDown { .. }
                | Event::Reported { .. }
                | Event::LimitTold { .. }
                | Event::FlowTold { .. } => {}
                event => self.handle_event(event),
            }
        }
    }

    fn withdraw(&mut self, server: ServerId, demand: Targets) {
        for target in demand {
            self.requests.push_back(Request::Demand {
                target,
                server,
                lines: Vec::new(),
            });
        }
    }

    fn give_back(&mut self, target: Target, grant: GrantId, unused: u32) {
        self.requests.push_back(Request::ReturnPermits {
            target,
            grant,
            unused,
        });
    }
}

impl End {
    fn take_events(&mut self) -> VecDeque<Kept> {
        self.bytes = 0;
        std::mem::take(&mut self.events)
    }
}
