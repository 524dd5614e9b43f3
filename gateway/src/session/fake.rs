//! Streams without QUIC, for tests of a session's rules.

use std::collections::HashMap;

use bytes::Bytes;
use protocol::frame::FrameBuffer;
use quinn_proto::{Dir, Side, StreamId};

use super::streams::{Read, Streams, Written};

/// A Hello from a host of this name makes its handler panic.
pub(crate) const PANIC_HOSTNAME: &str = "panic.test.invalid";

#[derive(Debug, Default)]
pub(crate) struct FakeStream {
    /// Written by the session.
    pub sent: Vec<u8>,
    pub finished: bool,
    pub reset: Option<u64>,
    pub stopped: Option<u64>,
    /// Written by the agent, not read yet.
    pub incoming: Vec<u8>,
    pub incoming_end: Option<Read>,
    /// The agent wants no more.
    pub refused: bool,
}

#[derive(Debug)]
pub(crate) struct FakeStreams {
    pub streams: HashMap<StreamId, FakeStream>,
    /// Streams that the agent lets the gateway open.
    pub credit: u64,
    /// Bytes that a stream still takes.
    pub room: usize,
    opened: u64,
    waiting: Vec<StreamId>,
}

impl Default for FakeStreams {
    fn default() -> Self {
        Self {
            streams: HashMap::new(),
            credit: 16,
            room: usize::MAX,
            opened: 0,
            waiting: Vec::new(),
        }
    }
}

impl FakeStreams {
    /// The agent opens its control stream.
    pub(crate) fn agent_opens(&mut self) -> StreamId {
        let id = StreamId::new(Side::Client, Dir::Bi, 0);
        self.streams.insert(id, FakeStream::default());
        self.waiting.push(id);
        id
    }

    /// The n-th stream that the session opened.
    pub(crate) fn opened(n: u64) -> StreamId {
        StreamId::new(Side::Server, Dir::Bi, n)
    }

    pub(crate) fn sent(&self, id: StreamId) -> &[u8] {
        &self.streams[&id].sent
    }

    pub(crate) fn get(&mut self, id: StreamId) -> &mut FakeStream {
        self.streams.get_mut(&id).expect("a stream that was opened")
    }
}

impl Streams for FakeStreams {
    fn accept(&mut self) -> Option<StreamId> {
        self.waiting.pop()
    }

    fn open(&mut self) -> Option<StreamId> {
        self.credit = self.credit.checked_sub(1)?;
        let id = Self::opened(self.opened);
        self.opened += 1;
        self.streams.insert(id, FakeStream::default());
        Some(id)
    }

    fn read(&mut self, stream: StreamId, into: &mut FrameBuffer, limit: usize) -> Read {
        let stream = self.get(stream);
        let count = limit.min(stream.incoming.len());
        into.push(&stream.incoming[..count]);
        stream.incoming.drain(..count);
        if !stream.incoming.is_empty() {
            return Read::More;
        }
        stream.incoming_end.unwrap_or(Read::Blocked)
    }

    fn write(&mut self, stream: StreamId, bytes: &mut Bytes) -> Written {
        if self.get(stream).refused {
            return Written::Stopped;
        }
        let count = self.room.min(bytes.len());
        self.room -= count;
        let taken = bytes.split_to(count);
        self.get(stream).sent.extend_from_slice(&taken);
        if bytes.is_empty() {
            Written::All
        } else {
            Written::Blocked
        }
    }

    fn finish(&mut self, stream: StreamId) {
        self.get(stream).finished = true;
    }

    fn reset(&mut self, stream: StreamId, code: u64) {
        self.get(stream).reset = Some(code);
    }

    fn stop(&mut self, stream: StreamId, code: u64) {
        self.get(stream).stopped = Some(code);
    }
}
