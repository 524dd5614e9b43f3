//! `/v1/overview`: the deployment at a glance, once or every second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::events;
use crate::api::Api;
use crate::api::model::overview::Overview;
use crate::api::problem::ApiResult;

/// Between two documents of a stream.
const EVERY: Duration = Duration::from_secs(1);

/// Show the deployment at a glance
///
/// At most about a second old; asking more often gets the same answer.
#[utoipa::path(
    get,
    path = "/v1/overview",
    tag = "server",
    operation_id = "get_overview",
    responses((status = 200, description = "The deployment.", body = Overview))
)]
pub(super) async fn show(State(api): State<Arc<Api>>) -> ApiResult<Response> {
    let text = api.board.text(&api).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        text.to_string(),
    )
        .into_response())
}

/// Watch the deployment at a glance
///
/// Server-sent events (`text/event-stream`): one `overview` a second, the document of
/// `GET /v1/overview`. They have no id: each replaces the one before.
#[utoipa::path(
    get,
    path = "/v1/overview/events",
    tag = "server",
    operation_id = "watch_overview",
    responses((status = 200, description = "The stream.", body = Overview,
        content_type = "text/event-stream"))
)]
pub(super) async fn watch(State(api): State<Arc<Api>>) -> ApiResult<Response> {
    let permit = events::place(&api)?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = Watcher {
        api,
        ticks,
        _permit: permit,
    };
    Ok(Sse::new(documents(watcher)).into_response())
}

struct Watcher {
    api: Arc<Api>,
    ticks: Interval,
    _permit: OwnedSemaphorePermit,
}

/// Ends when the server drains.
fn documents(watcher: Watcher) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold(watcher, |mut watcher| async move {
        tokio::select! {
            biased;
            () = watcher.api.stopping.cancelled() => return None,
            _ = watcher.ticks.tick() => {}
        }
        let event = match watcher.api.board.text(&watcher.api).await {
            Ok(text) => Event::default().event("overview").data(&*text),
            // The store fails for a moment: the stream shows that it lives, the next look tries again.
            Err(error) => {
                tracing::warn!(?error, "the overview could not be made");
                Event::default().comment("the overview could not be made; trying again")
            }
        };
        Some((Ok(event), watcher))
    })
}
