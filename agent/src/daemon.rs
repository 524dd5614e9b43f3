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
mod links;
mod observer;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::close::CloseCode;
use protocol::ids::{AgentId, Slot};
use protocol::limits;
use quinn::Endpoint;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::{LaneEvent, Wire, WireEvent};
use crate::driver::{Drivers, InFlight, PROGRESS_IN_FLIGHT_MAX};
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::reconnect::{Down, Reconnect};
use crate::session::{Link, Notice, Output, Profile, Session};
use crate::tls::{TlsError, Trust};
use dialing::Dialing;
pub use observer::{Observer, SessionEnd, Unobserved};
use work::Work;

/// From an open connection to the gateway's Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Events of lanes and pieces of progress that wait for the agent's task; the senders wait then.
const EVENTS_MAX: usize = 16;

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
            keep_alive: limits::AGENT_KEEP_ALIVE,
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
                Wake::Progress(piece) => self.on_progress(*piece)?,
                Wake::Work(work::Done::Ended(operation, outcome)) => {
                    // What the driver said last comes before its end.
                    while let Ok(piece) = self.progress.try_recv() {
                        self.on_progress(*piece)?;
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
            // Results are large and may be many: one at a time, and only while there is room.
            let up = self.session.current();
            let Some(wire) = self.wires.iter_mut().find(|wire| Some(wire.link) == up) else {
                return Ok(());
            };
            let report = wire
                .has_room()
                .then(|| self.session.poll_report())
                .flatten();
            let Some(report) = report else {
                return Ok(());
            };
            wire.control(&report);
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
            WireEvent::Written => Ok(()),
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
                    let observer = &self.agent.parts.observer;
                    observer.commanded(self.agent.id, command.operation, epoch);
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

    fn on_progress(&mut self, piece: InFlight) -> Result<(), AgentError> {
        let InFlight {
            operation,
            progress,
            permit,
        } = piece;
        let said = self.session.handle_progress(operation, progress);
        // Accepted may have waited for company and comes first.
        while let Some(output) = self.session.poll_output() {
            self.act(output)?;
        }
        if let Some((lane, message)) = said
            && let Some(wire) = self.wire(lane.link)
        {
            wire.reply(lane.stream, &message, false, Some(permit));
        }
        Ok(())
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
        let written = self.wires.iter().all(Wire::is_written);
        let quiet = self.session.is_quiet() && self.append.is_none() && written;
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
