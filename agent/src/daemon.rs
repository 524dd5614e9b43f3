//! One running agent: joins the session's decisions, the connections, the journal and the drivers.
//!
//! ```text
//!              ┌────────────────────── one task ──────────────────────┐
//!   Wire ────▶ │ Session (decides)   Reconnect (when, where)          │ ────▶ Journal (writer thread)
//!   lanes ───▶ │                                                      │ ────▶ driver tasks
//!              └──────────────────────────────────────────────────────┘
//! ```
//!
//! An idle agent is this one task and quinn's task for its connection, so that a load test holds ten
//! thousand of them in one process. Dropping [`Agent::run`] is a crash: driver tasks are dropped with
//! it, and the journal says how to go on.

mod dialing;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::agent::Welcome;
use protocol::close::{CloseCode, Retry};
use protocol::ids::{AgentId, Fence, OperationId, Slot};
use protocol::limits;
use protocol::operation::{Outcome, Refusal};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::{LaneEvent, Wire, WireEvent};
use crate::driver::{Drivers, InFlight, PROGRESS_IN_FLIGHT_MAX};
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::reconnect::{Down, Next, Reconnect};
use crate::session::{Link, Notice, Output, Profile, Session};
use crate::tls::{TlsError, Trust};
use crate::transport::DialError;
use dialing::Dialing;
use work::Work;

/// From an open connection to the gateway's Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Events of lanes and pieces of progress that wait for the agent's task; the senders wait then.
const EVENTS_MAX: usize = 16;

/// What happens in an agent, for load tests and metrics. Called from the agent's task: be quick.
pub trait Observer: Send + Sync + 'static {
    /// A session is up, so long after its connection was begun.
    fn session_up(&self, _agent: AgentId, _welcome: &Welcome, _took: Duration) {}
    /// A session that was up is gone.
    fn session_down(&self, _agent: AgentId, _end: &SessionEnd) {}
    /// A connection could not be made or was refused before its Welcome.
    fn connect_failed(&self, _agent: AgentId, _reason: &str) {}
    /// An operation is durably accepted.
    fn accepted(&self, _agent: AgentId, _operation: OperationId, _fence: Fence) {}
    /// An operation was refused.
    fn refused(&self, _agent: AgentId, _operation: OperationId, _fence: Fence, _why: &Refusal) {}
    /// An operation's outcome is durable.
    fn finished(&self, _agent: AgentId, _operation: OperationId, _fence: Fence, _how: &Outcome) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// How a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEnd {
    /// This side closed it.
    ClosedHere(CloseCode),
    /// The gateway closed it; `None` for a code that this build does not know.
    ClosedByGateway(Option<CloseCode>),
    /// Nothing was heard for the idle time.
    TimedOut,
    /// The gateway does not know the connection (it restarted).
    Reset,
    /// A QUIC or TLS error.
    Failed(String),
}

impl SessionEnd {
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::ClosedByGateway(CloseCode::from_wire(close.error_code.into_inner()))
            }
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            other => Self::Failed(other.to_string()),
        }
    }

    /// What the policy is to make of it.
    fn retry(&self) -> Retry {
        match self {
            Self::ClosedByGateway(Some(code)) | Self::ClosedHere(code) => code.retry(),
            _ => Retry::Soon,
        }
    }
}

impl std::fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosedHere(code) => write!(f, "closed here: {code}"),
            Self::ClosedByGateway(Some(code)) => write!(f, "closed by the gateway: {code}"),
            Self::ClosedByGateway(None) => f.write_str("closed by the gateway, for a new reason"),
            Self::TimedOut => f.write_str("nothing was heard from the gateway"),
            Self::Reset => f.write_str("the gateway has restarted"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

/// An agent ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another process with this identity runs.
    #[error(
        "the gateway ended this agent for good ({0}): a second machine or process runs with the \
         same identity. Stop one of them; join that machine anew with a token of its own"
    )]
    Superseded(SessionEnd),
    /// There is nowhere to connect to.
    #[error("no server is known: put `servers = [\"HOST:PORT\"]` into agent.toml")]
    NoServer,
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] JournalError),
}

/// What an agent is made of. Endpoint, trust, journal, drivers and profile can serve many.
pub struct AgentParts {
    /// Who it is.
    pub identity: Identity,
    /// Whom it believes.
    pub trust: Arc<Trust>,
    /// Its socket.
    pub endpoint: Endpoint,
    /// Its memory.
    pub journal: Journal,
    /// What it can do.
    pub drivers: Arc<Drivers>,
    /// What it says about itself.
    pub profile: Arc<Profile>,
    /// `host:port`s to try before those of the identity.
    pub servers: Vec<String>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// How long running operations may go on when the agent stops.
    pub stop_grace: Duration,
}

/// An agent, ready to run.
pub struct Agent {
    id: AgentId,
    slot: Slot,
    keep_alive: Duration,
    tls: Arc<QuicClientConfig>,
    parts: AgentParts,
}

impl Agent {
    /// Puts an agent together.
    ///
    /// # Errors
    /// [`TlsError`] when its certificate and key cannot be used.
    pub fn new(mut parts: AgentParts) -> Result<Self, TlsError> {
        // The DER is kept once, inside the TLS configuration.
        let chain = std::mem::take(&mut parts.identity.chain);
        let tls = parts.trust.session(chain, parts.identity.tls_key())?;
        parts.identity.roots = Vec::new();
        Ok(Self {
            id: parts.identity.agent,
            slot: parts.identity.slot,
            keep_alive: limits::KEEP_ALIVE,
            tls,
            parts,
        })
    }

    /// Runs until `shutdown`, then refuses new operations, lets the running ones end for
    /// `stop_grace`, and closes the session. What is still running then is dropped and left to the
    /// journal. Dropping the future instead is a crash.
    ///
    /// # Errors
    /// [`AgentError`] when the agent cannot go on.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let mut servers = std::mem::take(&mut self.parts.servers);
        servers.append(&mut self.parts.identity.addresses);
        if servers.is_empty() {
            return Err(AgentError::NoServer);
        }
        let state = self.parts.journal.load(self.id).await?;
        let session = Session::new(
            clock::now(),
            clock::unix_ms(),
            self.id,
            Arc::clone(&self.parts.profile),
            Arc::clone(&self.parts.drivers),
            state,
        );
        let mut reconnect = Reconnect::new(servers);
        let first = reconnect.first();
        let (lane_sender, lane_events) = mpsc::channel(EVENTS_MAX);
        let (progress_sender, progress) = mpsc::channel(PROGRESS_IN_FLIGHT_MAX);
        let work = Work::new(self.id, Arc::clone(&self.parts.drivers), progress_sender);
        let mut daemon = Daemon {
            session,
            reconnect,
            work,
            wires: Vec::new(),
            next_link: 0,
            dialing: Dialing::default(),
            append: None,
            lane_sender,
            lane_events,
            progress,
            stop_at: None,
            agent: self,
        };
        daemon.connect_next(first, None)?;
        daemon.run(shutdown).await
    }
}

struct Daemon {
    agent: Agent,
    session: Session,
    reconnect: Reconnect,
    work: Work,
    /// At most two: while the agent moves, the old one and the new one.
    wires: Vec<Wire>,
    next_link: u32,
    dialing: Dialing,
    append: Option<oneshot::Receiver<Result<(), JournalError>>>,
    lane_sender: mpsc::Sender<Box<LaneEvent>>,
    lane_events: mpsc::Receiver<Box<LaneEvent>>,
    progress: mpsc::Receiver<Box<InFlight>>,
    /// Set when the agent is stopping: it ends then at the latest.
    stop_at: Option<Instant>,
}

/// What woke the agent's task.
enum Wake {
    Wire(Link, WireEvent),
    Lane(Box<LaneEvent>),
    Progress(Box<InFlight>),
    Work(work::Done),
    Dialed(dialing::Dialed),
    Appended(Result<(), JournalError>),
    Timeout,
    Shutdown,
}

impl Daemon {
    async fn run(&mut self, shutdown: CancellationToken) -> Result<(), AgentError> {
        loop {
            self.pump()?;
            if self.may_end() {
                break;
            }
            match self.wake(&shutdown).await {
                Wake::Wire(link, event) => self.on_wire(link, event)?,
                Wake::Lane(event) => self.on_lane(*event)?,
                Wake::Progress(piece) => self.on_progress(*piece),
                Wake::Work(work::Done::Ended(operation, outcome)) => {
                    // What the driver said last comes before its end.
                    while let Ok(piece) = self.progress.try_recv() {
                        self.on_progress(*piece);
                    }
                    self.session.handle_outcome(operation, outcome);
                }
                Wake::Work(work::Done::Recovered(operation, recovered)) => {
                    self.session.handle_recovered(operation, recovered);
                }
                Wake::Dialed(dialed) => self.on_dialed(dialed)?,
                Wake::Appended(result) => {
                    let result = result.map_err(|error| error.0);
                    self.session.handle_persisted(clock::now(), result);
                }
                Wake::Timeout => self.on_timeout()?,
                Wake::Shutdown => {
                    self.stop_at = Some(clock::now() + self.agent.parts.stop_grace);
                    self.session.handle_stop();
                }
            }
        }
        for wire in &self.wires {
            wire.close(CloseCode::Normal);
        }
        Ok(())
    }

    async fn wake(&mut self, shutdown: &CancellationToken) -> Wake {
        let times = [
            self.session.poll_timeout(),
            self.dialing.poll_timeout(),
            self.stop_at,
        ];
        let deadline = times.into_iter().flatten().min();
        let stopping = self.stop_at.is_some();
        tokio::select! {
            (link, event) = next_of(&mut self.wires) => Wake::Wire(link, event),
            Some(event) = self.lane_events.recv() => Wake::Lane(event),
            Some(piece) = self.progress.recv() => Wake::Progress(piece),
            done = self.work.next() => Wake::Work(done),
            dialed = self.dialing.next() => Wake::Dialed(dialed),
            result = appended(&mut self.append) => Wake::Appended(result),
            () = sleep_until(deadline) => Wake::Timeout,
            () = shutdown.cancelled(), if !stopping => Wake::Shutdown,
        }
    }

    /// Does everything that the session wants done.
    fn pump(&mut self) -> Result<(), AgentError> {
        loop {
            while let Some(output) = self.session.poll_output() {
                self.act(output)?;
            }
            if self.append.is_none()
                && let Some(records) = self.session.poll_persist()
            {
                self.append = Some(self.agent.parts.journal.append(self.agent.id, records));
            }
            let newest = self.wires.last_mut().filter(|wire| wire.has_room());
            let Some((wire, (link, report))) = newest.and_then(|wire| {
                let report = self.session.poll_report()?;
                Some((wire, report))
            }) else {
                return Ok(());
            };
            if wire.link == link {
                wire.control(&report);
            }
        }
    }

    fn act(&mut self, output: Output) -> Result<(), AgentError> {
        match output {
            Output::Control { link, message } => {
                if let Some(wire) = self.wire(link) {
                    wire.control(&message);
                }
            }
            Output::Reply {
                lane,
                message,
                last,
            } => {
                if let Some(wire) = self.wire(lane.link) {
                    wire.reply(lane.stream, &message, last, None);
                }
            }
            Output::Abandon(lane) => {
                if let Some(wire) = self.wire(lane.link) {
                    wire.abandon(lane.stream);
                }
            }
            Output::Start(command) => self.work.start(&command),
            Output::Recover(command) => self.work.recover(&command),
            Output::Stop { operation, reason } => self.work.stop(operation, reason),
            Output::Forgotten(operation) => {
                self.agent.parts.drivers.forget(self.agent.id, operation);
            }
            Output::Up { link, welcome } => self.on_up(link, &welcome),
            Output::Redirect {
                link,
                addresses,
                retry_after,
            } => {
                tracing::info!(agent = %self.agent.id, ?addresses, "redirected");
                let down = Down::Redirected {
                    addresses,
                    retry_after,
                };
                return self.drop_wire(link, SessionEnd::ClosedHere(CloseCode::Normal), Some(down));
            }
            Output::GoAway {
                link,
                addresses,
                delay,
                deadline,
            } => {
                tracing::info!(agent = %self.agent.id, ?addresses, ?delay, ?deadline,
                    "the gateway is draining");
                // The newest link only: an older one is about to be closed anyway.
                if self.wires.last().is_some_and(|wire| wire.link == link) {
                    let next = self.reconnect.handle_go_away(addresses, delay);
                    return self.connect_next(next, None);
                }
            }
            Output::Close { link, code } => {
                return self.drop_wire(link, SessionEnd::ClosedHere(code), None);
            }
            Output::Notice(notice) => self.observe(notice),
        }
        Ok(())
    }

    fn wire(&mut self, link: Link) -> Option<&mut Wire> {
        self.wires.iter_mut().find(|wire| wire.link == link)
    }

    fn observe(&self, notice: Notice) {
        let (observer, agent) = (&self.agent.parts.observer, self.agent.id);
        match notice {
            Notice::Accepted(operation, fence) => observer.accepted(agent, operation, fence),
            Notice::Refused(operation, fence, why) => {
                tracing::info!(%agent, %operation, %fence, %why, "refused a command");
                observer.refused(agent, operation, fence, &why);
            }
            Notice::Finished(operation, fence, how) => {
                tracing::debug!(%agent, %operation, %fence, status = ?how.status, "finished");
                observer.finished(agent, operation, fence, &how);
            }
        }
    }

    fn on_wire(&mut self, link: Link, event: WireEvent) -> Result<(), AgentError> {
        match event {
            WireEvent::Control(message) => {
                self.session.handle_control(link, *message);
                Ok(())
            }
            WireEvent::Violation(code, what) => self.on_violation(link, code, &what),
            WireEvent::Closed(error) => self.drop_wire(link, SessionEnd::of(&error), None),
        }
    }

    fn on_violation(&mut self, link: Link, code: CloseCode, what: &str) -> Result<(), AgentError> {
        tracing::warn!(agent = %self.agent.id, what, "the gateway broke the protocol");
        self.drop_wire(link, SessionEnd::ClosedHere(code), None)
    }

    fn on_lane(&mut self, event: LaneEvent) -> Result<(), AgentError> {
        match event {
            LaneEvent::Command(lane, epoch, command) => {
                let (now, now_ms) = (clock::now(), clock::unix_ms());
                // The link may have ended while the event waited.
                if self.wire(lane.link).is_some() {
                    self.session
                        .handle_command(now, now_ms, lane, epoch, command);
                }
            }
            LaneEvent::Reset(lane, code) => self.session.handle_reset(lane, code),
            LaneEvent::Closed(lane, delivered) => self.session.handle_lane_closed(lane, delivered),
            LaneEvent::Violation(link, code, what) => return self.on_violation(link, code, &what),
        }
        Ok(())
    }

    fn on_progress(&mut self, piece: InFlight) {
        let InFlight {
            operation,
            progress,
            permit,
        } = piece;
        if let Some((lane, message)) = self.session.handle_progress(operation, progress)
            && let Some(wire) = self.wire(lane.link)
        {
            wire.reply(lane.stream, &message, false, Some(permit));
        }
    }

    fn on_timeout(&mut self) -> Result<(), AgentError> {
        let now = clock::now();
        self.session.handle_timeout(now);
        if let Some(link) = self.dialing.overdue_welcome(now) {
            let end = SessionEnd::Failed("the gateway did not welcome the agent in time".into());
            self.drop_wire(link, end, None)?;
        }
        self.begin_dial(now);
        Ok(())
    }

    /// Whether a stopping agent has nothing left to do, or no time.
    fn may_end(&self) -> bool {
        let quiet = self.session.is_quiet() && self.append.is_none();
        self.stop_at.is_some_and(|at| quiet || at <= clock::now())
    }
}

/// What the next of some connections says; forever without connections.
async fn next_of(wires: &mut [Wire]) -> (Link, WireEvent) {
    match wires {
        [] => std::future::pending().await,
        [only] => (only.link, only.next().await),
        [old, new, ..] => tokio::select! {
            event = old.next() => (old.link, event),
            event = new.next() => (new.link, event),
        },
    }
}

async fn appended(
    append: &mut Option<oneshot::Receiver<Result<(), JournalError>>>,
) -> Result<(), JournalError> {
    let Some(receiver) = append else {
        return std::future::pending().await;
    };
    let result = receiver.await;
    *append = None;
    result.unwrap_or_else(|_| Err(JournalError("the journal's writer is gone".into())))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The policy said never, and no connection is left.
fn superseded(end: SessionEnd) -> AgentError {
    AgentError::Superseded(end)
}

impl Daemon {
    /// Does what the policy says. `end`: the session whose loss it answers.
    fn connect_next(&mut self, next: Next, end: Option<SessionEnd>) -> Result<(), AgentError> {
        match (next, end) {
            (Next::Connect { after, address }, _) => {
                self.dialing.plan(clock::now() + after, address);
                Ok(())
            }
            (Next::Never, Some(end)) => Err(superseded(end)),
            (Next::Never, None) => Err(AgentError::NoServer),
        }
    }

    fn begin_dial(&mut self, now: Instant) {
        if self.stop_at.is_none()
            && let Some(address) = self.dialing.due(now)
        {
            let random = rand::random();
            self.dialing.begin(now, &self.agent, address, random);
        }
    }

    fn on_dialed(&mut self, dialed: dialing::Dialed) -> Result<(), AgentError> {
        match dialed.result {
            Ok(streams) => {
                let link = Link(self.next_link);
                self.next_link = self.next_link.wrapping_add(1);
                let events = self.lane_sender.clone();
                self.wires
                    .push(Wire::new(link, dialed.address, streams, events));
                self.dialing
                    .await_welcome(link, clock::now() + WELCOME_TIMEOUT, dialed.began);
                self.session.handle_connected(link);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::info!(agent = %self.agent.id, address = dialed.address, %reason,
                    "could not connect");
                self.agent
                    .parts
                    .observer
                    .connect_failed(self.agent.id, &reason);
                let end = match &error {
                    DialError::Broken(error) => SessionEnd::of(error),
                    _ => SessionEnd::Failed(reason),
                };
                self.plan_after(end, None)
            }
        }
    }

    fn on_up(&mut self, link: Link, welcome: &Welcome) {
        let now = clock::now();
        let agent = self.agent.id;
        let took = self
            .dialing
            .welcomed(link)
            .map_or(Duration::ZERO, |began| now - began);
        self.agent.slot = welcome.slot;
        if !welcome.keep_alive.is_zero() {
            // Counts from the next connection on: quinn fixes it when a connection begins.
            self.agent.keep_alive = welcome.keep_alive.min(limits::IDLE_TIMEOUT / 2);
        }
        let Some(wire) = self.wires.iter().find(|wire| wire.link == link) else {
            return;
        };
        tracing::info!(%agent, session = %welcome.session, gateway = wire.address, ?took, "session up");
        let (spread, addresses) = (welcome.reconnect_spread, &welcome.addresses);
        self.reconnect
            .handle_up(now, &wire.address, spread, addresses);
        self.agent.parts.observer.session_up(agent, welcome, took);
        // Make before break: the new session stands, the old one can go.
        let olds: Vec<Link> = self
            .wires
            .iter()
            .map(|w| w.link)
            .filter(|l| *l != link)
            .collect();
        for old in olds {
            self.remove_wire(old, &SessionEnd::ClosedHere(CloseCode::Normal));
        }
    }

    /// Takes a connection out.
    fn remove_wire(&mut self, link: Link, end: &SessionEnd) {
        let Some(at) = self.wires.iter().position(|wire| wire.link == link) else {
            return;
        };
        let wire = self.wires.remove(at);
        if let SessionEnd::ClosedHere(code) = end {
            wire.close(*code);
        }
        self.dialing.forget(link);
        let (observer, agent) = (&self.agent.parts.observer, self.agent.id);
        if self.session.is_up(link) {
            tracing::info!(%agent, gateway = wire.address, %end, "session down");
            observer.session_down(agent, end);
        } else {
            tracing::info!(%agent, gateway = wire.address, %end, "no session");
            observer.connect_failed(agent, &end.to_string());
        }
        self.session.handle_disconnected(link);
    }

    /// A connection is over: plan the next one, unless another stands or is on its way.
    fn drop_wire(
        &mut self,
        link: Link,
        end: SessionEnd,
        down: Option<Down>,
    ) -> Result<(), AgentError> {
        let newest = self.wires.last().is_some_and(|wire| wire.link == link);
        if !self.wires.iter().any(|wire| wire.link == link) {
            return Ok(());
        }
        self.remove_wire(link, &end);
        // The old session of a move may be superseded by the new one: that is as it should be.
        if !newest || self.dialing.is_busy() {
            return Ok(());
        }
        self.plan_after(end, down)
    }

    fn plan_after(&mut self, end: SessionEnd, down: Option<Down>) -> Result<(), AgentError> {
        if self.stop_at.is_some() {
            return Ok(());
        }
        if end.retry() == Retry::Slowly {
            tracing::warn!(agent = %self.agent.id, %end, "the agent tries again in some minutes");
        }
        let down = down.unwrap_or(Down::Lost(end.retry()));
        let next = self
            .reconnect
            .handle_down(clock::now(), down, rand::random());
        self.connect_next(next, Some(end))
    }
}
