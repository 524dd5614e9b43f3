//! The process server's side of the link between machines: a gateway on another machine that looks like one
//! in this process.
//!
//! ```text
//!   send ─▶ outbox, bounded ─ speak ═▶ agent server
//!   receive ◀─ inbox, bounded ─ hear ◀═ agent server
//! ```
//!
//! A full outbox is told to the sender; while the inbox is full nothing is read, so that the agent server
//! waits. When the connection is gone so is the gateway: the end is cut off, and another process server joins
//! in its place, as soon as the agent server can be reached. Where there are several agent servers the process
//! server lives on with the others ([`Switch`]), and a follower leads it back.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use agent::DialError;
use agent::silence::Silence;
use agent::transport;
use control::clock;
use control::dispatch::StartError;
use control::downlink::{End, Link, LinkFull, Wake};
use control::gateways::{AddError, AgentServer, Gateways, Switch, Way};
use control::identity::{Identity, IssueError};
use control::store::{Store, StoreError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use protocol::close::CloseCode;
use protocol::frame::{self, DecodeError, EncodeError};
use protocol::ids::{GatewayId, ServerId};
use protocol::limits::HANDSHAKE_DEADLINE;
use protocol::link::{
    Event, GatewayWord, LINK_SUPPORTED, Leave, NotDelivered, Request, ServerWord,
};
use quinn::{Connection, ConnectionError, Endpoint, SendStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Part;
use super::wire::{self, Broken, Frames, PIECE_BYTES, TlsError};

/// Requests that wait to be written, in bytes, before the sender is told to come again.
const OUTBOX_BYTES_MAX: usize = 4 << 20;
/// Events that wait to be read before nothing more is read from the agent server.
const INBOX_MAX: usize = 4096;
/// Bytes of their frames.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// How often the agent server is told that this process server comes to read.
const CAME_EVERY: Duration = Duration::from_secs(1);
/// One that stays away is complained of this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Before the second attempt to reach the agent server; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Between two attempts, at most.
const PAUSE_LAST: Duration = Duration::from_secs(10);
/// Whether a store that was away is back is looked at so often. An agent server that this process server could reach is
/// one of those whose lease nobody prolongs meanwhile.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Agent servers that are not reached so long after the first are done without.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);
/// Whether an agent server says anything is looked at so often.
const LISTEN_EVERY: Duration = Duration::from_millis(250);
/// One that a lock service doubts has said nothing for so long: it asks every second, and acknowledges what it is told.
const SAYS_NOTHING: Duration = Duration::from_millis(1500);
/// What was said last is written within this.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a process server says it is.
const SOFTWARE: &str = concat!("drover/", env!("CARGO_PKG_VERSION"));

/// The agent server was not reached, or did not let the process server in.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error(transparent)]
    Certificate(#[from] IssueError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Refused(#[from] Broken),
}

/// Gateways on other machines.
pub(crate) struct Remote {
    identity: Arc<Identity>,
    addresses: Vec<String>,
    /// Agents that each of them is given at most, while another one has room.
    capacity: u32,
    /// Agent servers are told from each other by their leases in the store.
    among_others: bool,
    part: Part,
    endpoint: Endpoint,
    gateways: Arc<Gateways>,
    store: Store,
}

impl Remote {
    /// The agent servers at `addresses`, as `host:port`, at least one; `capacity`: agents that each is given at
    /// most, while another one has room. Nothing is sent yet.
    ///
    /// # Errors
    /// There is no socket.
    pub(crate) fn new(
        identity: Arc<Identity>,
        store: Store,
        addresses: Vec<String>,
        capacity: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            identity,
            // Whoever else works on the store may know of agent servers that are not named here.
            among_others: addresses.len() > 1 || store.is_open_to_others(),
            part: Part::Works,
            addresses,
            capacity,
            endpoint: transport::endpoint()?,
            gateways: Gateways::new(),
            store,
        })
    }

    /// Also a single agent server is one of several, which other programs know of.
    pub(crate) fn among_others(mut self) -> Self {
        self.among_others = true;
        self
    }

    /// Whoever joins observes.
    pub(crate) fn observing(mut self) -> Self {
        self.part = Part::Observes;
        self
    }

    /// What is known of several; `None`: there is one.
    pub(crate) fn several(&self) -> Option<Arc<Gateways>> {
        self.among_others.then(|| Arc::clone(&self.gateways))
    }

    /// A new process server's end. Waits until an agent server can be reached and lets it in. Of several, those that
    /// are not reached shortly after the first are added when they come.
    pub(crate) async fn join(self: &Arc<Self>) -> End {
        let wake = Wake::new();
        if let ([only], false) = (&self.addresses[..], self.among_others) {
            let way = self.reach(only, &wake).await;
            return End {
                server: way.number,
                link: way.link,
                wake,
            };
        }
        let mut reaching: FuturesUnordered<_> = (self.addresses.iter())
            .map(|address| self.reach(address, &wake))
            .collect();
        let mut ways = Vec::new();
        ways.extend(reaching.next().await);
        let patience = tokio::time::sleep(OTHERS_WITHIN);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                way = reaching.next() => match way {
                    Some(way) => ways.push(way),
                    None => break,
                },
                () = &mut patience => break,
            }
        }
        drop(reaching);
        let links: Vec<_> = ways
            .iter()
            .map(|way| (way.server.link.clone(), way.link.cut_off()))
            .collect();
        let switch = Switch::new(&self.gateways, ways, wake);
        for address in &self.addresses {
            let there = links.iter().find(|(link, _)| link == address);
            let follower = Follower {
                remote: Arc::clone(self),
                address: address.clone(),
                switch: Arc::downgrade(&switch),
                left: switch.left(),
                wake: switch.end().wake,
            };
            tokio::spawn(follower.follow(there.map(|(_, gone)| gone.clone())));
        }
        switch.end()
    }

    /// Waits until an agent server can be reached and lets a process server in, whose wake is `wake`.
    async fn reach(&self, address: &str, wake: &Wake) -> Way {
        let mut pause = PAUSE_FIRST;
        let mut complained: Option<Instant> = None;
        loop {
            let error = match self.try_reach(address, wake).await {
                Ok(way) => {
                    let back = complained.is_some();
                    tracing::info!(server = address, number = %way.number, back, "joined the agent server");
                    return way;
                }
                Err(error) => error,
            };
            let now = clock::monotonic();
            let since = complained.map(|at| now.saturating_duration_since(at));
            if since.is_none_or(|since| since >= COMPLAIN_EVERY) {
                complained = Some(now);
                tracing::warn!(
                    server = address, %error,
                    "the agent server cannot be reached; is it running, and is link.connect its link.listen? It is \
                     tried again and again"
                );
            } else {
                tracing::debug!(server = address, %error, again_in = ?pause, "it is still away");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    async fn try_reach(&self, address: &str, wake: &Wake) -> Result<Way, JoinError> {
        let config = wire::client_config(self.identity.process_server_tls()?)?;
        let within = HANDSHAKE_DEADLINE;
        let connection = transport::connect(&self.endpoint, address, &config, within).await?;
        let greeted = timeout(
            within,
            greet(&connection, address, self.part, self.capacity),
        )
        .await;
        let greeted = greeted.unwrap_or(Err(Broken::Silent));
        let (server, number, stream, frames) =
            greeted.inspect_err(|broken| broken.close(&connection))?;
        let pipe = Arc::new(Pipe::default());
        let life = Life {
            pipe: Arc::clone(&pipe),
            wake: wake.clone(),
            address: address.to_owned(),
            part: self.part,
            several: self.several().map(|gateways| (gateways, server.run)),
        };
        tokio::spawn(life.live(connection, stream, frames));
        let gateway = server.run;
        Ok(Way {
            server,
            number,
            link: Arc::new(RemoteLink { gateway, pipe }),
        })
    }

    /// Waits until every connection is over whose process server has left.
    pub(crate) async fn farewell(&self) {
        drop(timeout(FAREWELL, self.endpoint.wait_idle()).await);
    }
}

/// Leads one process server back to one agent server of several, whenever that is gone.
struct Follower {
    remote: Arc<Remote>,
    address: String,
    switch: Weak<Switch>,
    /// The process server has left.
    left: CancellationToken,
    wake: Wake,
}

impl Follower {
    /// `gone`: of the way that is there already.
    async fn follow(self, gone: Option<CancellationToken>) {
        let left = self.left.clone();
        tokio::select! {
            () = self.follow_on(gone) => {}
            () = left.cancelled() => {}
        }
    }

    async fn follow_on(self, mut gone: Option<CancellationToken>) {
        loop {
            if let Some(gone) = gone.take() {
                gone.cancelled().await;
            }
            let way = self.remote.reach(&self.address, &self.wake).await;
            let here = way.link.cut_off();
            let Some(switch) = self.switch.upgrade() else {
                return;
            };
            match switch.add(way, &self.remote.store).await {
                Ok(()) => gone = Some(here),
                Err(error) => {
                    tracing::error!(server = self.address, %error, "an agent server is left out for now");
                    drop(switch);
                    self.pause(&error).await;
                }
            }
        }
    }

    /// Before the agent server is reached again that was left out.
    async fn pause(&self, error: &AddError) {
        if !is_for_want_of_the_store(error) {
            return tokio::time::sleep(PAUSE_LAST).await;
        }
        loop {
            tokio::time::sleep(STORE_PAUSE).await;
            if self.remote.store.agent_servers(clock::now()).await.is_ok() {
                return;
            }
        }
    }
}

/// Whether all is well again when the store is.
fn is_for_want_of_the_store(error: &AddError) -> bool {
    matches!(
        error,
        AddError::Introduction(StartError::Store(
            StoreError::Unreachable | StoreError::Busy
        ))
    )
}

/// Says who one is, and hears whose end it will be.
async fn greet(
    connection: &Connection,
    address: &str,
    part: Part,
    capacity: u32,
) -> Result<(AgentServer, ServerId, SendStream, Frames), Broken> {
    let (mut stream, frames) = connection.open_bi().await?;
    let mut frames = Frames::of(frames);
    let hello = ServerWord::Hello {
        versions: LINK_SUPPORTED,
        software: SOFTWARE.to_owned(),
        observes: part == Part::Observes,
    };
    let mut bytes = Vec::new();
    frame::encode_server_word(&hello, &mut bytes)?;
    stream.write_all(&bytes).await?;
    // Whoever is refused is told by the end of the connection.
    let first = match frames.next().await {
        Ok(first) => first.ok_or(Broken::Ended)?,
        Err(Broken::Read(_)) => return Err(connection.closed().await.into()),
        Err(broken) => return Err(broken),
    };
    match frame::decode_gateway_word(&first)? {
        GatewayWord::Welcome {
            version: _,
            gateway,
            server,
            shards,
            port,
            addresses,
        } => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            let agent_server = AgentServer {
                run: gateway,
                link: address.to_owned(),
                addresses: match addresses.is_empty() {
                    true => vec![format!("{host}:{port}")],
                    false => addresses,
                },
                shards,
                capacity,
            };
            Ok((agent_server, server, stream, frames))
        }
        GatewayWord::Leads { .. } | GatewayWord::Renew { .. } => Err(Broken::Unexpected),
    }
}

/// What lies between a process server and its connection.
#[derive(Default)]
struct Pipe {
    /// Frames, one after the other.
    outbox: Mutex<Vec<u8>>,
    /// There is something in it.
    to_write: Notify,
    inbox: Mutex<Inbox>,
    /// There is room in it again.
    room: Notify,
    leads: AtomicBool,
    /// The process server has left.
    left: CancellationToken,
    /// The connection is gone.
    gone: CancellationToken,
}

#[derive(Default)]
struct Inbox {
    heard: VecDeque<(Heard, usize)>,
    bytes: usize,
    /// When the agent server was told last that somebody reads.
    came: Option<Instant>,
}

/// In the order in which it came.
enum Heard {
    Event(Event),
    Leads(bool),
    /// A ticket, to be answered when the lease has been prolonged; and how soon the agent server leaves, if it does.
    Renew(u64, Option<Duration>),
}

impl Inbox {
    fn has_room(&self) -> bool {
        self.heard.len() < INBOX_MAX && self.bytes < INBOX_BYTES_MAX
    }
}

impl Pipe {
    fn outbox(&self) -> MutexGuard<'_, Vec<u8>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says a word about the connection: there are few of them, so there is always room.
    fn say(&self, word: &ServerWord) {
        if let Err(error) = frame::encode_server_word(word, &mut self.outbox()) {
            tracing::error!(%error, ?word, "a word to the agent server could not be written");
        }
        self.to_write.notify_one();
    }

    /// Puts something into the inbox, once there is room.
    async fn put(&self, heard: Heard, bytes: usize) {
        loop {
            {
                let mut inbox = self.inbox();
                if inbox.has_room() {
                    inbox.bytes += bytes;
                    inbox.heard.push_back((heard, bytes));
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// A request that no frame can hold. The gateway says the same of a command that is too large for an agent.
    fn refuse(&self, request: Request, error: &EncodeError) {
        tracing::error!(%error, "a request could not be written");
        if let Request::Dispatch {
            target, command, ..
        } = request
        {
            let refused = Event::NotDelivered {
                target,
                operation: command.operation,
                fence: command.fence,
                reason: NotDelivered::TooLarge,
            };
            self.inbox().heard.push_back((Heard::Event(refused), 0));
        }
    }
}

/// One process server's end. Dropping it is leaving.
struct RemoteLink {
    gateway: GatewayId,
    pipe: Arc<Pipe>,
}

impl Link for RemoteLink {
    fn gateway(&self) -> GatewayId {
        self.gateway
    }

    fn leads(&self) -> bool {
        self.pipe.leads.load(Ordering::Relaxed)
    }

    fn drain(&self) {
        self.pipe.say(&ServerWord::Draining);
    }

    fn cut_off(&self) -> CancellationToken {
        self.pipe.gone.clone()
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        // What it says goes nowhere, and it is about to learn that.
        if self.pipe.gone.is_cancelled() {
            return Ok(());
        }
        let mut outbox = self.pipe.outbox();
        if outbox.len() >= OUTBOX_BYTES_MAX {
            return Err(LinkFull(Box::new(request)));
        }
        let written = frame::encode_request(&request, &mut outbox);
        drop(outbox);
        match written {
            Ok(()) => self.pipe.to_write.notify_one(),
            Err(error) => self.pipe.refuse(request, &error),
        }
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let (now, before) = (clock::monotonic(), out.len());
        let mut inbox = self.pipe.inbox();
        let due = |came: Instant| now.saturating_duration_since(came) >= CAME_EVERY;
        let come = inbox.came.is_none_or(due);
        if come {
            inbox.came = Some(now);
        }
        while out.len() - before < max
            && let Some((heard, bytes)) = inbox.heard.pop_front()
        {
            inbox.bytes -= bytes;
            match heard {
                Heard::Event(event) => out.push(event),
                Heard::Leads(leads) => self.pipe.leads.store(leads, Ordering::Relaxed),
                // It never waits here.
                Heard::Renew(..) => {}
            }
        }
        drop(inbox);
        if come {
            self.pipe.say(&ServerWord::Came);
        }
        self.pipe.room.notify_one();
        out.len() - before
    }
}

impl Drop for RemoteLink {
    fn drop(&mut self) {
        self.pipe.left.cancel();
    }
}

/// A connection, as long as it lives.
struct Life {
    pipe: Arc<Pipe>,
    wake: Wake,
    address: String,
    part: Part,
    /// Where there are several: what is known of them, and which this is.
    several: Option<(Arc<Gateways>, GatewayId)>,
}

impl Life {
    async fn live(self, connection: Connection, stream: SendStream, frames: Frames) {
        let over = tokio::select! {
            over = self.speak(stream) => over,
            broken = self.hear(frames) => Err(broken),
            () = self.doubted(&connection) => Err(Broken::Doubted),
        };
        match over {
            // The agent server closes, once it has heard everything.
            Ok(()) => {
                drop(timeout(FAREWELL, connection.closed()).await);
                wire::close(&connection, CloseCode::Normal);
            }
            Err(broken) => {
                let in_order = has_said_farewell(&connection);
                if in_order {
                    tracing::info!(server = %self.address, "the agent server has stopped in order; it is joined again when it is back");
                } else if !self.pipe.left.is_cancelled() {
                    tracing::error!(
                        server = %self.address, error = %broken,
                        "the agent server is gone; it is joined again when it can be reached"
                    );
                }
                if let Some((gateways, run)) = &self.several
                    && in_order
                {
                    gateways.ended(*run);
                }
                broken.close(&connection);
            }
        }
        self.pipe.gone.cancel();
        self.wake.ring();
    }

    /// Returns when a lock service says that the agent server is gone, and nothing comes from it. Its silence alone is
    /// no reason before the connection's own time is over, and the lock alone is none at all.
    async fn doubted(&self, connection: &Connection) {
        let Some((gateways, run)) = &self.several else {
            return std::future::pending().await;
        };
        let mut silence = Silence::new(clock::monotonic(), LISTEN_EVERY);
        loop {
            tokio::time::sleep(LISTEN_EVERY).await;
            let packets = connection.stats().udp_rx.datagrams;
            let silent = silence.lasts(packets, clock::monotonic());
            if silent >= SAYS_NOTHING && gateways.is_doubted(*run) {
                return;
            }
        }
    }

    /// Writes what is to be said; ends when the process server has left and everything is written.
    async fn speak(&self, mut stream: SendStream) -> Result<(), Broken> {
        loop {
            let left = self.pipe.left.is_cancelled();
            let piece = std::mem::take(&mut *self.pipe.outbox());
            if !piece.is_empty() {
                stream.write_all(&piece).await?;
                self.keep(piece);
                continue;
            }
            if left {
                // It fails only where the other side has gone already.
                drop(stream.finish());
                return Ok(());
            }
            tokio::select! {
                () = self.pipe.to_write.notified() => {}
                () = self.pipe.left.cancelled() => {}
            }
        }
    }

    /// Gives an empty outbox the memory of the last piece.
    fn keep(&self, mut piece: Vec<u8>) {
        piece.clear();
        piece.shrink_to(PIECE_BYTES);
        let mut outbox = self.pipe.outbox();
        if outbox.is_empty() {
            *outbox = piece;
        }
    }

    /// Answers when the lease is prolonged. An agent server that is the only one is nobody's rival: it has none in
    /// the store, and no other is given its groups. An observer is no reason for it to hold: nobody would send anything.
    fn renew(&self, ticket: u64, leaves_in: Option<Duration>) {
        if self.part == Part::Observes {
            return;
        }
        let pipe = Arc::clone(&self.pipe);
        let answer = move |leave| pipe.say(&ServerWord::Renewed { ticket, leave });
        let Some((gateways, run)) = &self.several else {
            let alone = leaves_in.map(|_| Leave::Alone);
            return answer(alone.unwrap_or_default());
        };
        if let Some(left) = leaves_in {
            gateways.leaves(*run, left);
        }
        let (known, run) = (Arc::clone(gateways), *run);
        let answer = move || answer(known.may_leave(run));
        gateways.ask_lease(run, Box::new(answer));
    }

    /// Takes what the agent server says, until the connection is gone.
    async fn hear(&self, mut frames: Frames) -> Broken {
        loop {
            let heard = match frames.next().await {
                Ok(Some(bytes)) => read(&bytes).map(|heard| (heard, bytes.len())),
                Ok(None) => Err(Broken::Ended),
                Err(broken) => Err(broken),
            };
            match heard {
                Ok((Heard::Renew(ticket, leaves_in), _)) => self.renew(ticket, leaves_in),
                Ok((heard, bytes)) => {
                    // An offer is of use only with the next process.
                    let idle = matches!(heard, Heard::Event(Event::Offered { .. }));
                    self.pipe.put(heard, bytes).await;
                    if !idle {
                        self.wake.ring();
                    }
                }
                Err(broken) => return broken,
            }
        }
    }
}

/// Whether the agent server has closed the connection because it stops in order.
fn has_said_farewell(connection: &Connection) -> bool {
    let draining = u64::from(CloseCode::Draining.to_wire());
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => {
            close.error_code.into_inner() == draining
        }
        _ => false,
    }
}

fn read(bytes: &[u8]) -> Result<Heard, Broken> {
    match frame::decode_event(bytes) {
        Ok(event) => Ok(Heard::Event(event)),
        Err(DecodeError::Identifier { .. }) => match frame::decode_gateway_word(bytes)? {
            GatewayWord::Leads { leads } => Ok(Heard::Leads(leads)),
            GatewayWord::Renew { ticket, leaves_in } => Ok(Heard::Renew(ticket, leaves_in)),
            GatewayWord::Welcome { .. } => Err(Broken::Unexpected),
        },
        Err(error) => Err(error.into()),
    }
}
