//! What a webhook may be: every field of a request checked, with errors that name it.

use crate::api::Api;
use crate::api::model::webhooks::WebhookFilter;
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::api::routes::{filters, process_input};
use crate::identity::fill_random;
use crate::store::webhooks::WebhookAbout;
use crate::webhooks::{PATTERNS_MAX, SECRET_BYTES, Secret, check_pattern};

/// Bytes of a description.
const DESCRIPTION_BYTES_MAX: usize = 256;

pub(super) fn url(api: &Api, url: &str) -> ApiResult<()> {
    api.webhooks
        .check_url(url)
        .map_err(|error| ApiError::field("url", error.to_string()))
}

pub(super) fn events(events: &[String]) -> ApiResult<()> {
    if events.is_empty() || events.len() > PATTERNS_MAX {
        return Err(ApiError::field(
            "events",
            format!(
                "has {} items; it must have 1 to {PATTERNS_MAX}",
                events.len()
            ),
        ));
    }
    for (at, pattern) in events.iter().enumerate() {
        check_pattern(pattern)
            .map_err(|error| ApiError::field(&format!("events[{at}]"), error.to_string()))?;
    }
    Ok(())
}

pub(super) async fn filter(api: &Api, filter: WebhookFilter) -> ApiResult<WebhookAbout> {
    if let Some(tenant) = &filter.tenant {
        process_input::check_name("filter.tenant", "a tenant", tenant)?;
    }
    Ok(WebhookAbout {
        agent: filters::agent(api, "filter.agent", filter.agent.as_deref()).await?,
        kind: filters::kind("filter.kind", filter.kind)?,
        tenant: filter.tenant,
    })
}

pub(super) fn description(text: Option<String>) -> ApiResult<Option<String>> {
    filters::text("description", text, DESCRIPTION_BYTES_MAX)
}

/// The given secret, or a new one.
pub(super) fn secret(given: Option<&str>) -> ApiResult<Secret> {
    if let Some(text) = given {
        return Secret::parse(text).map_err(|error| ApiError::field("secret", error.to_string()));
    }
    let internal = |words: String| ApiError::new(Kind::Internal, format!("{words}."));
    let mut bytes = vec![0; SECRET_BYTES];
    fill_random(&mut bytes).map_err(|error| internal(error.to_string()))?;
    Secret::new(bytes).map_err(|error| internal(error.to_string()))
}

/// Whether events behind `after` can be had.
pub(super) async fn after(api: &Api, after: Option<u64>) -> ApiResult<()> {
    let Some(after) = after else { return Ok(()) };
    let span = api.store.event_span().await?;
    if after > span.last {
        return Err(ApiError::field(
            "after",
            format!(
                "is {after}, but the newest event is {}; leave it out to begin with what happens \
                 from now on",
                span.last
            ),
        ));
    }
    if after + 1 < span.first {
        return Err(ApiError::in_field(
            Kind::EventsTrimmed,
            "after",
            format!(
                "is {after}, but events up to {} are no longer kept; give that number or a higher \
                 one",
                span.first - 1
            ),
        ));
    }
    Ok(())
}
