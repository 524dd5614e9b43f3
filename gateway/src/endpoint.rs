//! The connections of one shard: quinn-proto's endpoint driven directly, without a task, a channel
//! or a lock per connection.
//!
//! ```text
//!   datagram ─▶ quinn ─┬▶ known connection ─▶ dirty list ─▶ work ─▶ transmit ─▶ timer
//!                      ├▶ newcomer ─▶ Admission ─▶ waits for its first TLS work
//!                      └▶ reply without a connection (bounded)
//! ```
//!
//! Every call into one connection is caught if it panics: that connection alone is dropped. So is
//! every call into quinn's endpoint: the datagram or the newcomer alone is dropped (see `guard`).
//! What it does not know: groups, the control plane, other shards.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use protocol::limits::INCOMING_AGE_MAX;
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EndpointConfig, EndpointEvent, Incoming, ServerConfig,
    Transmit,
};

use crate::config::AdmissionConfig;
use crate::runtime::wheel::Wheel;
use crate::runtime::{Datagram, Datapath, Sent};

mod admission;
mod budget;
mod guard;
pub(crate) mod identity;
mod line;
mod peer;

use admission::{Admission, Decision};
pub(crate) use admission::{TokenBucket, fleet_spread};
use guard::ORPHANS_MAX;
use line::Line;
use peer::Farewell;
pub(crate) use peer::{Peer, Stage};

/// Newcomers that get their first TLS work in one turn, after everybody else was served: each costs
/// as much as twenty commands.
const ACCEPTS_PER_TURN: usize = 8;
/// Datagrams in one train; more would let one session hold the others up.
const TRAIN_SEGMENTS_MAX: usize = 10;

/// Closed connections that stay for QUIC's farewell (RFC 9000 §10.2: three probe timeouts, which a
/// peer can stretch to seconds). Further ones are forgotten once their last packet is sent.
const CLOSING_MAX: usize = 256;

/// A handler of this connection panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Counters of one shard's door and connections.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct EndpointCounts {
    /// Handshakes begun.
    pub accepted: u64,
    /// Newcomers asked to prove their address.
    pub retried: u64,
    /// Newcomers dropped without an answer because too many came in a short time.
    pub dropped_by_rate: u64,
    /// Newcomers dropped without an answer because too many are half-open or up.
    pub dropped_by_half_open: u64,
    /// Newcomers that quinn refused by itself (damaged, wrong version).
    pub failed: u64,
    /// Connections dropped because they were half-open for too long.
    pub half_open_expired: u64,
    /// Replies without a connection that were not sent because there were too many.
    pub replies_dropped: u64,
}

struct Newcomer {
    incoming: Incoming,
    bytes: usize,
    arrived: Instant,
}

/// See the module.
pub(crate) struct Endpoint {
    quinn: quinn_proto::Endpoint,
    /// By quinn's handle.
    peers: Vec<Option<Box<Peer>>>,
    count: usize,
    count_max: usize,
    half_open: usize,
    closing: usize,
    wheel: Wheel,
    dirty: VecDeque<u32>,
    /// Connections that wait for a free transmit slot, first come, first served.
    blocked: Line,
    newcomers: VecDeque<Newcomer>,
    admission: Admission,
    scratch: Vec<u8>,
    due: Vec<u32>,
    tickets: u64,
    counts: EndpointCounts,
    /// See `guard`.
    panicked_on: Vec<SocketAddr>,
    orphans_max: usize,
}

impl Endpoint {
    /// An endpoint without connections, which takes at most `count_max` of them.
    pub(crate) fn new(
        now: Instant,
        endpoint: Arc<EndpointConfig>,
        server: Arc<ServerConfig>,
        admission: AdmissionConfig,
        count_max: usize,
    ) -> Self {
        Self {
            quinn: quinn_proto::Endpoint::new(endpoint, Some(server), false, None),
            peers: Vec::new(),
            count: 0,
            count_max,
            half_open: 0,
            closing: 0,
            wheel: Wheel::new(now),
            dirty: VecDeque::new(),
            blocked: Line::default(),
            newcomers: VecDeque::new(),
            admission: Admission::new(now, admission),
            scratch: Vec::new(),
            due: Vec::new(),
            tickets: 0,
            counts: EndpointCounts::default(),
            panicked_on: Vec::new(),
            orphans_max: ORPHANS_MAX,
        }
    }

    /// Lets newcomers in.
    pub(crate) fn open(&mut self) {
        self.admission.open();
    }

    /// Connections whose Hello or enrolment request is still awaited.
    pub(crate) fn half_open(&self) -> usize {
        self.half_open
    }

    /// What happened at the door since the last call.
    pub(crate) fn take_counts(&mut self) -> EndpointCounts {
        std::mem::take(&mut self.counts)
    }

    /// The connection at an index.
    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Peer> {
        self.peers.get_mut(slot(index))?.as_deref_mut()
    }

    /// Indices of all connections.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + use<'_> {
        (0u32..)
            .zip(&self.peers)
            .filter(|(_, peer)| peer.is_some())
            .map(|(index, _)| index)
    }

    /// Whether one more enrolment may go to the control plane.
    pub(crate) fn may_enrol(&mut self, now: Instant, pending: usize) -> bool {
        self.admission.enrol(now, pending)
    }

    /// Puts a connection on the list of those with work.
    pub(crate) fn mark_dirty(&mut self, index: u32) {
        if let Some(peer) = self
            .peers
            .get_mut(slot(index))
            .and_then(Option::as_deref_mut)
            && !peer.dirty
        {
            peer.dirty = true;
            self.dirty.push_back(index);
        }
    }

    /// Whether any connection waits for work or for a transmit slot.
    pub(crate) fn has_work(&self) -> bool {
        !(self.dirty.is_empty() && self.blocked.is_empty())
    }

    /// How many connections wait on that list.
    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// The next connection with work.
    pub(crate) fn next_dirty(&mut self) -> Option<u32> {
        while let Some(index) = self.dirty.pop_front() {
            if let Some(peer) = self.get(index)
                && std::mem::take(&mut peer.dirty)
            {
                return Some(index);
            }
        }
        None
    }

    /// Calls into one connection; a panic stays there. `None`: there is no such connection.
    pub(crate) fn attempt<T>(
        &mut self,
        index: u32,
        call: impl FnOnce(&mut Peer) -> T,
    ) -> Option<Result<T, Panicked>> {
        let peer = self.get(index)?;
        Some(catch_unwind(AssertUnwindSafe(|| call(peer))).map_err(|_| Panicked))
    }

    /// Takes in a datagram. Answers the connection whose handler panicked on it, if so.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: Datagram,
        datapath: &mut impl Datapath,
    ) -> io::Result<Option<u32>> {
        let Datagram {
            remote,
            local_ip,
            ecn,
            payload,
        } = datagram;
        let bytes = payload.len();
        self.scratch.clear();
        let handled = self.guarded(remote, |quinn, scratch| {
            quinn.handle(now, remote, local_ip, ecn, payload, scratch)
        });
        match handled.flatten() {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let index = index_of(handle);
                let handled = self.attempt(index, |peer| {
                    // quinn drops what comes from elsewhere, so that pays for nothing.
                    if peer.connection.remote_address() == remote {
                        peer.budget.credit(bytes);
                    }
                    peer.connection.handle_event(event);
                });
                self.mark_dirty(index);
                Ok(matches!(handled, Some(Err(Panicked))).then_some(index))
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.meet(now, incoming, bytes, datapath)?;
                Ok(None)
            }
            Some(DatagramEvent::Response(transmit)) => {
                self.reply(now, transmit, datapath)?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Decides about a newcomer.
    fn meet(
        &mut self,
        now: Instant,
        incoming: Incoming,
        bytes: usize,
        datapath: &mut impl Datapath,
    ) -> io::Result<()> {
        let half_open = self.half_open + self.newcomers.len();
        let proved = incoming.remote_address_validated();
        match self.admission.decide(now, half_open, proved) {
            Decision::Accept if self.count + self.newcomers.len() < self.count_max => {
                self.newcomers.push_back(Newcomer {
                    incoming,
                    bytes,
                    arrived: now,
                });
                Ok(())
            }
            Decision::Retry => {
                self.counts.retried += 1;
                let retried = self.guarded(incoming.remote_address(), |quinn, scratch| {
                    let retried = quinn.retry(incoming, scratch);
                    retried
                        .map_err(|error| quinn.ignore(error.into_incoming()))
                        .ok()
                });
                match retried.flatten() {
                    Some(transmit) => self.reply(now, transmit, datapath),
                    None => Ok(()),
                }
            }
            Decision::TooFast => {
                self.counts.dropped_by_rate += 1;
                self.ignore(incoming);
                Ok(())
            }
            Decision::Accept | Decision::TooMany => {
                self.counts.dropped_by_half_open += 1;
                self.ignore(incoming);
                Ok(())
            }
        }
    }

    /// Gives newcomers their first TLS work. With `refuse` they are told to go elsewhere instead.
    /// Whether some still wait.
    pub(crate) fn accept_newcomers(
        &mut self,
        now: Instant,
        refuse: bool,
        datapath: &mut impl Datapath,
    ) -> io::Result<bool> {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(newcomer) = self.newcomers.pop_front() else {
                return Ok(false);
            };
            self.scratch.clear();
            if now.saturating_duration_since(newcomer.arrived) > INCOMING_AGE_MAX {
                self.counts.dropped_by_rate += 1;
                self.ignore(newcomer.incoming);
            } else if refuse {
                self.counts.failed += 1;
                let incoming = newcomer.incoming;
                let refused = self.guarded(incoming.remote_address(), |quinn, scratch| {
                    quinn.refuse(incoming, scratch)
                });
                if let Some(transmit) = refused {
                    self.reply(now, transmit, datapath)?;
                }
            } else {
                self.accept(now, newcomer, datapath)?;
            }
        }
        Ok(!self.newcomers.is_empty())
    }

    fn accept(
        &mut self,
        now: Instant,
        newcomer: Newcomer,
        datapath: &mut impl Datapath,
    ) -> io::Result<()> {
        let Newcomer {
            incoming,
            bytes,
            arrived,
        } = newcomer;
        let proved = incoming.remote_address_validated();
        let accepted = self.guarded(incoming.remote_address(), |quinn, scratch| {
            quinn.accept(incoming, now, scratch, None).map_err(Box::new)
        });
        match accepted {
            None => {
                self.counts.failed += 1;
                Ok(())
            }
            Some(Ok((handle, connection))) => {
                self.counts.accepted += 1;
                let index = index_of(handle);
                self.tickets += 1;
                let ticket = self.tickets << 32 | u64::from(index);
                let peer = Peer::new(connection, arrived, bytes, proved, ticket);
                if self.peers.len() <= handle.0 {
                    self.peers.resize_with(handle.0 + 1, || None);
                }
                self.peers[handle.0] = Some(Box::new(peer));
                self.count += 1;
                self.half_open += 1;
                self.mark_dirty(index);
                Ok(())
            }
            Some(Err(error)) => {
                self.counts.failed += 1;
                tracing::debug!(cause = %error.cause, "a newcomer's first packet is no good");
                error
                    .response
                    .map_or(Ok(()), |transmit| self.reply(now, transmit, datapath))
            }
        }
    }

    fn ignore(&mut self, incoming: Incoming) {
        self.guarded(incoming.remote_address(), |quinn, _| quinn.ignore(incoming));
    }

    /// The connection is no longer half-open.
    pub(crate) fn settle(&mut self, index: u32) {
        if let Some(peer) = self.get(index)
            && peer.half_open_until.take().is_some()
        {
            self.half_open -= 1;
        }
    }

    /// The connection is over; it stays for QUIC's farewell if there is a place for that.
    pub(crate) fn begin_farewell(&mut self, index: u32) {
        let places = self.closing < CLOSING_MAX;
        let Some(peer) = self.get(index) else {
            return;
        };
        if peer.farewell == Farewell::NotYet {
            peer.farewell = if places {
                Farewell::Full
            } else {
                Farewell::Brief
            };
            self.closing += usize::from(places);
        }
    }

    /// The connections whose timers are due, by appending to `due`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let mut due = std::mem::take(&mut self.due);
        due.clear();
        self.wheel.advance(now, &mut due);
        for index in &due {
            if let Some(peer) = self.get(*index) {
                peer.armed = None;
            }
        }
        due
    }

    /// Gives the list of [`take_due`](Self::take_due) back, for its memory.
    pub(crate) fn give_due(&mut self, due: Vec<u32>) {
        self.due = due;
    }

    /// Whether the connection has been half-open for too long.
    pub(crate) fn is_overdue(&mut self, now: Instant, index: u32) -> bool {
        self.get(index)
            .and_then(|peer| peer.half_open_until)
            .is_some_and(|until| until <= now)
    }

    /// When a timer is due next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next_deadline()
    }

    /// Puts the connections that wait for transmit slots back on the list with work.
    pub(crate) fn unblock(&mut self, datapath: &impl Datapath) {
        if datapath.has_room() {
            while let Some(index) = self.blocked.pop() {
                self.mark_dirty(index);
            }
        }
    }

    /// Sends what a connection has, at most one train; what is left waits for the next turn.
    /// Answers whether the connection must be given up.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        index: u32,
        datapath: &mut impl Datapath,
    ) -> io::Result<Result<(), Panicked>> {
        let train = datapath.max_segments().clamp(1, TRAIN_SEGMENTS_MAX);
        // A second look costs little and spares most turns a third: usually there is nothing more.
        for _ in 0..2 {
            let Some(peer) = self.get(index) else {
                return Ok(Ok(()));
            };
            let segments = peer.budget.datagrams(train);
            if segments == 0 {
                return Ok(Ok(()));
            }
            let mut filled = Ok(None);
            let sent = datapath.transmit(&mut |buffer| {
                let poll = AssertUnwindSafe(|| {
                    let transmit = peer.connection.poll_transmit(now, segments, buffer);
                    (transmit.as_ref().map(|transmit| transmit.size), transmit)
                });
                match catch_unwind(poll) {
                    Ok((size, transmit)) => {
                        filled = Ok(size);
                        transmit
                    }
                    Err(_) => {
                        filled = Err(Panicked);
                        None
                    }
                }
            })?;
            match (sent, filled) {
                (Sent::NoRoom, _) => {
                    self.blocked.push(index);
                    return Ok(Ok(()));
                }
                (Sent::Done, Ok(None)) => return Ok(Ok(())),
                (Sent::Done, Ok(Some(size))) => peer.budget.charge(size),
                (Sent::Done, Err(Panicked)) => return Ok(Err(Panicked)),
            }
        }
        self.mark_dirty(index);
        Ok(Ok(()))
    }

    /// After work and transmit: passes on what the connection tells its endpoint, and arms its
    /// timer. A connection that is drained is gone afterwards.
    pub(crate) fn finish(&mut self, now: Instant, index: u32) -> Result<(), Panicked> {
        let handle = ConnectionHandle(slot(index));
        let Some(peer) = self
            .peers
            .get_mut(slot(index))
            .and_then(Option::as_deref_mut)
        else {
            return Ok(());
        };
        let quinn = &mut self.quinn;
        let talk = AssertUnwindSafe(|| {
            while let Some(event) = peer.connection.poll_endpoint_events() {
                let drained = event.is_drained();
                if let Some(answer) = quinn.handle_event(handle, event) {
                    peer.connection.handle_event(answer);
                }
                if drained {
                    return (true, None);
                }
            }
            (false, peer.poll_timeout())
        });
        let (drained, next) = catch_unwind(talk).map_err(|_| Panicked)?;
        if drained {
            self.remove(index);
        } else if peer.farewell == Farewell::Brief {
            self.forget(index);
        } else if next != peer.armed {
            peer.armed = next;
            match next {
                Some(at) => self.wheel.schedule(index, self.wheel.rounded(now, at)),
                None => self.wheel.cancel(index),
            }
        }
        Ok(())
    }

    /// Forgets a connection at once, without quinn's usual wait.
    pub(crate) fn forget(&mut self, index: u32) {
        let Some(peer) = self.get(index) else {
            return;
        };
        let remote = peer.connection.remote_address();
        let handle = ConnectionHandle(slot(index));
        self.guarded(remote, |quinn, _| {
            quinn.handle_event(handle, EndpointEvent::drained())
        });
        self.remove(index);
    }

    /// How many connections wait for a free transmit slot.
    #[cfg(test)]
    pub(crate) fn blocked_len(&self) -> usize {
        self.blocked.len()
    }

    /// Takes all places for farewells.
    #[cfg(test)]
    pub(crate) fn fill_farewells(&mut self) {
        self.closing = CLOSING_MAX;
    }

    /// Counts a connection that is forgotten because it was half-open for too long.
    pub(crate) fn count_overdue(&mut self) {
        self.counts.half_open_expired += 1;
    }

    fn remove(&mut self, index: u32) {
        self.settle(index);
        self.wheel.cancel(index);
        // Dropping runs code of rustls and quinn: a panic there must not leave the entry behind.
        let peer = self.peers.get_mut(slot(index)).and_then(Option::take);
        if let Some(peer) = &peer {
            self.count -= 1;
            self.closing -= usize::from(peer.farewell == Farewell::Full);
        }
        drop(catch_unwind(AssertUnwindSafe(|| drop(peer))));
    }

    /// Sends a reply that belongs to no connection. It is a courtesy: without room it is dropped.
    fn reply(
        &mut self,
        now: Instant,
        transmit: Transmit,
        datapath: &mut impl Datapath,
    ) -> io::Result<()> {
        if !self.admission.reply(now) {
            self.counts.replies_dropped += 1;
            return Ok(());
        }
        let mut transmit = Some(transmit);
        let scratch = &self.scratch;
        let sent = datapath.transmit(&mut |buffer| {
            let transmit = transmit.take()?;
            buffer.extend_from_slice(scratch.get(..transmit.size)?);
            Some(transmit)
        })?;
        if sent == Sent::NoRoom {
            self.counts.replies_dropped += 1;
        }
        Ok(())
    }
}

fn index_of(handle: ConnectionHandle) -> u32 {
    u32::try_from(handle.0).unwrap_or(u32::MAX)
}

fn slot(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
