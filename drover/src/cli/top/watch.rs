//! The stream of overviews, through lost connections and server restarts.

use std::collections::VecDeque;
use std::time::Duration;

use control::api::model::overview::Overview;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::limits::Limits;
use super::read;
use crate::cli::client::Client;
use crate::cli::follow::passing;
use crate::cli::sse::{SseEvent, SseParser};
use crate::fault::{Exit, Fault};

/// Between two attempts to connect again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// The server says something every second; a stream that is silent for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// What came next.
#[derive(Debug)]
pub(super) enum Update {
    /// Newer figures.
    Figures(Box<Overview>),
    /// Limits, while their page is shown.
    Limits(Box<Limits>),
    /// There is no stream now, and why; it is tried again.
    Lost(String),
}

type Bytes = BoxStream<'static, Option<Vec<u8>>>;

/// Overviews, one a second.
pub(super) struct Overviews {
    client: Client,
    stream: Option<Bytes>,
    parser: SseParser,
    waiting: VecDeque<SseEvent>,
}

impl Overviews {
    /// Connects, and waits for the first figures.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or says nothing.
    pub(super) async fn open(client: Client) -> Result<(Self, Box<Overview>), Fault> {
        let mut overviews = Self {
            stream: Some(connect(&client).await?),
            client,
            parser: SseParser::default(),
            waiting: VecDeque::new(),
        };
        match overviews.next().await? {
            Update::Figures(first) => Ok((overviews, first)),
            Update::Lost(why) => Err(unreachable(&why)),
            // They come from elsewhere.
            Update::Limits(_) => Err(unreachable("the server sent something else")),
        }
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    /// The server refuses the stream, or what comes cannot be read.
    async fn next(&mut self) -> Result<Update, Fault> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return read(&event.data).map(Box::new).map(Update::Figures);
            }
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                match connect(&self.client).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(fault) if passing(&fault) => return Ok(Update::Lost(fault.what)),
                    Err(fault) => return Err(fault),
                }
                self.parser = SseParser::default();
                continue;
            };
            let why = match timeout(DEAD_AFTER, stream.next()).await {
                Ok(Some(Some(bytes))) => {
                    let mut events = Vec::new();
                    let taken = self.parser.handle_bytes(&bytes, &mut events);
                    self.waiting.extend(events);
                    match taken {
                        Ok(()) => continue,
                        Err(_) => "the server sent a line without an end",
                    }
                }
                Ok(Some(None)) => "the connection broke off",
                Ok(None) => "the server ended the stream",
                Err(_) => "the server has fallen silent",
            };
            self.stream = None;
            return Ok(Update::Lost(why.to_owned()));
        }
    }

    /// Passes on what comes until nobody wants it, or an error ends it.
    pub(super) async fn pass_on(mut self, to: mpsc::Sender<Result<Update, Fault>>) {
        loop {
            let update = self.next().await;
            let last = update.is_err();
            if to.send(update).await.is_err() || last {
                return;
            }
        }
    }
}

async fn connect(client: &Client) -> Result<Bytes, Fault> {
    let response = timeout(DEAD_AFTER, client.overviews())
        .await
        .unwrap_or_else(|_| Err(unreachable("the server did not answer in time")))?;
    let stream = response.bytes_stream();
    Ok(stream
        .map(|piece| piece.ok().map(|bytes| bytes.to_vec()))
        .boxed())
}

fn unreachable(why: &str) -> Fault {
    Fault::new(why)
        .advise("`drover health` says how the server is")
        .exit(Exit::Unreachable)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn ten_thousand_groups_with_the_longest_names_come_through() {
        let mut overview = sample::overview();
        let name = |n: u64| format!("{n:0128}");
        overview.sessions.by_group = (0..10_000)
            .map(|n| sample::group(&name(n), u64::MAX, u64::MAX))
            .collect();
        let text = serde_json::to_string(&overview).unwrap();
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        let stream = format!("event: overview\ndata: {text}\n\n");
        for piece in stream.as_bytes().chunks(16 << 10) {
            parser.handle_bytes(piece, &mut events).unwrap();
        }
        assert_eq!(events.len(), 1);
        assert_eq!(read(&events[0].data).unwrap(), overview);
    }

    #[test]
    fn figures_of_another_kind_are_an_error_with_advice() {
        let fault = read("{\"at\":\"now\"}").unwrap_err();
        assert_eq!(fault.exit, Exit::Failure);
        assert!(
            fault
                .advice
                .is_some_and(|advice| advice.contains("version"))
        );
    }
}
