//! One command stream: the command in, the answers out, and a reset that may come at any time.

use protocol::agent::GatewayMessage;
use protocol::close::{CloseCode, DONE_STREAM};
use protocol::frame::{self, FrameBuffer};
use protocol::ids::Epoch;
use protocol::limits;
use protocol::operation::Command;
use quinn::{ReadError, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::driver::PROGRESS_IN_FLIGHT_MAX;
use crate::session::{Lane, Link};

/// Messages that can wait for one command stream: Accepted, Finished, a reset, and the progress that
/// the driver's credit allows. Progress of an earlier run of the same operation may still be there.
pub(super) const INBOX_MAX: usize = 2 * PROGRESS_IN_FLIGHT_MAX + 4;

fn done() -> VarInt {
    // Reset codes of the protocol are small.
    VarInt::try_from(DONE_STREAM).unwrap_or(VarInt::MAX)
}

/// What a command stream has to say.
#[derive(Debug)]
pub(crate) enum LaneEvent {
    /// Its command.
    Command(Lane, Epoch, Command),
    /// The gateway reset its side.
    Reset(Lane, u64),
    /// It is over. Whether the last message was acknowledged.
    Closed(Lane, bool),
    /// The gateway broke the protocol on it.
    Violation(Link, CloseCode, String),
}

/// For a command stream.
#[derive(Debug)]
pub(super) enum LaneItem {
    /// Write this, and end the stream after it if it is the `last`.
    Message {
        bytes: Vec<u8>,
        last: bool,
        permit: Option<OwnedSemaphorePermit>,
    },
    /// Reset the stream.
    Reset,
}

/// How the reading half ended.
enum ReadEnd {
    /// No command ever came.
    NoCommand,
    /// A command came, and the gateway has nothing more to say.
    Quiet,
    Violation(CloseCode, String),
}

pub(super) async fn drive(
    lane: Lane,
    mut send: SendStream,
    mut receive: RecvStream,
    mut items: mpsc::Receiver<LaneItem>,
    events: mpsc::Sender<Box<LaneEvent>>,
) {
    let delivered = {
        let writing = write(&mut send, &mut items);
        let reading = read(lane, &mut receive, &events);
        tokio::pin!(writing, reading);
        tokio::select! {
            delivered = &mut writing => Some(delivered),
            end = &mut reading => match end {
                ReadEnd::Quiet => Some(writing.await),
                ReadEnd::NoCommand => None,
                ReadEnd::Violation(code, what) => {
                    let event = LaneEvent::Violation(lane.link, code, what);
                    drop(events.send(Box::new(event)).await);
                    None
                }
            },
        }
    };
    match delivered {
        Some(delivered) => {
            // Tells the gateway, should it still send, that nobody reads any more. Fails only when
            // the stream is over anyway.
            drop(receive.stop(done()));
            drop(
                events
                    .send(Box::new(LaneEvent::Closed(lane, delivered)))
                    .await,
            );
        }
        None => drop(send.reset(done())),
    }
}

/// Reads the command, then waits for the end of the gateway's side.
async fn read(
    lane: Lane,
    receive: &mut RecvStream,
    events: &mpsc::Sender<Box<LaneEvent>>,
) -> ReadEnd {
    let mut frames = FrameBuffer::default();
    let mut commanded = false;
    loop {
        match receive.read_chunk(limits::STREAM_WINDOW_BYTES, true).await {
            Ok(Some(chunk)) => frames.push(&chunk.bytes),
            Ok(None) if commanded && frames.buffered() == 0 => return ReadEnd::Quiet,
            Ok(None) => {
                let what = "a command stream ended before its command was whole".to_owned();
                return ReadEnd::Violation(CloseCode::BadFrame, what);
            }
            Err(ReadError::Reset(code)) if commanded => {
                let event = LaneEvent::Reset(lane, code.into_inner());
                drop(events.send(Box::new(event)).await);
                return ReadEnd::Quiet;
            }
            Err(_) if commanded => return ReadEnd::Quiet,
            Err(_) => return ReadEnd::NoCommand,
        }
        let frame = match frames.next_frame(limits::GATEWAY_FRAME_BYTES_MAX) {
            Ok(None) => continue,
            Ok(Some(frame)) => frame,
            Err(error) => return ReadEnd::Violation(CloseCode::BadFrame, error.to_string()),
        };
        match frame::decode_gateway_message(&frame) {
            Ok(GatewayMessage::Command { epoch, command }) if !commanded => {
                commanded = true;
                frames = FrameBuffer::default();
                let event = LaneEvent::Command(lane, epoch, command);
                drop(events.send(Box::new(event)).await);
            }
            Ok(_) => {
                let what = "a command stream carries one command and nothing else".to_owned();
                return ReadEnd::Violation(CloseCode::UnexpectedFrame, what);
            }
            Err(error) => return ReadEnd::Violation(CloseCode::BadFrame, error.to_string()),
        }
    }
}

/// Writes what comes. Returns whether the last message was acknowledged.
async fn write(send: &mut SendStream, items: &mut mpsc::Receiver<LaneItem>) -> bool {
    while let Some(item) = items.recv().await {
        let LaneItem::Message {
            bytes,
            last,
            permit,
        } = item
        else {
            drop(send.reset(done()));
            return false;
        };
        if send.write_all(&bytes).await.is_err() {
            return false;
        }
        drop(permit);
        if last {
            // `stopped` ends with None when everything has been acknowledged.
            return send.finish().is_ok() && matches!(send.stopped().await, Ok(None));
        }
    }
    false
}
