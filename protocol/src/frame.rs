//! Bytes to verified frames and back. Every wire in Drover carries the same shape:
//!
//! ```text
//!   ┌────────────┬──────────────────────────────────────────────┐
//!   │ n: u32, LE │ n bytes: one FlatBuffers buffer, identifier  │
//!   └────────────┴──────────────────────────────────────────────┘
//! ```
//!
//! A decoder caps the bytes, checks the identifier, runs the FlatBuffers verifier under tight
//! limits, and then checks every field against [`crate::limits`]; what it returns is owned and
//! valid. An encoder makes the same checks, so that it never makes a frame which a decoder of this
//! build refuses. What nobody does here: read the JSON inside commands, or decide whether a message
//! comes at the right time.

mod agent;
mod buffer;
mod check;
mod codec;
mod enrol;
mod event;
mod flow;
mod joining;
mod lending;
mod lists;
mod operation;
#[cfg(test)]
mod refusals;
mod request;

pub use agent::{
    decode_agent_message, decode_gateway_message, encode_agent_message, encode_gateway_message,
};
pub use buffer::FrameBuffer;
pub use check::{check_address, check_label_name, check_name};
pub use enrol::{
    decode_enrol_reply, decode_enrol_request, encode_enrol_reply, encode_enrol_request,
};
pub use event::{decode_event, encode_event};
pub use joining::{
    decode_gateway_word, decode_server_word, encode_gateway_word, encode_server_word,
};
pub use request::{decode_request, encode_request};

/// The value does not fit into a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// A field, a list or the whole frame is over its limit.
    #[error("`{what}` is too large to send: {size}, at most {max}")]
    TooLarge {
        /// The field, or the message for a whole frame.
        what: &'static str,
        /// Its size: bytes, or elements of a list.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// A field has a value that no decoder accepts.
    #[error("`{field}` {problem}; it cannot be sent")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
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
