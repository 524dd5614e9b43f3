//! `/v1/events`: what happened, as it happens.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use futures_util::stream::unfold;
use protocol::ids::{AgentId, ProcessId};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use uuid::Uuid;

use crate::api::Api;
use crate::api::extract::{Params, header_text};
use crate::api::model::Timestamp;
use crate::api::model::events::EventRecord;
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::store::Store;
use crate::store::log::EventRow;

/// Events that one look at the store brings.
const READ_MAX: u32 = 500;
/// Between two looks at least, so that one commit a millisecond does not mean one look each.
const PACE: Duration = Duration::from_millis(20);
/// Between two looks at most: some events come without a hint.
const SWEEP: Duration = Duration::from_secs(2);
/// A comment goes out when nothing else does, so that both sides know that the other is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamParams {
    /// Only about this process.
    process: Option<Uuid>,
    /// Only about this agent.
    agent: Option<Uuid>,
    /// Only of this type, such as `process.finished`.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<String>,
    /// Behind this event, as the header Last-Event-ID, for clients that cannot set headers.
    after: Option<u64>,
}

/// Watch events
///
/// Server-sent events (`text/event-stream`): `id` is the event's sequence, `event` its type, `data`
/// an EventRecord. With `Last-Event-ID` the stream goes on behind that event and misses none;
/// without, it begins with what happens next. `Last-Event-ID: 0` with `process` tells a process's
/// whole story.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "events",
    operation_id = "watch_events",
    params(
        StreamParams,
        ("Last-Event-ID" = Option<u64>, Header, description = "Go on behind this event."),
    ),
    responses(
        (status = 200, description = "The stream.", body = EventRecord,
         content_type = "text/event-stream"),
        (status = 400, description = "A parameter is not valid."),
        (status = 410, description = "The events asked for are no longer kept: read what you need \
          anew, then watch without Last-Event-ID."),
    )
)]
pub(super) async fn stream(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Params(params): Params<StreamParams>,
) -> ApiResult<Response> {
    let permit = place(&api)?;
    let after = after(&headers, &params)?;
    let recorded = api.events.clone();
    let cursor = start(&api, after, params.process.is_some()).await?;
    let watcher = Watcher {
        api,
        recorded,
        cursor,
        process: params.process.map(ProcessId),
        agent: params.agent.map(AgentId),
        kind: params.kind,
        read: VecDeque::new(),
        read_up_to: None,
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    Ok(Sse::new(events(watcher))
        .keep_alive(keep_alive)
        .into_response())
}

/// A place among the streams that may be open at once.
pub(super) fn place(api: &Api) -> ApiResult<OwnedSemaphorePermit> {
    Arc::clone(&api.streams).try_acquire_owned().map_err(|_| {
        ApiError::new(
            Kind::Unavailable,
            "Too many event streams are open; close one, or try again later.",
        )
        .retry_after(Duration::from_secs(5))
    })
}

/// A row as the API shows it.
pub(super) fn describe(row: EventRow) -> EventRecord {
    EventRecord {
        sequence: row.seq,
        at: Timestamp(row.at.0),
        kind: row.kind,
        process: row.process.map(|id| id.0),
        agent: row.agent.map(|id| id.0),
        data: row.data,
    }
}

fn after(headers: &HeaderMap, params: &StreamParams) -> ApiResult<Option<u64>> {
    match header_text(headers, "last-event-id")? {
        None => Ok(params.after),
        Some(text) => text.trim().parse().map(Some).map_err(|_| {
            ApiError::field(
                "Last-Event-ID",
                "must be the `id` of an event, a whole number",
            )
        }),
    }
}

/// Where the stream begins: behind `after`, or now. A process's story from 0 is whatever is kept of
/// it.
async fn start(api: &Api, after: Option<u64>, of_process: bool) -> ApiResult<u64> {
    let span = api.store.event_span().await?;
    let Some(after) = after else {
        return Ok(span.last);
    };
    let gone = |why: String| {
        ApiError::new(
            Kind::EventsTrimmed,
            format!("{why} List what you watch, and watch again without Last-Event-ID."),
        )
    };
    if after > span.last {
        return Err(gone(format!(
            "There is no event {after} yet, the newest is {}: the id is from another deployment.",
            span.last
        )));
    }
    let whole_story = of_process && after == 0;
    if after + 1 < span.first && !whole_story {
        let newest_gone = span.first - 1;
        return Err(gone(format!(
            "Events up to {newest_gone} are no longer kept."
        )));
    }
    Ok(after)
}

/// How much was written to a store that only this process writes to: while it does not grow, there is nothing new.
/// `None`: others write, too. They tell of it, as a rule; but news may be lost, and there need be nobody who takes them
/// on. So such a store is read with every hint and every sweep.
fn written_here_alone(store: &Store) -> Option<u64> {
    (!store.is_open_to_others()).then(|| store.writes())
}

struct Watcher {
    api: Arc<Api>,
    recorded: watch::Receiver<u64>,
    /// The last event seen.
    cursor: u64,
    process: Option<ProcessId>,
    agent: Option<AgentId>,
    kind: Option<String>,
    read: VecDeque<EventRow>,
    /// How much had been [written](written_here_alone) when there was nothing more to be read.
    read_up_to: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

fn events(watcher: Watcher) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold(watcher, |mut watcher| async move {
        let row = watcher.next().await?;
        let event = Event::default()
            .id(row.seq.to_string())
            .event(row.kind.clone());
        let data = serde_json::to_string(&describe(row)).unwrap_or_default();
        Some((Ok(event.data(data)), watcher))
    })
}

impl Watcher {
    /// The next event; `None` when the stream must end: the server drains, or the watcher is so
    /// slow that events went by unread. It comes back with Last-Event-ID and is told.
    async fn next(&mut self) -> Option<EventRow> {
        loop {
            while let Some(row) = self.read.pop_front() {
                if self.process.is_none()
                    && row.seq != self.cursor + 1
                    && self.has_been_trimmed().await
                {
                    return None;
                }
                self.cursor = row.seq;
                let of_agent = self.agent.is_none_or(|agent| row.agent == Some(agent));
                if of_agent && self.kind.as_ref().is_none_or(|kind| *kind == row.kind) {
                    return Some(row);
                }
            }
            self.look().await?;
        }
    }

    /// Whether the event behind the last one seen is gone. A database server gives a number to no event at all where
    /// a transaction failed: then the next one that is there is the next.
    async fn has_been_trimmed(&self) -> bool {
        match self.api.store.event_span().await {
            Ok(span) => self.cursor + 1 < span.first,
            // The watcher comes back.
            Err(_) => true,
        }
    }

    /// Reads on; where there is nothing, waits for a hint or the next sweep.
    async fn look(&mut self) -> Option<()> {
        // Before the look, so that nothing falls between the two.
        self.recorded.mark_unchanged();
        let store = &self.api.store;
        let written = written_here_alone(store);
        // A stream in which nothing happens costs a store of this process alone nothing.
        if written.is_none() || self.read_up_to != written {
            match store
                .events_after(self.cursor, self.process, READ_MAX)
                .await
            {
                Ok(rows) if !rows.is_empty() => {
                    self.read = rows.into();
                    return Some(());
                }
                Ok(_) => self.read_up_to = written,
                Err(error) => tracing::warn!(%error, "an event stream could not be read on"),
            }
        }
        tokio::select! {
            () = self.api.stopping.cancelled() => return None,
            changed = self.recorded.changed() => changed.ok()?,
            () = tokio::time::sleep(SWEEP) => {}
        }
        tokio::time::sleep(PACE).await;
        Some(())
    }
}
