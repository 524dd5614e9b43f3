//! Bytes to verified frames and back. Every wire in Drover carries the same shape: a little-endian
//! `u32` with the number of bytes that follow, then one FlatBuffers buffer with a file identifier.

use bytes::Bytes;

use crate::agent::{AgentMessage, GatewayMessage};
use crate::enrol::{EnrolReply, EnrolRequest};
use crate::link::{Event, Request};

/// The value does not fit into a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} is too large: {bytes} bytes, at most {max}")]
pub struct EncodeError {
    /// What was to be sent.
    pub what: &'static str,
    /// Its size.
    pub bytes: usize,
    /// The limit.
    pub max: usize,
}

/// The bytes are not a valid frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than this kind of frame may have.
    #[error("the frame has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Announced size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The file identifier is another one.
    #[error("the frame's identifier is not {expected}")]
    Identifier {
        /// What it should be.
        expected: &'static str,
    },
    /// The FlatBuffers verifier refused it.
    #[error("the frame is not well-formed: {0}")]
    Malformed(String),
    /// Well-formed, but a field is missing or out of its range.
    #[error("field `{field}` {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Collects bytes into frames. Holds no heap memory while empty and never allocates ahead of the
/// bytes that arrived.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    _stub: Vec<u8>,
}

impl FrameBuffer {
    /// Adds bytes as they came.
    pub fn push(&mut self, _bytes: &[u8]) {
        todo!()
    }
    /// The next whole frame without its size prefix.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] as soon as a prefix announces more than `max` bytes.
    pub fn next_frame(&mut self, _max: usize) -> Result<Option<Bytes>, DecodeError> {
        todo!()
    }
    /// Bytes held.
    pub fn buffered(&self) -> usize {
        todo!()
    }
}

macro_rules! stub {
    ($($enc:ident $dec:ident $ty:ty;)*) => { $(
        /// Appends the frame, size prefix first.
        ///
        /// # Errors
        /// [`EncodeError`] when it would be too large; `out` is then unchanged.
        pub fn $enc(_value: &$ty, _out: &mut Vec<u8>) -> Result<(), EncodeError> { todo!() }
        /// Reads a frame without its size prefix.
        ///
        /// # Errors
        /// [`DecodeError`] says what is wrong with it.
        pub fn $dec(_frame: &[u8]) -> Result<$ty, DecodeError> { todo!() }
    )* };
}
stub! {
    encode_agent_message decode_agent_message AgentMessage;
    encode_gateway_message decode_gateway_message GatewayMessage;
    encode_enrol_request decode_enrol_request EnrolRequest;
    encode_enrol_reply decode_enrol_reply EnrolReply;
    encode_request decode_request Request;
    encode_event decode_event Event;
}
