//! The streams of one connection, as a session needs them: a small trait, so that a session's rules
//! can be tried without QUIC, and its one real implementation.

use bytes::Bytes;
use protocol::frame::FrameBuffer;
use quinn_proto::{Connection, Dir, FinishError, ReadError, StreamId, VarInt, WriteError};

/// What a read came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    /// The limit was reached; there may be more.
    More,
    /// All that has arrived was read.
    Blocked,
    /// The peer ended the stream, and everything was read.
    Finished,
    /// The peer reset the stream, or it is gone.
    Reset,
}

/// What a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    /// All of it was taken.
    All,
    /// Some of it may have been taken; the rest must wait for room.
    Blocked,
    /// The peer does not want any more, or the stream is gone.
    Stopped,
}

/// Streams of one connection.
pub(crate) trait Streams {
    /// The next bidirectional stream that the peer opened.
    fn accept(&mut self) -> Option<StreamId>;
    /// Opens a bidirectional stream, if the peer allows one more.
    fn open(&mut self) -> Option<StreamId>;
    /// Moves up to `limit` bytes into a frame buffer.
    fn read(&mut self, stream: StreamId, into: &mut FrameBuffer, limit: usize) -> Read;
    /// Writes as much as there is room for and cuts it off the front of `bytes`.
    fn write(&mut self, stream: StreamId, bytes: &mut Bytes) -> Written;
    /// Ends our side in order.
    fn finish(&mut self, stream: StreamId);
    /// Ends our side at once, with a code.
    fn reset(&mut self, stream: StreamId, code: u64);
    /// Reads no more from the stream.
    fn stop(&mut self, stream: StreamId, code: u64);
}

impl Streams for Connection {
    fn accept(&mut self) -> Option<StreamId> {
        self.streams().accept(Dir::Bi)
    }

    fn open(&mut self) -> Option<StreamId> {
        self.streams().open(Dir::Bi)
    }

    fn read(&mut self, stream: StreamId, into: &mut FrameBuffer, limit: usize) -> Read {
        let mut stream = self.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else {
            return Read::Reset;
        };
        let mut left = limit;
        let end = loop {
            if left == 0 {
                break Read::More;
            }
            match chunks.next(left) {
                Ok(Some(chunk)) => {
                    left = left.saturating_sub(chunk.bytes.len());
                    into.push(&chunk.bytes);
                }
                Ok(None) => break Read::Finished,
                Err(ReadError::Blocked) => break Read::Blocked,
                Err(ReadError::Reset(_)) => break Read::Reset,
            }
        };
        // Flow control credit goes out with the next packet; the caller transmits after reading.
        let _credit = chunks.finalize().should_transmit();
        end
    }

    fn write(&mut self, stream: StreamId, bytes: &mut Bytes) -> Written {
        while !bytes.is_empty() {
            let mut stream = self.send_stream(stream);
            match stream.write_chunks(std::slice::from_mut(bytes)) {
                Ok(_) => {}
                Err(WriteError::Blocked) => return Written::Blocked,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => return Written::Stopped,
            }
        }
        Written::All
    }

    fn finish(&mut self, stream: StreamId) {
        let mut stream = self.send_stream(stream);
        if let Err(FinishError::Stopped(code)) = stream.finish() {
            // The peer read enough: its STOP_SENDING wants a reset, or the stream never ends
            // (RFC 9000 §3.5) and the peer's stream credit with it.
            drop(stream.reset(code));
        }
    }

    fn reset(&mut self, stream: StreamId, code: u64) {
        drop(self.send_stream(stream).reset(code_of(code)));
    }

    fn stop(&mut self, stream: StreamId, code: u64) {
        drop(self.recv_stream(stream).stop(code_of(code)));
    }
}

fn code_of(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}
