//! What the journal remembers, and its bytes.
//!
//! A record is `agent (16) · tag (1) · fields`, numbers little-endian, texts and blobs with a `u32`
//! length in front. Records never travel between machines; the file's header names their version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::ids::{AgentId, Epoch, Fence, OperationId, ProcessId};
use protocol::operation::{Command, Outcome, OutcomeStatus};

/// One durable fact about one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// So many sessions have been begun.
    SessionCount(u64),
    /// The highest epoch seen.
    Epoch(Epoch),
    /// The operation was accepted; from now on it may have been started.
    Accepted(Arc<Command>),
    /// A known operation was seen under a higher fence.
    Raised {
        /// Which operation.
        operation: OperationId,
        /// The fence.
        fence: Fence,
    },
    /// The operation ended.
    Finished {
        /// Which operation.
        operation: OperationId,
        /// The highest fence seen for it.
        fence: Fence,
        /// How.
        outcome: Arc<Outcome>,
    },
    /// The operation has not been seen; it is refused if it comes with this fence or a lower one.
    Tombstone {
        /// Which operation.
        operation: OperationId,
        /// The fence.
        fence: Fence,
        /// Because it was cancelled, not only asked for.
        cancelled: bool,
    },
    /// The operation's outcome is safe elsewhere.
    Forgotten(OperationId),
}

/// A record's bytes do not make sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a record's bytes make no sense ({0})")]
pub(super) struct RecordError(pub(super) &'static str);

const SESSION_COUNT: u8 = 1;
const EPOCH: u8 = 2;
const ACCEPTED: u8 = 3;
const RAISED: u8 = 4;
const FINISHED: u8 = 5;
const TOMBSTONE: u8 = 6;
const FORGOTTEN: u8 = 7;

/// The outcome statuses by their number in the file.
const STATUSES: [OutcomeStatus; 6] = [
    OutcomeStatus::Succeeded,
    OutcomeStatus::FailedPermanent,
    OutcomeStatus::FailedTransient,
    OutcomeStatus::Cancelled,
    OutcomeStatus::DeadlineExceeded,
    OutcomeStatus::Interrupted,
];

impl Record {
    /// Appends the record with a `u32` length in front.
    pub(super) fn encode(&self, agent: AgentId, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&agent.to_bytes());
        match self {
            Self::SessionCount(count) => {
                out.push(SESSION_COUNT);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Self::Epoch(epoch) => {
                out.push(EPOCH);
                out.extend_from_slice(&epoch.0.to_le_bytes());
            }
            Self::Accepted(command) => {
                out.push(ACCEPTED);
                put_operation(out, command.operation, command.fence);
                out.extend_from_slice(&command.deadline_ms.to_le_bytes());
                put_blob(out, command.kind.as_bytes());
                put_blob(out, &command.input);
            }
            Self::Raised { operation, fence } => {
                out.push(RAISED);
                put_operation(out, *operation, *fence);
            }
            Self::Finished {
                operation,
                fence,
                outcome,
            } => {
                out.push(FINISHED);
                put_operation(out, *operation, *fence);
                put_outcome(out, outcome);
            }
            Self::Tombstone {
                operation,
                fence,
                cancelled,
            } => {
                out.push(TOMBSTONE);
                put_operation(out, *operation, *fence);
                out.push(u8::from(*cancelled));
            }
            Self::Forgotten(operation) => {
                out.push(FORGOTTEN);
                put_operation(out, *operation, Fence(0));
            }
        }
        let length = length_of(out.len() - start - 4);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Reads one record from the front of `bytes` and shortens it.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<(AgentId, Self), RecordError> {
        let body = take_blob(bytes)?;
        let reader = &mut &body[..];
        let agent = AgentId::from_bytes(take(reader)?);
        let record = match take::<1>(reader)?[0] {
            SESSION_COUNT => Self::SessionCount(take_u64(reader)?),
            EPOCH => Self::Epoch(Epoch(take_u64(reader)?)),
            ACCEPTED => {
                let (operation, fence) = take_operation(reader)?;
                Self::Accepted(Arc::new(Command {
                    operation,
                    fence,
                    deadline_ms: take_u64(reader)?,
                    kind: take_text(reader)?,
                    input: Bytes::copy_from_slice(take_blob(reader)?),
                }))
            }
            RAISED => {
                let (operation, fence) = take_operation(reader)?;
                Self::Raised { operation, fence }
            }
            FINISHED => {
                let (operation, fence) = take_operation(reader)?;
                let outcome = Arc::new(take_outcome(reader)?);
                Self::Finished {
                    operation,
                    fence,
                    outcome,
                }
            }
            TOMBSTONE => {
                let (operation, fence) = take_operation(reader)?;
                Self::Tombstone {
                    operation,
                    fence,
                    cancelled: take::<1>(reader)?[0] != 0,
                }
            }
            FORGOTTEN => Self::Forgotten(take_operation(reader)?.0),
            _ => return Err(RecordError("unknown tag")),
        };
        if reader.is_empty() {
            Ok((agent, record))
        } else {
            Err(RecordError("bytes left over"))
        }
    }
}

/// Lengths here are bounded far below `u32::MAX` by `protocol::limits`.
fn length_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_blob(out: &mut Vec<u8>, blob: &[u8]) {
    out.extend_from_slice(&length_of(blob.len()).to_le_bytes());
    out.extend_from_slice(blob);
}

fn put_operation(out: &mut Vec<u8>, operation: OperationId, fence: Fence) {
    out.extend_from_slice(&operation.process.to_bytes());
    out.extend_from_slice(&operation.step.to_le_bytes());
    out.extend_from_slice(&fence.0.to_le_bytes());
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    let status = STATUSES.iter().position(|s| *s == outcome.status);
    out.push(
        status
            .and_then(|at| u8::try_from(at).ok())
            .unwrap_or(u8::MAX),
    );
    out.push(u8::from(outcome.exit_code.is_some()));
    out.extend_from_slice(&outcome.exit_code.unwrap_or(0).to_le_bytes());
    let micros = u64::try_from(outcome.service_time.as_micros()).unwrap_or(u64::MAX);
    out.extend_from_slice(&micros.to_le_bytes());
    put_blob(out, outcome.message.as_bytes());
    put_blob(out, &outcome.output);
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (head, rest) = bytes
        .split_first_chunk::<N>()
        .ok_or(RecordError("too short"))?;
    *bytes = rest;
    Ok(*head)
}

fn take_u64(bytes: &mut &[u8]) -> Result<u64, RecordError> {
    take(bytes).map(u64::from_le_bytes)
}

fn take_blob<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], RecordError> {
    let length = usize::try_from(u32::from_le_bytes(take(bytes)?));
    let length = length.map_err(|_| RecordError("too long"))?;
    let (head, rest) = bytes
        .split_at_checked(length)
        .ok_or(RecordError("too short"))?;
    *bytes = rest;
    Ok(head)
}

fn take_text(bytes: &mut &[u8]) -> Result<String, RecordError> {
    let text = std::str::from_utf8(take_blob(bytes)?);
    text.map(str::to_owned)
        .map_err(|_| RecordError("not UTF-8"))
}

fn take_operation(bytes: &mut &[u8]) -> Result<(OperationId, Fence), RecordError> {
    let process = ProcessId::from_bytes(take(bytes)?);
    let step = u16::from_le_bytes(take(bytes)?);
    Ok((OperationId::new(process, step), Fence(take_u64(bytes)?)))
}

fn take_outcome(bytes: &mut &[u8]) -> Result<Outcome, RecordError> {
    let status = STATUSES.get(usize::from(take::<1>(bytes)?[0]));
    let has_exit_code = take::<1>(bytes)?[0] != 0;
    let exit_code = i32::from_le_bytes(take(bytes)?);
    Ok(Outcome {
        status: *status.ok_or(RecordError("unknown status"))?,
        exit_code: has_exit_code.then_some(exit_code),
        service_time: Duration::from_micros(take_u64(bytes)?),
        message: take_text(bytes)?,
        output: Bytes::copy_from_slice(take_blob(bytes)?),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// Few ids and fences, so that records meet.
    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let operation =
            (0..6_u128).prop_map(|n| OperationId::new(ProcessId(Uuid::from_u128(n)), 0));
        let fence = (1..6_u64).prop_map(Fence);
        (operation, fence, 0..7_u8, any::<bool>(), 0..6_usize).prop_map(
            |(operation, fence, tag, flag, status)| match tag {
                0 => Record::SessionCount(fence.0),
                1 => Record::Epoch(Epoch(fence.0)),
                2 => Record::Accepted(Arc::new(Command {
                    operation,
                    fence,
                    kind: "simulated".into(),
                    input: Bytes::from_static(b"{}"),
                    deadline_ms: 7,
                })),
                3 => Record::Raised { operation, fence },
                4 => Record::Finished {
                    operation,
                    fence,
                    outcome: Arc::new(Outcome {
                        status: STATUSES[status],
                        exit_code: flag.then_some(-1),
                        message: "m".into(),
                        output: Bytes::from_static(b"out"),
                        service_time: Duration::from_micros(5),
                    }),
                },
                5 => Record::Tombstone {
                    operation,
                    fence,
                    cancelled: flag,
                },
                _ => Record::Forgotten(operation),
            },
        )
    }

    proptest! {
        #[test]
        fn every_record_survives_its_bytes(record in any_record()) {
            let agent = AgentId(Uuid::from_u128(9));
            let mut bytes = Vec::new();
            record.encode(agent, &mut bytes);
            let mut reader = &bytes[..];
            prop_assert_eq!(Record::decode(&mut reader), Ok((agent, record)));
            prop_assert!(reader.is_empty());
            for cut in 0..bytes.len() {
                prop_assert!(Record::decode(&mut &bytes[..cut]).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            drop(Record::decode(&mut &bytes[..]));
        }
    }
}
