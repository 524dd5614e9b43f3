//! One shard: a thread's whole work, turn by turn.
//!
//! ```text
//!   park ─▶ datagrams ─▶ mailbox ─▶ timers ─▶ connections with work ─▶ newcomers ─▶ flush ─▶ park
//! ```
//!
//! A turn never blocks and is bounded in each of its steps; what is left makes the next turn start
//! at once. A shard whose events find no room at the control plane reads no further frames and takes
//! no further requests until there is room again: QUIC's flow control and full mailboxes carry the
//! pressure on, and nothing is dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use protocol::close::CloseCode;
use protocol::ids::ShardId;
use protocol::limits::SESSIONS_MAX;
use protocol::link::{DownReason, Event, SecurityEvent};
use quinn_proto::{EndpointConfig, ServerConfig};

use crate::config::AdmissionConfig;
use crate::endpoint::{Endpoint, Panicked, TokenBucket, fleet_spread};
use crate::group::{Directory, Home, HomeConfig, HomeOutput, Location, SessionCommand};
use crate::lease::Lease;
use crate::runtime::launch::{self, Seat};
use crate::runtime::mailbox::Receiver;
use crate::runtime::{Datagram, Datapath, Park, clock};
use crate::session::{Output, Surroundings};
use crate::telemetry::{Counter, Level, Measure, Recorder};
use crate::uplink::Uplink;

mod drain;
mod fencing;
pub(crate) mod message;
mod outputs;
mod requests;
#[cfg(test)]
mod tests;

use drain::Drain;
use message::{Outbound, ShardMessage};

/// Datagrams taken in one turn.
const DATAGRAMS_PER_TURN: usize = 1024;
/// Words from the mailbox taken in one turn.
const WORDS_PER_TURN: usize = 256;
/// How often a shard looks whether there is room again, while it reads nothing.
const PAUSED_LOOK: Duration = Duration::from_millis(2);
/// Log lines about refused peers, so that an attack does not fill the disk. All are counted.
const LOG_LINES_PER_SECOND: u32 = 10;
const LOG_LINES_BURST: u32 = 50;
/// How long a stopping shard waits for its last packets to leave.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// What every shard of a gateway is told.
#[derive(Clone)]
pub(crate) struct ShardConfig {
    /// For quinn.
    pub endpoint: Arc<EndpointConfig>,
    /// For quinn.
    pub server: Arc<ServerConfig>,
    /// The door.
    pub admission: AdmissionConfig,
    /// For Welcome.
    pub advertise: Arc<[String]>,
    /// For Welcome.
    pub reconnect_spread: Option<Duration>,
    /// See [`Config`](crate::Config).
    pub adaptive_limits: bool,
    /// Counts sessions of all shards.
    pub sessions: Arc<AtomicU64>,
    /// Bytes about operations on their way to each shard.
    pub afloat: Arc<[AtomicUsize]>,
    /// Commands leave only while it holds. `None`: the groups can be nobody else's.
    pub lease: Option<Arc<dyn Lease>>,
}

/// The work of one shard before it sits on its thread.
pub(crate) struct ShardTask {
    /// What it is told.
    pub config: ShardConfig,
    /// Its end of the way to the control plane.
    pub uplink: Uplink,
    /// Its figures.
    pub recorder: Recorder,
}

impl launch::Shard for ShardTask {
    type Message = ShardMessage;

    async fn run<D: Datapath + 'static, P: Park<D> + 'static>(
        self,
        seat: Seat<D, P, ShardMessage>,
    ) -> io::Result<()> {
        let Seat {
            shard,
            shards,
            mut datapath,
            mut park,
            mailbox,
            mailboxes,
            stop,
        } = seat;
        let outbound = Outbound::new(shard, mailboxes, Arc::clone(&self.config.afloat));
        let mut worker = Worker::new(clock::now(), self, shard, shards, mailbox, outbound);
        while !stop.is_set() {
            let begin = clock::now();
            let wait = worker.turn(begin, &mut datapath)?;
            worker.measure_turn(begin, clock::now(), &datapath);
            park.park(&mut datapath, wait).await?;
        }
        worker.close_all(clock::now(), CloseCode::Draining);
        let deadline = clock::now() + STOP_GRACE;
        while worker.has_work() && clock::now() < deadline {
            worker.turn(clock::now(), &mut datapath)?;
            park.park(&mut datapath, Some(clock::now())).await?;
        }
        Ok(())
    }
}

/// See the module.
pub(crate) struct Worker {
    shard: ShardId,
    shards: u16,
    config: ShardConfig,
    endpoint: Endpoint,
    directory: Directory,
    home: Home,
    uplink: Uplink,
    recorder: Recorder,
    /// Sessions that are up, and those of them whose home is this shard.
    sessions: usize,
    at_home: usize,
    log: TokenBucket,
    mailbox: Receiver<ShardMessage>,
    outbound: Outbound,
    datagrams: Vec<Datagram>,
    words: Vec<ShardMessage>,
    outputs: Vec<Output>,
    /// Connections that have frames to read while the shard reads none.
    stalled: VecDeque<u32>,
    /// Something was left undone in this turn because there was no room for what follows from it.
    held_back: bool,
    enrolments_pending: usize,
    drain: Option<Drain>,
    /// The lease did not hold when that was looked at last.
    lapsed: bool,
}

impl Worker {
    /// A shard without sessions.
    pub(crate) fn new(
        now: Instant,
        task: ShardTask,
        shard: ShardId,
        shards: u16,
        mailbox: Receiver<ShardMessage>,
        outbound: Outbound,
    ) -> Self {
        let ShardTask {
            config,
            uplink,
            recorder,
        } = task;
        let (endpoint, server) = (Arc::clone(&config.endpoint), Arc::clone(&config.server));
        let sessions_max = SESSIONS_MAX.div_ceil(usize::from(shards.max(1)));
        let home = HomeConfig {
            adaptive: config.adaptive_limits,
            incarnation: clock::incarnation(),
            ..HomeConfig::default()
        };
        Self {
            shard,
            shards,
            endpoint: Endpoint::new(now, endpoint, server, config.admission, sessions_max),
            directory: Directory::default(),
            home: Home::new(now, shard, shards, home),
            config,
            uplink,
            recorder,
            sessions: 0,
            at_home: 0,
            log: TokenBucket::new(now, LOG_LINES_PER_SECOND, LOG_LINES_BURST),
            mailbox,
            outbound,
            datagrams: Vec::new(),
            words: Vec::new(),
            outputs: Vec::new(),
            stalled: VecDeque::new(),
            held_back: false,
            enrolments_pending: 0,
            drain: None,
            lapsed: true,
        }
    }

    /// One turn. Answers until when the shard may sleep: `None` is for ever, a past time not at all.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        datapath: &mut impl Datapath,
    ) -> io::Result<Option<Instant>> {
        self.held_back = false;
        self.follow_lease(datapath);
        let full = self.take_datagrams(now, datapath)?;
        self.outbound.flush();
        if self.outbound.is_stuck() {
            self.recorder.count(Counter::MailboxFull);
        }
        if !self.uplink.has_room() {
            self.recorder.count(Counter::UplinkFull);
        }
        self.pump_home(now);
        self.take_words(now);
        self.advance_timers(now);
        self.endpoint.unblock(datapath);
        self.serve(now, datapath)?;
        let refuse = self.drain.is_some();
        let newcomers = self.endpoint.accept_newcomers(now, refuse, datapath)?;
        self.report_panics(now);
        if newcomers || self.endpoint.dirty_len() > 0 {
            // Accepted ones answer in this turn, not after a sleep.
            self.serve(now, datapath)?;
        }
        self.discard_late(datapath);
        datapath.flush()?;
        self.uplink.flush();
        let busy = full || newcomers || self.endpoint.dirty_len() > 0;
        Ok(if busy {
            Some(now)
        } else {
            self.poll_timeout(now)
        })
    }

    /// Keeps the figures of a turn, and hands figures over about once a second.
    pub(crate) fn measure_turn(&mut self, begin: Instant, end: Instant, datapath: &impl Datapath) {
        self.recorder
            .measure(Measure::Turn, end.saturating_duration_since(begin));
        if end < self.recorder.due() {
            return;
        }
        let door = self.endpoint.take_counts();
        self.recorder
            .count_many(Counter::HandshakesStarted, door.accepted);
        self.recorder
            .count_many(Counter::HandshakesFailed, door.failed);
        self.recorder
            .count_many(Counter::HandshakesTimedOut, door.half_open_expired);
        self.recorder.count_many(Counter::RetriesSent, door.retried);
        self.recorder
            .count_many(Counter::DroppedByBucket, door.dropped_by_rate);
        self.recorder
            .count_many(Counter::DroppedByHalfOpen, door.dropped_by_half_open);
        self.recorder.permits(self.home.take_counts());
        self.recorder.level(Level::Sessions, self.sessions);
        self.recorder.level(Level::AtHome, self.at_home);
        self.recorder
            .level(Level::HalfOpen, self.endpoint.half_open());
        self.recorder.datapath(datapath.stats());
        self.recorder.publish(end);
    }

    /// Whether anything is left to send or pass on.
    pub(crate) fn has_work(&self) -> bool {
        self.endpoint.has_work() || self.outbound.is_stuck()
    }

    /// Closes every session and enrolment.
    pub(crate) fn close_all(&mut self, now: Instant, code: CloseCode) {
        let all: Vec<u32> = self.endpoint.indices().collect();
        for index in all {
            self.command(now, index, SessionCommand::Close(code));
        }
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let look = self.held_back.then(|| now + PAUSED_LOOK);
        let drain = self.drain.as_ref().map(Drain::poll_timeout);
        let figures = Some(self.recorder.due());
        [
            look,
            drain.flatten(),
            figures,
            self.endpoint.poll_timeout(),
            self.home.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether more datagrams than one turn takes have arrived.
    fn take_datagrams(&mut self, now: Instant, datapath: &mut impl Datapath) -> io::Result<bool> {
        let mut datagrams = std::mem::take(&mut self.datagrams);
        let count = datapath.receive(&mut datagrams, DATAGRAMS_PER_TURN)?;
        for datagram in datagrams.drain(..) {
            if let Some(index) = self.endpoint.handle_datagram(now, datagram, datapath)? {
                self.bury(now, index);
            }
            self.report_panics(now);
        }
        self.datagrams = datagrams;
        Ok(count >= DATAGRAMS_PER_TURN)
    }

    fn advance_timers(&mut self, now: Instant) {
        if self.home.poll_timeout().is_some_and(|at| at <= now) {
            self.home.handle_timeout(now);
            self.pump_home(now);
        }
        let due = self.endpoint.take_due(now);
        for index in &due {
            let mut outputs = std::mem::take(&mut self.outputs);
            let handled = self
                .endpoint
                .attempt(*index, |peer| peer.handle_timeout(now, &mut outputs));
            self.handle_outputs(now, *index, outputs);
            if matches!(handled, Some(Err(Panicked))) {
                self.bury(now, *index);
            }
            self.endpoint.mark_dirty(*index);
        }
        self.endpoint.give_due(due);
        self.advance_drain(now);
    }

    /// Serves every connection that had work when the call began.
    fn serve(&mut self, now: Instant, datapath: &mut impl Datapath) -> io::Result<()> {
        if !self.is_full() {
            while let Some(index) = self.stalled.pop_front() {
                if let Some(peer) = self.endpoint.get(index) {
                    peer.stalled = false;
                }
                self.endpoint.mark_dirty(index);
            }
        }
        for _ in 0..self.endpoint.dirty_len() {
            let Some(index) = self.endpoint.next_dirty() else {
                break;
            };
            self.serve_one(now, index, datapath)?;
        }
        Ok(())
    }

    fn serve_one(
        &mut self,
        now: Instant,
        index: u32,
        datapath: &mut impl Datapath,
    ) -> io::Result<()> {
        if self.endpoint.is_overdue(now, index) {
            return self.drop_half_open(now, index, datapath);
        }
        if self.work(now, index).is_err() {
            self.bury(now, index);
            return Ok(());
        }
        self.count_frames(index);
        self.pump_home(now);
        // Nothing comes between this and the packets.
        if self.fence(now, index).is_err() {
            self.bury(now, index);
            return Ok(());
        }
        let sent = self.endpoint.transmit(now, index, datapath)?;
        if sent
            .and_then(|()| self.endpoint.finish(now, index))
            .is_err()
        {
            self.bury(now, index);
        }
        Ok(())
    }

    fn work(&mut self, now: Instant, index: u32) -> Result<(), Panicked> {
        let mut outputs = std::mem::take(&mut self.outputs);
        let paused = self.is_full();
        self.held_back |= paused;
        let spread = self.config.reconnect_spread.unwrap_or_else(|| {
            let rate = self.config.admission.handshakes_per_second;
            fleet_spread(self.directory.agents(), self.shards, rate)
        });
        let worked = self.endpoint.attempt(index, |peer| {
            let around = Surroundings {
                now,
                shard: self.shard,
                shards: self.shards,
                remote: peer.connection.remote_address(),
                directory: &self.directory,
                advertise: &self.config.advertise,
                reconnect_spread: spread,
                draining: self.drain.is_some(),
                unix_now: clock::unix_now,
                sessions: &self.config.sessions,
            };
            peer.work(&around, paused, &mut outputs);
            let readable = peer.is_readable();
            let stall = paused && readable && !peer.stalled;
            peer.stalled |= stall;
            (readable && !paused, stall)
        });
        self.handle_outputs(now, index, outputs);
        let Some(worked) = worked else {
            return Ok(());
        };
        let (more, stall) = worked?;
        if more {
            self.endpoint.mark_dirty(index);
        }
        if stall {
            self.stalled.push_back(index);
        }
        Ok(())
    }

    /// A handshake or a Hello that did not come in time: gone, with one packet and no waiting.
    fn drop_half_open(
        &mut self,
        now: Instant,
        index: u32,
        datapath: &mut impl Datapath,
    ) -> io::Result<()> {
        self.endpoint.count_overdue();
        let closed = self
            .endpoint
            .attempt(index, |peer| peer.close(now, CloseCode::HelloTimeout, ""));
        if matches!(closed, Some(Ok(()))) {
            drop(self.endpoint.transmit(now, index, datapath)?);
        }
        self.endpoint.forget(index);
        Ok(())
    }

    /// A handler panicked: that connection alone is closed, at once.
    fn bury(&mut self, now: Instant, index: u32) {
        tracing::error!(shard = %self.shard, index, "a session's handler panicked; it is closed");
        self.recorder.count(Counter::Panics);
        let mut outputs = std::mem::take(&mut self.outputs);
        let said = self
            .endpoint
            .attempt(index, |peer| peer.fail(now, &mut outputs));
        self.handle_outputs(now, index, outputs);
        if !matches!(said, Some(Ok(true))) {
            // Not even an orderly close works: the goodbye is silence.
            self.report_peer(now, SecurityEvent::HandlerPanicked, index);
            self.end_session(now, index, DownReason::TransportError);
            self.release(index);
            self.endpoint.forget(index);
        }
    }

    /// Passes on what the home of this shard's groups has to say. Events wait there while the way
    /// to the control plane is full.
    fn pump_home(&mut self, now: Instant) {
        while self.uplink.has_room() {
            match self.home.poll_output() {
                Some(HomeOutput::Event(event)) => self.send_up(event),
                Some(HomeOutput::ToSession(location, command)) => {
                    self.deliver(now, location, command);
                }
                None => return,
            }
        }
        self.held_back = true;
    }

    fn deliver(&mut self, now: Instant, location: Location, command: SessionCommand) {
        if location.shard != self.shard {
            return self
                .outbound
                .send(location.shard, ShardMessage::ToSession(location, command));
        }
        let there = self
            .endpoint
            .get(location.index)
            .and_then(|peer| peer.session_id());
        if matches!(command, SessionCommand::Dispatch { .. }) {
            self.recorder.count(Counter::CommandsDispatched);
        }
        // A session that is gone has said, or says with its end, what became of its commands.
        if there == Some(location.session) {
            self.command(now, location.index, command);
        }
    }

    fn command(&mut self, now: Instant, index: u32, command: SessionCommand) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let handled = self.endpoint.attempt(index, |peer| {
            peer.handle_command(now, command, &mut outputs)
        });
        self.handle_outputs(now, index, outputs);
        if matches!(handled, Some(Err(Panicked))) {
            self.bury(now, index);
        }
        self.endpoint.mark_dirty(index);
    }

    /// Whether there is no room for what sessions would say.
    fn is_full(&self) -> bool {
        !self.uplink.has_room() || self.outbound.is_stuck()
    }

    fn send_up(&mut self, event: Event) {
        if !self.uplink.push(event) {
            tracing::error!(shard = %self.shard, "an event was lost: it was sent without room");
        }
    }
}
