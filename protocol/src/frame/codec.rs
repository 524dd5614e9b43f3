//! The shell around every frame: identifier, caps, verifier, and the builder that encoders share.

use std::cell::Cell;
use std::time::Duration;

use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, VerifierOptions, WIPOffset};

use super::check::Fault;
use super::{DecodeError, EncodeError};
use crate::generated::agent as fb;
use crate::ids::{AgentId, GroupId, OperationId, ProcessId};
use crate::limits::{CERTIFICATES_MAX, CREDITS_PER_FRAME_MAX, LABELS_MAX, LIMITS_MAX, LINES_MAX};

/// The builder that encoders write into.
pub(super) type Builder = FlatBufferBuilder<'static>;

/// One kind of frame.
pub(super) struct Kind {
    /// For errors.
    pub name: &'static str,
    /// The FlatBuffers file identifier.
    pub identifier: &'static str,
    /// The cap, prefix not counted.
    pub bytes_max: usize,
    /// Tables in it.
    pub tables_max: usize,
}

/// The largest builder that a thread keeps between frames, in bytes of the frame it made last.
const KEPT_BUILDER_BYTES_MAX: usize = 256 << 10;

thread_local! {
    /// One builder per thread: an encoder takes it and puts it back, so that a panic on the way
    /// leaves an empty place instead of half a frame.
    static BUILDER: Cell<Option<Builder>> = const { Cell::new(None) };
}

/// Appends a frame, prefix first. `out` stays as it is on an error.
pub(super) fn encode<T>(
    kind: &Kind,
    out: &mut Vec<u8>,
    build: impl FnOnce(&mut Builder) -> Result<WIPOffset<T>, Fault>,
) -> Result<(), EncodeError> {
    let mut builder = BUILDER.take().unwrap_or_default();
    builder.reset();
    // A fault can leave a table half built; such a builder is not used again.
    let root = build(&mut builder)?;
    builder.finish(root, Some(kind.identifier));
    let frame = builder.finished_data();
    let result = append(kind, frame, out);
    if frame.len() <= KEPT_BUILDER_BYTES_MAX {
        BUILDER.set(Some(builder));
    }
    result
}

fn append(kind: &Kind, frame: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let too_large = EncodeError::TooLarge {
        what: kind.name,
        size: frame.len(),
        max: kind.bytes_max,
    };
    match u32::try_from(frame.len()) {
        Ok(prefix) if frame.len() <= kind.bytes_max => {
            out.reserve(size_of::<u32>() + frame.len());
            out.extend_from_slice(&prefix.to_le_bytes());
            out.extend_from_slice(frame);
            Ok(())
        }
        _ => Err(too_large),
    }
}

/// Tables in one frame. The most that a legal one has is the root, a Hello, and its labels.
pub(super) const TABLES_MAX: usize = 128;
/// Tables in a frame between control plane and gateway: two for each limit that is lent, one for each that is
/// set, two for each line that is told.
pub(super) const LINK_TABLES_MAX: usize = LIMITS_MAX + 8;
const _: () = assert!(
    2 * CREDITS_PER_FRAME_MAX + 2 <= LINK_TABLES_MAX && 2 * LINES_MAX + 4 <= LINK_TABLES_MAX
);
const _: () = assert!(2 + LABELS_MAX <= TABLES_MAX && 3 + 2 * CERTIFICATES_MAX <= TABLES_MAX);

/// Bytes of the root offset and the file identifier.
const HEADER_BYTES: usize = 8;

/// The verified root table of a frame.
pub(super) fn root<'a, T>(kind: &Kind, frame: &'a [u8]) -> Result<T::Inner, DecodeError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    within(frame.len(), kind.bytes_max)?;
    if frame.len() < HEADER_BYTES {
        return Err(DecodeError::Malformed("it has no header".to_owned()));
    }
    if !flatbuffers::buffer_has_identifier(frame, kind.identifier, false) {
        return Err(DecodeError::Identifier {
            expected: kind.identifier,
        });
    }
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: kind.tables_max,
        // Tables that are shared count again each time; legal frames share nothing but layouts.
        max_apparent_size: 4 * kind.bytes_max,
        ignore_missing_null_terminator: false,
    };
    flatbuffers::root_with_opts::<T>(&options, frame)
        .map_err(|error| DecodeError::Malformed(one_line(&error.to_string())))
}

/// Refuses a frame over its cap.
pub(super) fn within(bytes: usize, max: usize) -> Result<(), DecodeError> {
    if bytes > max {
        return Err(DecodeError::TooLarge { bytes, max });
    }
    Ok(())
}

/// The verifier's words come on many lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An empty string is written as an absent one.
pub(super) fn string<'b>(b: &mut Builder, text: &str) -> Option<WIPOffset<&'b str>>
where
    'static: 'b,
{
    (!text.is_empty()).then(|| b.create_string(text))
}

/// Empty bytes are written as absent ones.
pub(super) fn bytes(
    b: &mut Builder,
    bytes: &[u8],
) -> Option<WIPOffset<flatbuffers::Vector<'static, u8>>> {
    (!bytes.is_empty()).then(|| b.create_vector(bytes))
}

/// The bytes of a vector that may be absent.
pub(super) fn slice(vector: Option<flatbuffers::Vector<'_, u8>>) -> &[u8] {
    vector.map_or(&[], |v| v.bytes())
}

pub(super) fn uuid(id: [u8; 16]) -> fb::Uuid {
    fb::Uuid(id)
}

pub(super) fn agent_id(id: &fb::Uuid) -> AgentId {
    AgentId::from_bytes(id.0)
}

pub(super) fn group_id(id: &fb::Uuid) -> GroupId {
    GroupId::from_bytes(id.0)
}

pub(super) fn operation_id(id: OperationId) -> fb::OperationId {
    fb::OperationId::new(&fb::Uuid(id.process.to_bytes()), id.step)
}

pub(super) fn read_operation_id(id: &fb::OperationId) -> OperationId {
    OperationId::new(ProcessId::from_bytes(id.process().0), id.step())
}

/// Whole milliseconds in 32 bits; what is below one is cut off.
pub(super) fn millis(field: &'static str, duration: Duration) -> Result<u32, Fault> {
    u32::try_from(duration.as_millis()).map_err(|_| Fault::Invalid {
        field,
        problem: "is longer than 2^32 - 1 ms",
    })
}

pub(super) fn read_millis(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis))
}

/// Ties the values of an owned enum to those of a schema's enum, both ways. A value that the
/// schema does not have reads as `None`.
macro_rules! enum_map {
    ($write:ident, $read:ident: $owned:ty => $wire:ty { $($variant:ident),* $(,)? }) => {
        pub(super) fn $write(value: $owned) -> $wire {
            match value { $(<$owned>::$variant => <$wire>::$variant,)* }
        }

        pub(super) fn $read(value: $wire) -> Option<$owned> {
            match value { $(<$wire>::$variant => Some(<$owned>::$variant),)* _ => None }
        }
    };
}
pub(super) use enum_map;
