//! One QUIC connection of an agent: bytes to messages and back. No decisions.
//!
//! ```text
//!   control stream ──▶ Wire::next ──▶ messages          Wire::control ──▶ buffer ──▶ control stream
//!   command stream ──▶ lane task ──▶ LaneEvent          Wire::reply ──▶ lane task ──▶ command stream
//! ```
//!
//! The control stream is driven by whoever polls [`Wire::next`] (the agent's own task: an idle agent
//! has no other). A command stream gets a task for as long as it lives, so that a slow one holds up
//! neither the others nor the control stream.

mod lane;

use std::pin::Pin;
use std::time::Duration;

use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::frame::{self, DecodeError, FrameBuffer};
use protocol::limits;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Sleep;

pub(crate) use lane::LaneEvent;
use lane::{INBOX_MAX, LaneItem};

use crate::clock;
use crate::session::{Lane, Link};
use crate::silence::Silence;
use crate::transport::{self, DialError};

/// Control bytes that wait for the gateway; above, results are held back and the gateway's messages
/// are not read, so that its own flow control stops it.
const CONTROL_BACKLOG_MAX: usize = 128 << 10;
/// From the first packet to an open connection. Longer than the gateway's handshake deadline: a
/// flooded gateway drops silently, and QUIC repeats its first packet after 1, 3 and 7 s.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Whether the gateway is silent is looked at so often. A gateway that is there sends a PING after 10 s.
const LISTEN_EVERY: Duration = Duration::from_secs(5);

/// What a connection says next.
#[derive(Debug)]
pub(crate) enum WireEvent {
    /// A message on the control stream.
    Control(Box<GatewayMessage>),
    /// Everything queued for the control stream has been written: there is room for more.
    Written,
    /// The gateway broke the protocol; the connection is to be closed with this.
    Violation(CloseCode, String),
    /// The connection is over.
    Closed(ConnectionError),
}

/// Makes a connection and opens its control stream.
pub(crate) async fn dial(
    endpoint: Endpoint,
    address: String,
    config: ClientConfig,
) -> Result<(Connection, SendStream, RecvStream), DialError> {
    let connection = transport::connect(&endpoint, &address, &config, DIAL_TIMEOUT).await?;
    let (send, receive) = connection.open_bi().await?;
    Ok((connection, send, receive))
}

/// An open connection.
pub(crate) struct Wire {
    pub(crate) link: Link,
    pub(crate) address: String,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    frames: FrameBuffer,
    backlog: Vec<u8>,
    written: usize,
    lanes: JoinSet<()>,
    inboxes: Vec<(u64, mpsc::Sender<LaneItem>)>,
    events: mpsc::Sender<Box<LaneEvent>>,
    silence: Silence,
    /// The next look at it.
    look: Pin<Box<Sleep>>,
}

impl Wire {
    pub(crate) fn new(
        link: Link,
        address: String,
        (connection, send, receive): (Connection, SendStream, RecvStream),
        events: mpsc::Sender<Box<LaneEvent>>,
    ) -> Self {
        Self {
            link,
            address,
            connection,
            send,
            receive,
            frames: FrameBuffer::default(),
            backlog: Vec::new(),
            written: 0,
            lanes: JoinSet::new(),
            inboxes: Vec::new(),
            events,
            silence: Silence::new(clock::now(), LISTEN_EVERY),
            look: Box::pin(tokio::time::sleep(LISTEN_EVERY)),
        }
    }

    /// Whether results may be added to the control stream.
    pub(crate) fn has_room(&self) -> bool {
        self.backlog.len() - self.written < CONTROL_BACKLOG_MAX
    }

    /// Whether everything queued for the control stream has been handed to QUIC.
    pub(crate) fn is_written(&self) -> bool {
        self.written == self.backlog.len()
    }

    /// Queues a message for the control stream; [`Wire::next`] writes it.
    pub(crate) fn control(&mut self, message: &AgentMessage) {
        if self.is_written() {
            self.backlog.clear();
            self.written = 0;
        }
        if let Err(error) = frame::encode_agent_message(message, &mut self.backlog) {
            tracing::error!(%error, "a message does not fit into a frame and was not sent");
        }
    }

    /// Queues a message for a command stream. The permit is freed when it has been written.
    pub(crate) fn reply(
        &mut self,
        stream: u64,
        message: &AgentMessage,
        last: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let mut bytes = Vec::new();
        if let Err(error) = frame::encode_agent_message(message, &mut bytes) {
            tracing::error!(%error, "a message does not fit into a frame and was not sent");
        }
        self.queue(
            stream,
            LaneItem::Message {
                bytes,
                last,
                permit,
            },
        );
    }

    /// Resets a command stream that another one has replaced.
    pub(crate) fn abandon(&mut self, stream: u64) {
        self.queue(stream, LaneItem::Reset);
    }

    fn queue(&mut self, stream: u64, item: LaneItem) {
        let inbox = self.inboxes.iter().find(|(id, _)| *id == stream);
        // A stream that is gone has said so in an event of its own. It cannot be full: see INBOX_MAX.
        if let Some((_, inbox)) = inbox
            && let Err(mpsc::error::TrySendError::Full(_)) = inbox.try_send(item)
        {
            tracing::error!(stream, "a command stream's inbox is full");
        }
    }

    /// Closes the connection.
    pub(crate) fn close(&self, code: CloseCode) {
        let text = code.to_string();
        self.connection
            .close(VarInt::from_u32(code.to_wire()), text.as_bytes());
    }

    /// Drives the control stream and waits for what comes next. May be dropped at any await.
    pub(crate) async fn next(&mut self) -> WireEvent {
        loop {
            match self.next_message() {
                Ok(Some(message)) => return WireEvent::Control(Box::new(message)),
                Ok(None) => {}
                Err(error) => return WireEvent::Violation(CloseCode::BadFrame, error.to_string()),
            }
            let waiting = !self.is_written();
            let may_read = self.has_room();
            tokio::select! {
                written = self.send.write(&self.backlog[self.written..]), if waiting => match written {
                    Ok(bytes) => if self.advance(bytes) {
                        return WireEvent::Written;
                    },
                    Err(_) => return self.ended("stopped reading the control stream").await,
                },
                chunk = self.receive.read_chunk(limits::STREAM_WINDOW_BYTES, true), if may_read => {
                    match chunk {
                        Ok(Some(chunk)) => self.frames.push(&chunk.bytes),
                        Ok(None) | Err(_) => return self.ended("ended the control stream").await,
                    }
                }
                accepted = self.connection.accept_bi() => match accepted {
                    Ok((send, receive)) => self.open_lane(send, receive),
                    Err(error) => return WireEvent::Closed(error),
                },
                () = self.look.as_mut() => if self.is_deserted() {
                    return WireEvent::Closed(ConnectionError::TimedOut);
                },
            }
        }
    }

    /// Whether nothing has come for so long that the gateway is gone. QUIC itself would wait for up to 16 s more: from
    /// this side's PING on.
    fn is_deserted(&mut self) -> bool {
        let now = clock::now();
        self.look.as_mut().reset((now + LISTEN_EVERY).into());
        let packets = self.connection.stats().udp_rx.datagrams;
        self.silence.lasts(packets, now) >= limits::IDLE_TIMEOUT
    }

    fn next_message(&mut self) -> Result<Option<GatewayMessage>, DecodeError> {
        // While the backlog is full nothing more is taken on that would make it grow.
        if !self.has_room() {
            return Ok(None);
        }
        let frame = self.frames.next_frame(limits::GATEWAY_FRAME_BYTES_MAX)?;
        frame
            .map(|frame| frame::decode_gateway_message(&frame))
            .transpose()
    }

    /// Notes what was written. Returns whether that was everything.
    fn advance(&mut self, bytes: usize) -> bool {
        self.written += bytes;
        let all = self.is_written();
        if all {
            // An idle agent holds no buffer.
            self.backlog = Vec::new();
            self.written = 0;
        }
        all
    }

    /// The control stream failed: because the connection did, or against the protocol.
    async fn ended(&self, what: &str) -> WireEvent {
        // A close that caused it is known at once, or right after the stream's end.
        let closed = tokio::time::timeout(Duration::from_millis(200), self.connection.closed());
        match closed.await {
            Ok(error) => WireEvent::Closed(error),
            Err(_) => WireEvent::Violation(CloseCode::UnexpectedFrame, format!("it {what}")),
        }
    }

    fn open_lane(&mut self, send: SendStream, receive: RecvStream) {
        while self.lanes.try_join_next().is_some() {}
        self.inboxes.retain(|(_, inbox)| !inbox.is_closed());
        let stream = VarInt::from(send.id()).into_inner();
        let lane = Lane {
            link: self.link,
            stream,
        };
        let (inbox, items) = mpsc::channel(INBOX_MAX);
        self.inboxes.push((stream, inbox));
        let events = self.events.clone();
        self.lanes
            .spawn(lane::drive(lane, send, receive, items, events));
    }
}
