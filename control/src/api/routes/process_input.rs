//! What a process may be: every field of a request checked, with errors that name it.

use std::collections::HashMap;
use std::time::Duration;

use protocol::ids::AgentId;
use protocol::limits::{
    COMMAND_INPUT_BYTES_MAX, KIND_BYTES_MAX, NAME_BYTES_MAX, OPERATION_DEADLINE_DEFAULT,
};
use sha2::{Digest, Sha256};

use super::agents;
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::model::processes::{Class, CreateProcess};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::UnixMs;
use crate::process;
use crate::store::processes::{IdempotencyKey, NewProcess};

const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const ATTEMPTS_DEFAULT: u32 = 3;
const ATTEMPTS_MAX: u32 = 100;
const HOSTNAME_BYTES_MAX: usize = 253;
const KEY_BYTES_MAX: usize = 255;

/// Hostnames that were looked up for this request.
pub(super) type Hosts = HashMap<String, ApiResult<AgentId>>;

/// Checks a request and turns it into what the process server takes. `at` is prefixed to the names
/// of fields: where in a batch the item stands.
pub(super) async fn check(
    api: &Api,
    request: &CreateProcess,
    key: IdempotencyKey,
    now: UnixMs,
    hosts: &mut Hosts,
    at: &str,
) -> ApiResult<NewProcess> {
    let field = |name: &str| format!("{at}{name}");
    check_kind(&field("kind"), &request.kind)?;
    let input = request.input.to_string();
    if input.len() > COMMAND_INPUT_BYTES_MAX {
        return Err(ApiError::field(
            &field("input"),
            format!(
                "has {} bytes; at most {COMMAND_INPUT_BYTES_MAX} reach an agent",
                input.len()
            ),
        ));
    }
    let deadline_at = deadline(request, now, at)?;
    let max_attempts = request.max_attempts.unwrap_or(ATTEMPTS_DEFAULT);
    if !(1..=ATTEMPTS_MAX).contains(&max_attempts) {
        return Err(ApiError::field(
            &field("max_attempts"),
            format!("is {max_attempts}; it must be 1 to {ATTEMPTS_MAX}"),
        ));
    }
    if let Some(resource) = &request.resource
        && (resource.is_empty()
            || resource.len() > NAME_BYTES_MAX
            || resource.chars().any(char::is_control))
    {
        return Err(ApiError::field(
            &field("resource"),
            format!("must be 1 to {NAME_BYTES_MAX} bytes of text without control characters"),
        ));
    }
    let agent = agent(api, &request.agent, hosts, &field("agent")).await?;
    Ok(NewProcess {
        agent,
        kind: request.kind.clone(),
        input,
        class: match request.class.unwrap_or_default() {
            Class::Interactive => process::Class::Interactive,
            Class::Normal => process::Class::Normal,
            Class::Background => process::Class::Background,
        },
        resource: request.resource.clone(),
        run_at: None,
        deadline_at,
        max_attempts,
        idempotency: Some(key),
    })
}

/// Makes the idempotency key of a request. `field` is where the key came from.
pub(super) fn key(
    caller: &Caller,
    field: &str,
    key: &str,
    request: &CreateProcess,
) -> ApiResult<IdempotencyKey> {
    // The header is a quoted string in the IETF draft; most clients send it bare. Both are one.
    let bare = key
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(key);
    if bare.is_empty()
        || bare.len() > KEY_BYTES_MAX
        || !bare.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(ApiError::field(
            field,
            format!("must be 1 to {KEY_BYTES_MAX} visible ASCII characters, such as a UUID"),
        ));
    }
    let canonical = serde_json::to_vec(request)
        .map_err(|error| ApiError::new(Kind::Internal, format!("{error}.")))?;
    Ok(IdempotencyKey {
        scope: caller.token.to_string(),
        key: bare.to_owned(),
        fingerprint: Sha256::digest(canonical).into(),
    })
}

async fn agent(api: &Api, text: &str, hosts: &mut Hosts, field: &str) -> ApiResult<AgentId> {
    // Whether an id is known is decided where the process is made: one look fewer.
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    if text.is_empty() || text.len() > HOSTNAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(ApiError::field(
            field,
            "must be an agent's id or its hostname",
        ));
    }
    if let Some(known) = hosts.get(text) {
        return known.clone();
    }
    let found = agents::resolve(api, field, text).await;
    hosts.insert(text.to_owned(), found.clone());
    found
}

fn check_kind(field: &str, kind: &str) -> ApiResult<()> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    if kind.is_empty() || kind.len() > KIND_BYTES_MAX || !kind.chars().all(valid) {
        return Err(ApiError::field(
            field,
            format!(
                "must be 1 to {KIND_BYTES_MAX} characters of a-z, 0-9, `_`, `.` and `-`, such as \
                 `exec`"
            ),
        ));
    }
    Ok(())
}

fn deadline(request: &CreateProcess, now: UnixMs, at: &str) -> ApiResult<UnixMs> {
    let max = DEADLINE_MAX.as_secs();
    match (request.deadline_seconds, request.deadline_at) {
        (Some(_), Some(_)) => Err(ApiError::field(
            &format!("{at}deadline_at"),
            "cannot be given together with `deadline_seconds`; leave one out",
        )),
        (Some(seconds), None) if (1..=max).contains(&seconds) => {
            Ok(now.plus(Duration::from_secs(seconds)))
        }
        (Some(seconds), None) => Err(ApiError::field(
            &format!("{at}deadline_seconds"),
            format!("is {seconds}; it must be 1 to {max} (30 days)"),
        )),
        (None, Some(moment)) => {
            let moment = UnixMs(moment.0);
            if moment > now && moment <= now.plus(DEADLINE_MAX) {
                Ok(moment)
            } else {
                Err(ApiError::field(
                    &format!("{at}deadline_at"),
                    "must be in the future and within 30 days",
                ))
            }
        }
        (None, None) => Ok(now.plus(OPERATION_DEADLINE_DEFAULT)),
    }
}
