//! What the rest of the control plane asks of the process server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::enrol::{EnrolReply, EnrolRequest};
use protocol::flow::{AgentFlow, LimitKey, LimitUse, Line};
use protocol::identity::KeyHash;
use protocol::ids::{AgentId, GroupId, ProcessId, SessionId, ShardId};
use protocol::link::{Request, Target};
use tokio::sync::oneshot;

use super::asked::{FlowAnswer, UseAnswer};
use super::doors::Doors;
use super::telemetry::EngineStats;
use crate::clock::UnixMs;
use crate::process::{Input, State};
use crate::store::groups::Group;
use crate::store::limits::{LimitPut, LimitRow, LimitTable};
use crate::store::pauses::{Pause, PauseAdded, PauseKey, PauseTable};
use crate::store::processes::{Actor, Creation, NewProcess};
use crate::store::{Store, StoreError};

/// Process servers have taken up a pause after this, or hang.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(3);
/// Commands that may wait for the process server.
pub(super) const COMMANDS_MAX: usize = 1024;
/// Enrolments that may wait for the identity service.
pub(crate) const ENROLMENTS_MAX: usize = 256;
/// How often what changes nothing is asked, where process servers end before they answer.
const LOOKS_MAX: u32 = 3;

/// Why the process server did not do what it was asked. Nothing was changed, unless it has stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// Too many commands are waiting.
    #[error("the process server is busy; try again in a second")]
    Busy,
    /// The process server has stopped, and no other one was there to answer. What was asked may have been
    /// done all the same: whoever repeats it must name it by the same key.
    #[error("the process server has stopped; repeat the request in a few seconds")]
    Stopped,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why it is not known what an agent or a limit is at.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlowError {
    /// The agent has no session: nothing is given to it.
    #[error("the agent has no session")]
    NoSession,
    /// Too many questions wait.
    #[error("too many questions wait for the gateway; ask again in a second")]
    Busy,
    /// No answer came in time.
    #[error(
        "the gateway has not answered within 2 s; ask again, and look at its log if that goes on"
    )]
    Silent,
    /// The process server has stopped.
    #[error("the process server has stopped; ask again in a few seconds")]
    Stopped,
}

/// What became of a cancel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancellation {
    /// There is no such process.
    NotFound,
    /// The state after it: `Cancelled` at once, `Cancelling` until its agent answers, or a terminal
    /// state that it had already.
    State(State),
}

/// What somebody wants of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Stop it, undo what was done, and end it.
    Cancel,
    /// End it now, without its agent's word.
    Force,
    /// An ended one: go on from the step at which it ended.
    Retry,
    /// Go on from this step (from 0), now.
    Replay(u16),
}

impl Order {
    fn input(self) -> Input {
        match self {
            Self::Cancel => Input::Cancel,
            Self::Force => Input::Force,
            Self::Retry => Input::Retry,
            Self::Replay(step) => Input::Replay(step),
        }
    }
}

/// What became of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ordered {
    /// There is no such process.
    NotFound,
    /// The process is in a state that does not allow it; nothing was changed.
    Refused(String),
    /// The state after it.
    State(State),
}

/// An agent as the process server sees it now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentView {
    /// Which.
    pub agent: AgentId,
    /// Its session, while it has one.
    pub session: Option<SessionView>,
    /// Operations claimed for it or running on it, whichever process server has claimed them.
    pub in_use: u32,
    /// Processes ready for it.
    pub ready: u32,
    /// Since when it has been connected or disconnected, where that happened in this run.
    pub since: Option<UnixMs>,
}

/// A session as the process server sees it now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionView {
    /// Which session.
    pub session: SessionId,
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// Whether that is its group's home shard.
    pub at_home: bool,
    /// From where.
    pub remote: SocketAddr,
    /// Operations at once.
    pub capacity: u32,
    /// Names of its drivers.
    pub kinds: Vec<String>,
    /// The host's name.
    pub hostname: String,
    /// The agent's software version.
    pub software: String,
    /// Labels as announced.
    pub labels: Vec<(String, String)>,
}

/// Why a process is not running.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitingOn {
    /// Its agent has no session.
    Session {
        /// The agent.
        agent: AgentId,
    },
    /// Its agent has no permit free.
    Host(Queued),
}

/// Where a process stands at its agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queued {
    /// The agent.
    pub agent: AgentId,
    /// Operations that the agent takes at once by its own word.
    pub capacity: u32,
    /// Operations claimed for it or running on it, whichever process server has claimed them.
    pub in_use: u32,
    /// The line that it waits in; nothing where it is further back than what is in memory.
    pub line: Option<Arc<Line>>,
    /// Its place in its line, from 1; 0: further back than what is in memory.
    pub position: u32,
    /// Ready processes of the agent up to this one, itself included; at most.
    pub depth: u32,
    /// What time passes between two ends at the agent lately, where that is known.
    pub each: Option<Duration>,
    /// The same of the line's tenant, at all agents.
    pub tenant_each: Option<Duration>,
}

impl Queued {
    /// When it starts, if so many places are free now and the agent goes on at its present pace.
    pub fn eta(&self, free: u32) -> Option<Duration> {
        match self.depth.saturating_sub(free) {
            0 => Some(Duration::ZERO),
            more => self.each.map(|each| each.saturating_mul(more)),
        }
    }
}

/// An enrolment that somebody asked for at a gateway. Answer with [`Engine::answer_enrolment`].
#[derive(Debug)]
pub struct EnrolmentAsked {
    /// The shard to answer.
    pub shard: ShardId,
    /// Names the request at that shard.
    pub ticket: u64,
    /// From where.
    pub remote: SocketAddr,
    /// What was asked.
    pub request: Box<EnrolRequest>,
}

/// The front door of one process server, or of all that share a store and a gateway: then whoever lives
/// is asked. Clones share it; every call is bounded and answers after the commit that makes it durable.
#[derive(Clone)]
pub struct Engine {
    pub(super) doors: Arc<Doors>,
    pub(super) store: Store,
    /// On a store that others write to: agents of which all process servers have been told.
    pub(super) met: Arc<Mutex<BTreeSet<AgentId>>>,
}

/// A command in the queue, with where to answer.
pub(super) enum Command {
    Create(
        Vec<NewProcess>,
        oneshot::Sender<Result<Vec<Creation>, StoreError>>,
    ),
    Order {
        process: ProcessId,
        input: Input,
        actor: Option<Arc<Actor>>,
        answer: oneshot::Sender<Result<Ordered, StoreError>>,
    },
    /// Answered when nothing that it holds is claimed any more.
    Pauses(PauseTable, oneshot::Sender<()>),
    Limits(LimitTable),
    Flow(AgentId, FlowAnswer),
    Use(LimitKey, UseAnswer),
    Send(Request),
    Adopt(Group),
    Admit(Target, Vec<KeyHash>),
    Revoke(AgentId),
    Agents(Vec<AgentId>, oneshot::Sender<Vec<AgentView>>),
    Connected(oneshot::Sender<BTreeMap<GroupId, u64>>),
    WaitingOn(ProcessId, AgentId, oneshot::Sender<Option<WaitingOn>>),
}

impl Engine {
    /// Creates processes: each stands or falls by itself, in the order given. At most 1,000.
    ///
    /// # Errors
    /// None of them was created.
    pub async fn create(&self, processes: Vec<NewProcess>) -> Result<Vec<Creation>, EngineError> {
        match self.store.is_open_to_others() {
            true => self.create_as_stored(processes).await,
            false => self.create_as_known(processes).await,
        }
    }

    async fn create_as_known(
        &self,
        processes: Vec<NewProcess>,
    ) -> Result<Vec<Creation>, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.submit(Command::Create(processes, answer))?;
        Ok(answered.await.map_err(|_| EngineError::Stopped)??)
    }

    /// Agents join and are revoked through other servers as well: the store says for whom processes may be made, and
    /// memory is told of those that it may not have heard of.
    async fn create_as_stored(
        &self,
        processes: Vec<NewProcess>,
    ) -> Result<Vec<Creation>, EngineError> {
        let agents: BTreeSet<AgentId> = processes.iter().map(|process| process.agent).collect();
        let mut admitted = BTreeSet::new();
        for one in self.store.admissions_of(&agents).await? {
            let agent = one.target.agent;
            admitted.insert(agent);
            if !self.met().contains(&agent) {
                self.admit_agent(one.target, one.keys)?;
                self.met().insert(agent);
            }
        }
        let mut answers = vec![Creation::UnknownAgent; processes.len()];
        let asked = processes.into_iter().enumerate();
        let (places, asked): (Vec<usize>, Vec<NewProcess>) = asked
            .filter(|(_, process)| admitted.contains(&process.agent))
            .unzip();
        if !asked.is_empty() {
            for (at, creation) in places.into_iter().zip(self.create_as_known(asked).await?) {
                answers[at] = creation;
            }
        }
        Ok(answers)
    }

    fn met(&self) -> MutexGuard<'_, BTreeSet<AgentId>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a process to be cancelled. Repeating it is harmless.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn cancel(&self, process: ProcessId) -> Result<Cancellation, EngineError> {
        Ok(match self.order(process, Order::Cancel, None).await? {
            Ordered::State(state) => Cancellation::State(state),
            // A cancel is never refused.
            Ordered::NotFound | Ordered::Refused(_) => Cancellation::NotFound,
        })
    }

    /// Gives an order about a process; `actor` goes into its history.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn order(
        &self,
        process: ProcessId,
        order: Order,
        actor: Option<Actor>,
    ) -> Result<Ordered, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.submit(Command::Order {
            process,
            input: order.input(),
            actor: actor.map(Arc::new),
            answer,
        })?;
        Ok(answered.await.map_err(|_| EngineError::Stopped)??)
    }

    /// Pauses something: no process server starts what is ready of it from the answer on; what runs goes on.
    ///
    /// # Errors
    /// The store failed, or the process server was not told: then it takes it up within seconds if it
    /// was written.
    pub async fn pause(&self, pause: Pause) -> Result<PauseAdded, EngineError> {
        let added = self.store.add_pause(pause).await?;
        self.take_up_pauses().await?;
        Ok(added)
    }

    /// Ends a pause. False: there was none.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn resume(
        &self,
        key: PauseKey,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<bool, EngineError> {
        let removed = self.store.remove_pause(key, at, by, reason).await?;
        self.take_up_pauses().await?;
        Ok(removed)
    }

    /// As [`Engine::pause`], for many at once: all are written in one transaction.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn pause_all(&self, pauses: Vec<Pause>) -> Result<Vec<PauseAdded>, EngineError> {
        let added = self.store.add_pauses(pauses).await?;
        self.take_up_pauses().await?;
        Ok(added)
    }

    /// As [`Engine::resume`], for many at once: all are written in one transaction.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn resume_all(
        &self,
        keys: Vec<PauseKey>,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<Vec<bool>, EngineError> {
        let removed = self.store.remove_pauses(keys, at, by, reason).await?;
        self.take_up_pauses().await?;
        Ok(removed)
    }

    /// Tells all process servers, and waits until each has taken it up. One that hangs is not waited for: it
    /// claims nothing then, and reads what is set with its next beat.
    async fn take_up_pauses(&self) -> Result<(), EngineError> {
        let table = self.store.pauses().await?;
        let mut taken_up = Vec::new();
        let told = self.doors.submit_to_all(|| {
            let (answer, answered) = oneshot::channel();
            taken_up.push(answered);
            Command::Pauses(table.clone(), answer)
        });
        let all = futures_util::future::join_all(taken_up);
        // Whoever ends meanwhile gives no answer, and claims nothing.
        drop(tokio::time::timeout(TAKEN_UP_WITHIN, all).await);
        told
    }

    /// Sets a limit; the gateway has been told, or will be within seconds, when this returns.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn set_limit(&self, limit: LimitRow) -> Result<LimitPut, EngineError> {
        let put = self.store.put_limit(limit).await?;
        self.take_up_limits().await?;
        Ok(put)
    }

    /// Removes what is set of a limit. False: nothing was.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn remove_limit(
        &self,
        key: LimitKey,
        at: UnixMs,
        by: String,
        reason: String,
    ) -> Result<bool, EngineError> {
        let removed = self.store.remove_limit(key, at, by, reason).await?;
        self.take_up_limits().await?;
        Ok(removed)
    }

    async fn take_up_limits(&self) -> Result<(), EngineError> {
        let table = self.store.limits().await?;
        self.doors.submit_to_all(|| Command::Limits(table.clone()))
    }

    /// What an agent is given now, and why no more: its gateway is asked. Answers within three seconds.
    ///
    /// # Errors
    /// It is not known.
    pub async fn flow_of(&self, agent: AgentId) -> Result<AgentFlow, FlowError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Flow(agent, answer))?;
        answered.await.map_err(|_| FlowError::Stopped)?
    }

    /// How much of a limit that several agents share is in use: the gateway is asked. Answers within three
    /// seconds.
    ///
    /// # Errors
    /// It is not known.
    pub async fn use_of(&self, key: LimitKey) -> Result<LimitUse, FlowError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Use(key, answer))?;
        answered.await.map_err(|_| FlowError::Stopped)?
    }

    fn ask(&self, question: Command) -> Result<(), FlowError> {
        self.submit(question).map_err(|error| match error {
            EngineError::Busy | EngineError::Store(_) => FlowError::Busy,
            EngineError::Stopped => FlowError::Stopped,
        })
    }

    /// Takes a new group and tells the gateway that it owns it. Of several it is taken for the one that was the first
    /// when the process server began, and who has heard from the store whose it is tells all of them.
    ///
    /// # Errors
    /// The gateway was not told; calling again is harmless.
    pub async fn adopt_group(&self, group: Group) -> Result<(), EngineError> {
        let owner = self.doors.owner().ok_or(EngineError::Stopped)?;
        match self.store.take_group(group, owner).await? {
            Some(group) => self.submit(Command::Adopt(group)),
            // Taken by another call meanwhile: that one tells the gateway.
            None => Ok(()),
        }
    }

    /// Tells all gateways, through every process server, who owns a group now.
    ///
    /// # Errors
    /// Some were not told; calling again is harmless.
    pub(crate) fn reassign(&self, group: &Group) -> Result<(), EngineError> {
        self.doors.submit_to_all(|| Command::Adopt(group.clone()))
    }

    /// Lets an agent connect with these keys (replaces), after the store says so. All process servers are told:
    /// each must know for whom processes may be made.
    ///
    /// # Errors
    /// The gateway was not told.
    pub fn admit_agent(&self, target: Target, keys: Vec<KeyHash>) -> Result<(), EngineError> {
        self.doors
            .submit_to_all(|| Command::Admit(target, keys.clone()))
    }

    /// Closes an agent's session and keeps it out, after the store says so. Its processes end as
    /// failed; those that may have been started say that people must look. All process servers are told, so
    /// that one that dies at this moment does not leave the door open.
    ///
    /// # Errors
    /// The gateway was not told.
    pub fn revoke_agent(&self, agent: AgentId) -> Result<(), EngineError> {
        self.doors.submit_to_all(|| Command::Revoke(agent))
    }

    /// Answers an enrolment.
    ///
    /// # Errors
    /// The answer was not sent; the agent will ask again.
    pub fn answer_enrolment(
        &self,
        shard: ShardId,
        ticket: u64,
        reply: EnrolReply,
    ) -> Result<(), EngineError> {
        self.submit(Command::Send(Request::EnrolReply {
            shard,
            ticket,
            reply,
        }))
    }

    /// Passes a request on that needs no bookkeeping here, such as `Drain`.
    ///
    /// # Errors
    /// It was not sent.
    pub fn send(&self, request: Request) -> Result<(), EngineError> {
        self.submit(Command::Send(request))
    }

    /// The named agents as they are now, in the same order; unknown ones have no session. At most
    /// 1,000.
    ///
    /// # Errors
    /// The process server did not answer.
    pub async fn agents(&self, agents: Vec<AgentId>) -> Result<Vec<AgentView>, EngineError> {
        let mut views = self
            .look(|answer| Command::Agents(agents.clone(), answer))
            .await?;
        // The server that was asked knows its own.
        for view in &mut views {
            view.in_use = self.store.in_use(view.agent).unwrap_or(view.in_use);
        }
        Ok(views)
    }

    /// How many agents of each group have a session; groups without one are left out.
    ///
    /// # Errors
    /// The process server did not answer.
    pub async fn connected(&self) -> Result<BTreeMap<GroupId, u64>, EngineError> {
        self.look(Command::Connected).await
    }

    /// What a ready process waits on.
    ///
    /// # Errors
    /// The process server did not answer.
    pub async fn waiting_on(
        &self,
        process: ProcessId,
        agent: AgentId,
    ) -> Result<Option<WaitingOn>, EngineError> {
        let mut waits = self
            .look(|answer| Command::WaitingOn(process, agent, answer))
            .await?;
        if let Some(WaitingOn::Host(queued)) = &mut waits {
            queued.in_use = self.store.in_use(agent).unwrap_or(queued.in_use);
        }
        Ok(waits)
    }

    /// The figures of all process servers together. Of one that has crashed, those of its last second are
    /// missing.
    pub fn stats(&self) -> EngineStats {
        self.doors.stats()
    }

    /// The front door of no process server yet.
    pub(crate) fn of_none(store: Store) -> Self {
        Self {
            doors: Arc::default(),
            store,
            met: Arc::default(),
        }
    }

    /// Leads to the process servers of `other` as well.
    pub(crate) fn open(&self, other: &Self) {
        for door in other.doors.all() {
            self.doors.open(door);
        }
    }

    /// A process server is gone.
    pub(crate) fn close(&self, worker: uuid::Uuid) {
        self.doors.close(worker);
    }

    /// Whether it leads to nobody.
    pub(crate) fn is_closed(&self) -> bool {
        self.doors.is_empty()
    }

    /// Asks what changes nothing; another process server, if the one that was asked ends meanwhile.
    async fn look<T>(
        &self,
        question: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> Result<T, EngineError> {
        for _ in 0..LOOKS_MAX {
            let (answer, answered) = oneshot::channel();
            self.submit(question(answer))?;
            if let Ok(found) = answered.await {
                return Ok(found);
            }
        }
        Err(EngineError::Stopped)
    }

    fn submit(&self, command: Command) -> Result<(), EngineError> {
        self.doors.submit(command)
    }
}
