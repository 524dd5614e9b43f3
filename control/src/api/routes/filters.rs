//! What webhooks and batches filter by: checked, with errors that name the field.

use protocol::ids::AgentId;
use protocol::limits::KIND_BYTES_MAX;

use super::agents;
use crate::api::Api;
use crate::api::problem::{ApiError, ApiResult};

/// The agent that `text` names by id or by hostname. One that is revoked is meant by id only.
pub(super) async fn agent(
    api: &Api,
    field: &str,
    text: Option<&str>,
) -> ApiResult<Option<AgentId>> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(_) => agents::resolve(api, field, text).await.map(Some),
    }
}

/// The name of a driver.
pub(super) fn kind(field: &str, kind: Option<String>) -> ApiResult<Option<String>> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    match &kind {
        Some(text)
            if text.is_empty() || text.len() > KIND_BYTES_MAX || !text.chars().all(valid) =>
        {
            Err(ApiError::field(
                field,
                format!("must be 1 to {KIND_BYTES_MAX} characters of a-z, 0-9, `_`, `.` and `-`"),
            ))
        }
        _ => Ok(kind),
    }
}

/// Text for people.
pub(super) fn text(field: &str, text: Option<String>, max: usize) -> ApiResult<Option<String>> {
    match &text {
        Some(given) if given.len() > max || given.chars().any(char::is_control) => {
            Err(ApiError::field(
                field,
                format!("must be at most {max} bytes without control characters"),
            ))
        }
        _ => Ok(text),
    }
}
