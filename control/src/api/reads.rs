//! Where what people and programs are shown is read: on a replica of the store, or on the primary.
//!
//! ```text
//!   write ─▶ handler ─▶ answer, with `Drover-Position`: how far the store was after it, or `latest`: nobody knows
//!   read, with that position ─▶ a replica that is so far ─▶ handler ─▶ answer
//!                                 none in 0.1 s, or it fails or dies meanwhile ─▶ primary ─▶ the same handler
//! ```
//!
//! A handler that takes [`Reads`] may be answered by a replica; one that takes the state is answered by the primary.
//! So streams, which wake up at what was committed here, and everything that decides, stay with the primary.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::watch;

use super::Api;
use super::extract::header_text;
use super::model::{POSITION, POSITION_LATEST};
use super::problem::{ApiError, ApiResult};
use crate::store::StoreError;
use crate::store::position::Position;
use crate::store::replicas::{Fallback, Hold, Replicas};

/// The API as a handler that only reads has it: the store may be a replica.
pub(super) struct Reads(pub(super) Arc<Api>);

impl FromRequestParts<Arc<Api>> for Reads {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let (Some(replicas), Some(choice)) = (api.store.replicas(), parts.extensions.get()) else {
            return Ok(Self(Arc::clone(api)));
        };
        Ok(Self(choose(api, replicas, choice).await))
    }
}

/// What a client has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// Nothing that it speaks of.
    Nothing,
    /// What was so at a position.
    Until(Position),
    /// More than it has a position of: an event, for one.
    Latest,
}

/// How a read that may go to a replica finds one. A read that has it not goes to the primary.
#[derive(Clone)]
struct Choice {
    seen: Seen,
    /// Hears which replica was chosen.
    chosen: watch::Sender<Option<Hold>>,
}

async fn choose(api: &Arc<Api>, replicas: &Replicas, choice: &Choice) -> Arc<Api> {
    let wanted = match choice.seen {
        Seen::Nothing => None,
        Seen::Until(position) => Some(position),
        Seen::Latest => {
            replicas.asked_primary();
            return Arc::clone(api);
        }
    };
    let Ok(taken) = replicas.take(&api.store, wanted).await else {
        return Arc::clone(api);
    };
    choice.chosen.send_replace(Some(taken.hold));
    Arc::new(Api {
        store: taken.store,
        ..Api::clone(api)
    })
}

/// Answers a request: a read from where it finds what its client has seen, a write with how far the store is then.
pub(super) async fn answer(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let seen = match seen(request.headers()) {
        Ok(seen) => seen,
        Err(error) => return error.into_response(),
    };
    let Some(replicas) = api.store.replicas() else {
        // Everything is read on the primary.
        return next.run(request).await;
    };
    if let Seen::Until(position) = seen
        && !replicas.knows(position)
    {
        return foreign().into_response();
    }
    match *request.method() {
        Method::GET | Method::HEAD => read(replicas, seen, request, next).await,
        _ => written(&api, next.run(request).await).await,
    }
}

/// Reads on a replica, and once more on the primary where that fails or does not answer.
async fn read(replicas: &Replicas, seen: Seen, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let again = Request::from_parts(parts.clone(), body);
    let (chosen, hears) = watch::channel(None::<Hold>);
    parts.extensions.insert(Choice { seen, chosen });
    // What reads has no body.
    let first = next.clone().run(Request::from_parts(parts, Body::empty()));
    let answered = tokio::select! {
        biased;
        response = first => Some(response),
        () = is_lost(hears.clone()) => None,
    };
    let replica = hears.borrow().clone();
    match (answered, replica) {
        (Some(response), None) => response,
        (Some(response), Some(_)) if !response.status().is_server_error() => response,
        (_, replica) => {
            // Whatever it was: of a long read a replica may say that it has no time for it.
            if let Some(replica) = replica {
                replica.failed();
            }
            replicas.fell_back(Fallback::Failed);
            next.run(again).await
        }
    }
}

/// Returns when a replica was chosen, and then was lost.
async fn is_lost(mut chosen: watch::Receiver<Option<Hold>>) {
    let hold = match chosen.wait_for(Option::is_some).await {
        Ok(hold) => hold.clone(),
        Err(_) => None,
    };
    match hold {
        Some(hold) => hold.lost().await,
        None => std::future::pending().await,
    }
}

/// With how far the store is after a write.
async fn written(api: &Api, mut response: Response) -> Response {
    if response.status().is_server_error() {
        return response;
    }
    let position = position_for(api.store.position().await);
    response.headers_mut().insert(POSITION, position);
    response
}

/// What a client that has written sends back. Where nobody could say how far the store is, the primary answers it: what
/// was written is written, and a replica may not have it yet.
fn position_for(position: Result<Position, StoreError>) -> HeaderValue {
    let text = position.map(|position| position.to_string());
    match text.as_deref().map(HeaderValue::try_from) {
        Ok(Ok(value)) => value,
        why => {
            tracing::debug!(?why, "an answer sends its client to the primary");
            HeaderValue::from_static(POSITION_LATEST)
        }
    }
}

/// What a request says that its client has seen.
fn seen(headers: &HeaderMap) -> ApiResult<Seen> {
    match header_text(headers, POSITION)? {
        None => Ok(Seen::Nothing),
        Some(POSITION_LATEST) => Ok(Seen::Latest),
        Some(text) => text
            .parse()
            .map(Seen::Until)
            .map_err(|error| ApiError::field(POSITION, error.to_string())),
    }
}

fn foreign() -> ApiError {
    ApiError::field(
        POSITION,
        "is of another deployment, or of a store that this one was copied from; leave it out, or send back what an \
         answer from here had",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client has seen that sends back what it was told.
    fn seen_by(position: Result<Position, StoreError>) -> Seen {
        let told = HeaderMap::from_iter([(POSITION.parse().unwrap(), position_for(position))]);
        seen(&told).unwrap_or_else(|_| panic!("{told:?} is refused"))
    }

    #[test]
    fn whoever_wrote_when_nobody_knew_how_far_the_store_was_reads_on_the_primary() {
        let position: Position = "AQAAAZqwPkAAAAAAAAAAABs".parse().unwrap();
        assert_eq!(seen_by(Ok(position)), Seen::Until(position));
        for error in [StoreError::Unreachable, StoreError::Busy] {
            assert_eq!(seen_by(Err(error)), Seen::Latest);
        }
    }
}
