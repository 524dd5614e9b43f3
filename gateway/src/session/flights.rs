//! Commands on their way to or running on one agent: one stream each.
//!
//! ```text
//!   Queued ──whole frame written──▶ Sent ──Accepted──▶ Accepted ──Finished──▶ (over)
//!     │                              │ └────Refused──────────────────────────▶ (over)
//!     └─ lost: NotDelivered          └─ stream or session lost ──────────────▶ Uncertain
//! ```
//!
//! An agent acts on whole frames only, so a command whose last byte was never handed to QUIC has
//! certainly not been seen.

use std::time::Instant;

use bytes::Bytes;
use protocol::agent::AgentMessage;
use protocol::close::{CANCEL_STREAM, CloseCode, DONE_STREAM};
use protocol::frame::{FrameBuffer, decode_agent_message};
use protocol::ids::{Fence, OperationId};
use protocol::limits::{COMMAND_REPLY_BYTES_MAX, COMMAND_STREAMS_MAX};
use protocol::link::NotDelivered;
use quinn_proto::StreamId;

use super::outbox::COMMAND_BYTES_MAX;
use super::streams::{Read, Streams, Written};
use super::{Output, READ_CHUNK_BYTES, Violation, not_delivered};
use crate::group::OperationEvent;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Queued,
    Sent,
    Accepted,
}

#[derive(Debug)]
struct Flight {
    operation: OperationId,
    fence: Fence,
    since: Instant,
    stage: Stage,
    readable: bool,
    /// Under a lease: a packet with a part of it may have left since it was written.
    left: bool,
    /// The agent has acknowledged all of it: nothing of it is sent again.
    arrived: bool,
    stream: Option<StreamId>,
    /// What of the command is not written yet.
    unwritten: Bytes,
    input: FrameBuffer,
}

/// All commands of one session. No heap memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: Vec<Flight>,
}

impl Flights {
    /// Takes a command's frame, or says why not.
    pub(super) fn push(
        &mut self,
        now: Instant,
        operation: OperationId,
        fence: Fence,
        frame: Bytes,
    ) -> Result<(), NotDelivered> {
        let waiting: usize = self
            .flights
            .iter()
            .map(|flight| flight.unwritten.len())
            .sum();
        let fits = waiting == 0 || waiting + frame.len() <= COMMAND_BYTES_MAX;
        if self.flights.len() >= COMMAND_STREAMS_MAX || !fits {
            return Err(NotDelivered::Busy);
        }
        self.flights.push(Flight {
            operation,
            fence,
            since: now,
            stage: Stage::Queued,
            readable: false,
            left: false,
            arrived: false,
            stream: None,
            unwritten: frame,
            input: FrameBuffer::default(),
        });
        Ok(())
    }

    /// Opens streams and writes commands, as far as the agent gives room.
    pub(super) fn write(&mut self, streams: &mut impl Streams, out: &mut Vec<Output>) {
        for flight in &mut self.flights {
            if flight.stage != Stage::Queued {
                continue;
            }
            let Some(stream) = flight.stream.or_else(|| streams.open()) else {
                break;
            };
            flight.stream = Some(stream);
            match streams.write(stream, &mut flight.unwritten) {
                Written::All => {
                    // Nothing follows. Ending the stream here and not after the answer spares a
                    // datagram each way.
                    streams.finish(stream);
                    flight.stage = Stage::Sent;
                    flight.unwritten = Bytes::new();
                }
                Written::Blocked => {}
                Written::Stopped => {
                    out.push(flight.lost());
                    flight.abandon(streams);
                }
            }
        }
        self.sweep();
    }

    /// Takes back every attempt of an operation, up to a fence, that is not wholly written. What the
    /// agent may know of is cancelled by a word on the control stream.
    pub(super) fn take_back(
        &mut self,
        operation: OperationId,
        fence: Fence,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) {
        for flight in &mut self.flights {
            let named = flight.operation == operation && flight.fence <= fence;
            if named && flight.stage == Stage::Queued {
                out.push(flight.lost());
                flight.abandon(streams);
            }
        }
        self.sweep();
    }

    /// Whether there is a command of which something is still to be sent, or may have to be sent again.
    pub(super) fn are_under_way(&self) -> bool {
        self.flights.iter().any(Flight::is_under_way)
    }

    /// Packets are made of what is written.
    pub(super) fn let_go(&mut self) {
        for flight in &mut self.flights {
            flight.left |= flight.stage == Stage::Sent;
        }
    }

    /// Takes back all that are [under way](Self::are_under_way), whether QUIC has them or not; answers how many of
    /// them certainly never left.
    pub(super) fn take_back_all(
        &mut self,
        streams: &mut impl Streams,
        out: &mut Vec<Output>,
    ) -> usize {
        let mut kept = 0;
        let under_way = self.flights.iter_mut();
        for flight in under_way.filter(|flight| flight.is_under_way()) {
            let (operation, fence) = (flight.operation, flight.fence);
            if flight.stage == Stage::Sent && flight.left {
                out.push(flight.lost());
                // The agent may have it, and then goes on with it.
                flight.give_up(streams, DONE_STREAM);
            } else {
                kept += 1;
                out.push(not_delivered(operation, fence, NotDelivered::NotOwner));
                flight.abandon(streams);
            }
        }
        self.sweep();
        kept
    }

    /// The agent has acknowledged all that was written to a stream.
    pub(super) fn mark_arrived(&mut self, stream: StreamId) {
        let mut flights = self.flights.iter_mut();
        if let Some(flight) = flights.find(|flight| flight.stream == Some(stream)) {
            flight.arrived = true;
        }
    }

    /// Bytes, an end or a reset arrived on a stream.
    pub(super) fn mark_readable(&mut self, stream: StreamId) {
        if let Some(flight) = self
            .flights
            .iter_mut()
            .find(|flight| flight.stream == Some(stream))
        {
            flight.readable = true;
        }
    }

    /// Whether [`read`](Self::read) has something to do.
    pub(super) fn is_readable(&self) -> bool {
        self.flights.iter().any(|flight| flight.readable)
    }

    /// Reads answers, about `budget` bytes of them.
    pub(super) fn read(
        &mut self,
        streams: &mut impl Streams,
        budget: &mut usize,
        heard: &mut u32,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        let mut result = Ok(());
        for flight in self.flights.iter_mut().filter(|flight| flight.readable) {
            result = flight.read(streams, budget, heard, out);
            if result.is_err() || *budget == 0 {
                break;
            }
        }
        self.sweep();
        result
    }

    /// The session is over: what became of each command.
    pub(super) fn lose(&mut self, out: &mut Vec<Output>) {
        out.extend(std::mem::take(&mut self.flights).iter().map(Flight::lost));
    }

    /// Forgets flights that are over.
    fn sweep(&mut self) {
        self.flights.retain(|flight| !flight.is_over());
        if self.flights.is_empty() {
            self.flights = Vec::new();
        }
    }
}

impl Flight {
    /// Over flights have no stream although they left the queue.
    fn is_over(&self) -> bool {
        self.stage != Stage::Queued && self.stream.is_none()
    }

    /// Whether something of it is still to be sent, or may have to be sent again.
    fn is_under_way(&self) -> bool {
        match self.stage {
            Stage::Queued => true,
            Stage::Sent => !self.arrived,
            Stage::Accepted => false,
        }
    }

    fn lost(&self) -> Output {
        let Self {
            operation, fence, ..
        } = *self;
        Output::Operation(match self.stage {
            Stage::Queued => OperationEvent::NotDelivered {
                operation,
                fence,
                reason: NotDelivered::NoSession,
            },
            Stage::Sent | Stage::Accepted => OperationEvent::Uncertain { operation, fence },
        })
    }

    /// Gives the stream up before the command was whole.
    fn abandon(&mut self, streams: &mut impl Streams) {
        self.give_up(streams, CANCEL_STREAM);
    }

    /// Gives the stream up: a reset with `code` in the place of what is not acknowledged.
    fn give_up(&mut self, streams: &mut impl Streams, code: u64) {
        if let Some(stream) = self.stream.take() {
            streams.reset(stream, code);
            streams.stop(stream, DONE_STREAM);
        }
        self.stage = Stage::Sent;
    }

    fn read(
        &mut self,
        streams: &mut impl Streams,
        budget: &mut usize,
        heard: &mut u32,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        let Some(stream) = self.stream else {
            return Ok(());
        };
        while *budget > 0 {
            let before = self.input.buffered();
            let read = streams.read(stream, &mut self.input, READ_CHUNK_BYTES);
            *budget = budget.saturating_sub(1 + self.input.buffered().saturating_sub(before));
            while let Some(frame) = self.input.next_frame(COMMAND_REPLY_BYTES_MAX)? {
                *heard += 1;
                let last = self.handle(decode_agent_message(&frame)?, out)?;
                if last {
                    return self.end(stream, read, streams);
                }
            }
            match read {
                Read::More => continue,
                Read::Blocked => self.readable = false,
                Read::Finished if self.input.buffered() > 0 => {
                    return Err(Violation::new(
                        CloseCode::BadFrame,
                        "a command stream ended within a frame",
                    ));
                }
                Read::Finished | Read::Reset => self.gone(out),
            }
            break;
        }
        Ok(())
    }

    /// Handles one answer; whether it was the last.
    fn handle(&mut self, message: AgentMessage, out: &mut Vec<Output>) -> Result<bool, Violation> {
        let (event, last) = match message {
            AgentMessage::Accepted { operation, fence } => {
                self.check(operation, fence, Stage::Sent)?;
                self.stage = Stage::Accepted;
                (OperationEvent::Accepted { operation, fence }, false)
            }
            AgentMessage::Refused {
                operation,
                fence,
                refusal,
            } => {
                self.check(operation, fence, Stage::Sent)?;
                (
                    OperationEvent::Refused {
                        operation,
                        fence,
                        refusal,
                    },
                    true,
                )
            }
            AgentMessage::Progress {
                operation,
                fence,
                progress,
            } => {
                self.check(operation, fence, Stage::Accepted)?;
                (
                    OperationEvent::Progress {
                        operation,
                        fence,
                        progress,
                    },
                    false,
                )
            }
            AgentMessage::Finished {
                operation,
                fence,
                outcome,
            } => {
                self.check(operation, fence, Stage::Accepted)?;
                out.push(Output::Answered {
                    since: self.since,
                    service_time: outcome.service_time,
                });
                (
                    OperationEvent::Finished {
                        operation,
                        fence,
                        outcome,
                    },
                    true,
                )
            }
            AgentMessage::Hello(_) | AgentMessage::Status { .. } | AgentMessage::Report { .. } => {
                return Err(Violation::new(
                    CloseCode::UnexpectedFrame,
                    "Hello, Status and Report belong on the control stream",
                ));
            }
        };
        out.push(Output::Operation(event));
        Ok(last)
    }

    /// An answer must be about the stream's own operation, and in order.
    fn check(&self, operation: OperationId, fence: Fence, stage: Stage) -> Result<(), Violation> {
        if operation != self.operation {
            return Err(Violation::new(
                CloseCode::ForeignOperation,
                "the answer is about another operation than its stream's",
            ));
        }
        if fence != self.fence || stage != self.stage {
            return Err(Violation::new(
                CloseCode::UnexpectedFrame,
                "the order is Refused, or Accepted, Progress, Finished, with the command's fence",
            ));
        }
        Ok(())
    }

    /// The last answer was read: the agent's side of the stream ends, too.
    fn end(
        &mut self,
        stream: StreamId,
        read: Read,
        streams: &mut impl Streams,
    ) -> Result<(), Violation> {
        let mut rest = FrameBuffer::default();
        let read = match read {
            Read::More | Read::Blocked => streams.read(stream, &mut rest, 1),
            over => over,
        };
        if self.input.buffered() > 0 || rest.buffered() > 0 {
            return Err(Violation::new(
                CloseCode::UnexpectedFrame,
                "nothing may follow Finished or Refused",
            ));
        }
        if matches!(read, Read::More | Read::Blocked) {
            streams.stop(stream, DONE_STREAM);
        }
        self.stage = Stage::Sent;
        self.stream = None;
        self.readable = false;
        Ok(())
    }

    /// The agent ended the stream without a last answer: ask it later.
    fn gone(&mut self, out: &mut Vec<Output>) {
        out.push(self.lost());
        self.stage = Stage::Sent;
        self.stream = None;
        self.readable = false;
    }
}
