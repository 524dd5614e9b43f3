//! What a process may be: every field of a request checked, with errors that name it.

use std::collections::HashMap;
use std::time::Duration;

use protocol::ids::AgentId;
use protocol::limits::{
    COMMAND_INPUT_BYTES_MAX, KIND_BYTES_MAX, NAME_BYTES_MAX, OPERATION_DEADLINE_DEFAULT,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::agents;
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::drivers;
use crate::api::model::processes::{Class, CreateProcess};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::UnixMs;
use crate::kinds;
use crate::process;
use crate::store::processes::{Actor, IdempotencyKey, NewProcess, TENANT_DEFAULT};

const RUN_AT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const ATTEMPTS_DEFAULT: u32 = 3;
const ATTEMPTS_MAX: u32 = 100;
const HOSTNAME_BYTES_MAX: usize = 253;
const KEY_BYTES_MAX: usize = 255;

/// What was looked up for this request.
#[derive(Default)]
pub(super) struct Looked {
    hosts: HashMap<String, ApiResult<AgentId>>,
    drivers: drivers::Said,
}

/// Checks a request and turns it into what the process server takes. `at` is prefixed to the names
/// of fields: where in a batch the item stands.
pub(super) async fn check(
    api: &Api,
    request: &CreateProcess,
    key: IdempotencyKey,
    now: UnixMs,
    looked: &mut Looked,
    at: &str,
) -> ApiResult<NewProcess> {
    let process = NewProcess {
        idempotency: Some(key),
        ..read(api, request, now, looked, at).await?
    };
    drivers::check(api, &process, &mut looked.drivers, at).await?;
    Ok(process)
}

/// As [`check`], without a key.
pub(super) async fn checked(
    api: &Api,
    request: &CreateProcess,
    now: UnixMs,
    looked: &mut Looked,
) -> ApiResult<NewProcess> {
    let process = read(api, request, now, looked, "").await?;
    drivers::check(api, &process, &mut looked.drivers, "").await?;
    Ok(process)
}

async fn read(
    api: &Api,
    request: &CreateProcess,
    now: UnixMs,
    looked: &mut Looked,
    at: &str,
) -> ApiResult<NewProcess> {
    let field = |name: &str| format!("{at}{name}");
    check_name(&field("kind"), "a kind, such as `exec`,", &request.kind)?;
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
    let kind = api.kinds.get(&request.kind);
    let resolved = kind.map(|kind| resolve(kind, request, at)).transpose()?;
    let run_at = run_at(request, now, at)?;
    let from = run_at.unwrap_or(now);
    let deadline_at = deadline(request, from, kind.and_then(|kind| kind.deadline), at)?;
    let of_kind = kind.and_then(|kind| kind.max_attempts);
    let max_attempts = request.max_attempts.or(of_kind).unwrap_or(ATTEMPTS_DEFAULT);
    if !(1..=ATTEMPTS_MAX).contains(&max_attempts) {
        return Err(ApiError::field(
            &field("max_attempts"),
            format!("is {max_attempts}; it must be 1 to {ATTEMPTS_MAX}"),
        ));
    }
    let tenant = request.tenant.as_deref().unwrap_or(TENANT_DEFAULT);
    check_name(&field("tenant"), "a tenant", tenant)?;
    let resource = resource(request, at)?;
    let agent = agent(api, &request.agent, looked, &field("agent")).await?;
    let class = request.class.map(|class| match class {
        Class::Interactive => process::Class::Interactive,
        Class::Normal => process::Class::Normal,
        Class::Background => process::Class::Background,
    });
    let (plan, of_kind) = resolved.map_or((None, None), |made| (Some(made.plan), made.resource));
    Ok(NewProcess {
        agent,
        kind: request.kind.clone(),
        input,
        plan,
        tenant: tenant.to_owned(),
        class: class.or(kind.map(|kind| kind.class)).unwrap_or_default(),
        resource: of_kind.or(resource),
        run_at,
        deadline_at,
        max_attempts,
        // What is to be done later makes nothing needless that is to be done now.
        supersedes: kind
            .filter(|_| run_at.is_none())
            .map_or_else(Vec::new, |kind| kind.supersedes.clone()),
        actor: None,
        idempotency: None,
    })
}

/// Who wants a process.
pub(super) fn by(caller: &Caller) -> Actor {
    Actor {
        by: caller.name.clone(),
        reason: None,
    }
}

/// What a declared kind makes of a request.
fn resolve(kind: &kinds::Kind, request: &CreateProcess, at: &str) -> ApiResult<kinds::Resolved> {
    if kind.resource.is_some() && request.resource.is_some() {
        return Err(ApiError::field(
            &format!("{at}resource"),
            format!("is said by the kind `{}`; leave it out", kind.name),
        ));
    }
    kind.resolve(&request.input)
        .map_err(|error| ApiError::field(&format!("{at}{}", error.field), error.detail))
}

fn resource(request: &CreateProcess, at: &str) -> ApiResult<Option<String>> {
    if let Some(resource) = &request.resource
        && (resource.is_empty()
            || resource.len() > NAME_BYTES_MAX
            || resource.chars().any(char::is_control))
    {
        return Err(ApiError::field(
            &format!("{at}resource"),
            format!("must be 1 to {NAME_BYTES_MAX} bytes of text without control characters"),
        ));
    }
    Ok(request.resource.clone())
}

/// Makes the idempotency key of a request. `field` is where the key came from.
pub(super) fn key(
    caller: &Caller,
    field: &str,
    key: &str,
    request: &CreateProcess,
) -> ApiResult<IdempotencyKey> {
    key_of(caller, field, key, request)
}

/// As [`key`], of any request.
pub(super) fn key_of(
    caller: &Caller,
    field: &str,
    key: &str,
    request: &impl Serialize,
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

async fn agent(api: &Api, text: &str, looked: &mut Looked, field: &str) -> ApiResult<AgentId> {
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
    if let Some(known) = looked.hosts.get(text) {
        return known.clone();
    }
    let found = agents::resolve(api, field, text).await;
    looked.hosts.insert(text.to_owned(), found.clone());
    found
}

/// Names of kinds and tenants. `what`: how the message begins.
pub(super) fn check_name(field: &str, what: &str, name: &str) -> ApiResult<()> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    if name.is_empty() || name.len() > KIND_BYTES_MAX || !name.chars().all(valid) {
        return Err(ApiError::field(
            field,
            format!(
                "{what} must be 1 to {KIND_BYTES_MAX} characters of a-z, 0-9, `_`, `.` and `-`"
            ),
        ));
    }
    Ok(())
}

/// When it is to be started; nothing: at once.
fn run_at(request: &CreateProcess, now: UnixMs, at: &str) -> ApiResult<Option<UnixMs>> {
    let later = request.run_at.map(|moment| UnixMs(moment.0));
    let Some(later) = later.filter(|later| *later > now) else {
        return Ok(None);
    };
    if later > now.plus(RUN_AT_MAX) {
        return Err(ApiError::field(
            &format!("{at}run_at"),
            "must be within 30 days; make the process nearer to its time",
        ));
    }
    let deadline = request.deadline_at.map(|moment| UnixMs(moment.0));
    if deadline.is_some_and(|deadline| deadline <= later) {
        return Err(ApiError::field(
            &format!("{at}run_at"),
            "is not before `deadline_at`: it would be over before it starts; give a later deadline, or \
             `deadline_seconds`, which counts from `run_at`",
        ));
    }
    Ok(Some(later))
}

/// When it is over; `now`: from when that is counted.
fn deadline(
    request: &CreateProcess,
    now: UnixMs,
    of_kind: Option<Duration>,
    at: &str,
) -> ApiResult<UnixMs> {
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
                    "must be in the future and within 30 days (of `run_at`, where that is given)",
                ))
            }
        }
        (None, None) => Ok(now.plus(of_kind.unwrap_or(OPERATION_DEADLINE_DEFAULT))),
    }
}
