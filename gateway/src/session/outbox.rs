//! Frames for the agent's control stream that wait for room in its window.

use std::collections::VecDeque;

use bytes::Bytes;
use protocol::limits::{GATEWAY_FRAME_BYTES_MAX, OUTBOX_BYTES_MAX};
use quinn_proto::StreamId;

use super::streams::{Streams, Written};

/// Bytes of commands that may wait. What is left of the outbox belongs to the control stream, so
/// that a slow command cannot shut out a cancel.
pub(super) const COMMAND_BYTES_MAX: usize = GATEWAY_FRAME_BYTES_MAX;
/// Bytes that may wait for the control stream alone.
pub(super) const CONTROL_BYTES_MAX: usize = OUTBOX_BYTES_MAX - COMMAND_BYTES_MAX;

/// The frame would make the outbox larger than it may be: the agent does not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OutboxFull;

/// Frames in order. No heap memory while empty.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Queues a whole frame. A single frame larger than the limit is taken when nothing waits.
    pub(super) fn push(&mut self, frame: Bytes) -> Result<(), OutboxFull> {
        if self.bytes > 0 && self.bytes + frame.len() > CONTROL_BYTES_MAX {
            return Err(OutboxFull);
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        Ok(())
    }

    /// Writes what there is room for; whether everything is out.
    pub(super) fn write(&mut self, stream: StreamId, streams: &mut impl Streams) -> bool {
        while let Some(frame) = self.frames.front_mut() {
            let before = frame.len();
            let written = streams.write(stream, frame);
            self.bytes -= before - frame.len();
            if written != Written::All {
                return false;
            }
            self.frames.pop_front();
        }
        self.frames = VecDeque::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::fake::FakeStreams;

    #[test]
    fn frames_leave_in_order_and_in_pieces() {
        let mut streams = FakeStreams::default();
        let stream = streams.agent_opens();
        streams.room = 3;
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"abcd")).unwrap();
        outbox.push(Bytes::from_static(b"efgh")).unwrap();
        assert!(!outbox.write(stream, &mut streams));
        streams.room = 100;
        assert!(outbox.write(stream, &mut streams));
        assert_eq!(streams.sent(stream), b"abcdefgh");
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn it_takes_no_more_than_its_limit() {
        let mut outbox = Outbox::default();
        outbox
            .push(Bytes::from(vec![0; CONTROL_BYTES_MAX + 1]))
            .unwrap();
        assert_eq!(outbox.push(Bytes::from_static(b"x")), Err(OutboxFull));
    }
}
