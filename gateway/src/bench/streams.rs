//! Streams in memory, in plain lists: their own cost is small and the same in every run.

use bytes::Bytes;
use protocol::frame::FrameBuffer;
use quinn_proto::{Dir, Side, StreamId};

use crate::session::streams::{Read, Streams, Written};

/// One answer of the agent waits in `incoming`, on the stream `readable`; what the session writes
/// is counted and thrown away.
#[derive(Default)]
pub(super) struct MemoryStreams {
    pub(super) incoming: Vec<u8>,
    pub(super) written: usize,
    opened: u64,
    control_taken: bool,
}

impl MemoryStreams {
    pub(super) fn control() -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, 0)
    }

    /// The stream that the session opened last.
    pub(super) fn last_opened(&self) -> StreamId {
        StreamId::new(Side::Server, Dir::Bi, self.opened.saturating_sub(1))
    }
}

impl Streams for MemoryStreams {
    fn accept(&mut self) -> Option<StreamId> {
        (!std::mem::replace(&mut self.control_taken, true)).then(Self::control)
    }

    fn open(&mut self) -> Option<StreamId> {
        self.opened += 1;
        Some(self.last_opened())
    }

    fn read(&mut self, _stream: StreamId, into: &mut FrameBuffer, limit: usize) -> Read {
        let count = limit.min(self.incoming.len());
        into.push(&self.incoming[..count]);
        self.incoming.drain(..count);
        if self.incoming.is_empty() {
            Read::Blocked
        } else {
            Read::More
        }
    }

    fn write(&mut self, _stream: StreamId, bytes: &mut Bytes) -> Written {
        self.written += bytes.len();
        bytes.clear();
        Written::All
    }

    fn finish(&mut self, _stream: StreamId) {}

    fn reset(&mut self, _stream: StreamId, _code: u64) {}

    fn stop(&mut self, _stream: StreamId, _code: u64) {}
}
