//! Follows the API's event stream through lost connections and server restarts.
//!
//! ```text
//!   connect behind the last event seen ─▶ Event, Event, …   ─▶ Lost ─ wait ─▶ connect …
//!                                          └ nothing for a while ─▶ Quiet
//! ```
//!
//! Events are hints: whoever must know how a thing stands asks for the thing itself, and `Quiet` and
//! `Lost` are the moments for it.

use std::time::Duration;

use control::api::model::events::EventRecord;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use super::client::Client;
use super::sse::{SseEvent, SseParser};
use crate::fault::{Exit, Fault};

/// After so long without an event the follower says so.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Between two attempts to connect again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// A stream that carries not even a keep-alive comment for so long is dead.
const DEAD_AFTER_QUIETS: u32 = 30;

/// What came next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Something happened.
    Event(EventRecord),
    /// Nothing happened for a while.
    Quiet,
    /// The connection was lost; the next call makes a new one.
    Lost,
}

type Bytes = BoxStream<'static, Option<Vec<u8>>>;

/// One event stream, for as long as somebody asks for the next event.
pub(crate) struct Follower<'a> {
    client: &'a Client,
    query: Vec<(&'static str, String)>,
    after: Option<u64>,
    connected_once: bool,
    stream: Option<Bytes>,
    parser: SseParser,
    waiting: std::collections::VecDeque<SseEvent>,
    quiets: u32,
}

impl<'a> Follower<'a> {
    /// Follows the events that match `query`, behind the event `after`; `None`: from now on.
    pub(crate) fn new(
        client: &'a Client,
        query: Vec<(&'static str, String)>,
        after: Option<u64>,
    ) -> Self {
        Self {
            client,
            query,
            after,
            connected_once: false,
            stream: None,
            parser: SseParser::default(),
            waiting: std::collections::VecDeque::new(),
            quiets: 0,
        }
    }

    /// Waits for the next event, at most a few seconds.
    ///
    /// # Errors
    /// The first connection failed, or the server refuses the stream.
    pub(crate) async fn next(&mut self) -> Result<Next, Fault> {
        loop {
            while let Some(event) = self.waiting.pop_front() {
                self.after = event.id.or(self.after);
                // A record of a newer server that this program cannot read is passed over.
                if let Ok(record) = serde_json::from_str(&event.data) {
                    return Ok(Next::Event(record));
                }
            }
            if self.stream.is_none() && !self.connect().await? {
                return Ok(Next::Lost);
            }
            let Some(stream) = &mut self.stream else {
                return Ok(Next::Lost);
            };
            match tokio::time::timeout(QUIET_AFTER, stream.next()).await {
                Err(_) if self.quiets < DEAD_AFTER_QUIETS => {
                    self.quiets += 1;
                    return Ok(Next::Quiet);
                }
                Ok(Some(Some(bytes))) => {
                    self.quiets = 0;
                    let mut events = Vec::new();
                    if self.parser.handle_bytes(&bytes, &mut events).is_err() {
                        return Ok(self.lose());
                    }
                    self.waiting.extend(events);
                }
                Ok(Some(None) | None) | Err(_) => return Ok(self.lose()),
            }
        }
    }

    fn lose(&mut self) -> Next {
        self.stream = None;
        Next::Lost
    }

    /// Whether there is a stream now. A server that is away for a moment is waited for.
    async fn connect(&mut self) -> Result<bool, Fault> {
        if self.connected_once {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        match self.client.events(&self.query, self.after).await {
            Ok(response) => {
                let stream = response
                    .bytes_stream()
                    .map(|piece| piece.ok().map(|bytes| bytes.to_vec()));
                self.stream = Some(stream.boxed());
                self.parser = SseParser::default();
                self.connected_once = true;
                self.quiets = 0;
                Ok(true)
            }
            Err(fault) if self.connected_once && passing(&fault) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

/// Whether a failure may be over in a moment.
pub(crate) fn passing(fault: &Fault) -> bool {
    matches!(fault.exit, Exit::Unreachable | Exit::Failure)
}
