//! Why a process is not running, and what to do about it.

#[cfg(test)]
pub(super) mod tests;

use std::time::Duration;

use protocol::ids::ProcessId;

use super::process_limits;
use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::processes::WaitingOn;
use crate::api::problem::ApiResult;
use crate::clock::{self, UnixMs};
use crate::dispatch;
use crate::process::{Hold, State};
use crate::store::pauses::Pause;
use crate::store::queries::ProcessRecord;

/// What it waits for, as far as its row says.
pub(super) fn in_store(record: &ProcessRecord) -> Option<WaitingOn> {
    let agent = record.agent.to_string();
    let due = record
        .due_at
        .map_or_else(String::new, |at| Timestamp(at.0).to_string());
    let (scope, key, detail) = match record.state {
        State::Ready => {
            let pause = record.paused.as_ref()?;
            return Some(WaitingOn {
                advice: Some(format!("drover pauses remove {pause}")),
                ..on("pause", pause.to_string(), format!("the {pause} is paused"))
            });
        }
        State::Scheduled => {
            return Some(WaitingOn {
                eta_s: record.due_at.map(seconds_until),
                advice: Some(format!(
                    "wait; or start it now: drover processes replay {}",
                    record.id
                )),
                ..at_time(due)
            });
        }
        State::Backoff => return Some(backoff(record, due)),
        State::Blocked => (
            "resource",
            record.resource.clone().unwrap_or_default(),
            "another process works on this resource; this one follows when that has ended"
                .to_owned(),
        ),
        State::Unknown => (
            "answer",
            agent,
            "the reply was lost; its agent is asked until it answers".to_owned(),
        ),
        State::Cancelling => (
            "answer",
            agent,
            "its agent has not confirmed the cancel; it is asked until it does".to_owned(),
        ),
        State::Leased | State::Running | State::Succeeded | State::Failed | State::Cancelled => {
            return None;
        }
    };
    Some(on(scope, key, detail))
}

pub(super) fn on(scope: &str, key: String, detail: String) -> WaitingOn {
    WaitingOn {
        scope: scope.to_owned(),
        key,
        detail,
        advice: None,
        limit: None,
        in_use: None,
        position: None,
        eta_s: None,
        held_by: None,
    }
}

/// It is for later.
pub(super) fn at_time(due: String) -> WaitingOn {
    let detail = format!("it is not to be started before {due}");
    on("time", due, detail)
}

/// Seconds from now to then, whole ones.
pub(super) fn seconds_until(then: UnixMs) -> u64 {
    clock::now().until(then).as_secs()
}

fn backoff(record: &ProcessRecord, due: String) -> WaitingOn {
    let left = record.due_at.map(seconds_until);
    // A replay would go forward again.
    let advice = match record.step.undoes() {
        true => format!(
            "wait; or end it without undoing the rest: drover processes cancel --force {}",
            record.id
        ),
        false => format!(
            "wait; or end the wait now: drover processes replay {}",
            record.id
        ),
    };
    let waits = match &record.hold {
        Some(Hold::Budget) => on(
            "budget",
            due,
            format!(
                "too many attempts of kind `{}` have failed at its agent: retries wait until others succeed, \
                 or a minute has passed for each",
                record.kind
            ),
        ),
        Some(Hold::Returned(why)) => on(
            "backoff",
            due,
            format!("it came back without having been started ({why}); it is tried again then"),
        ),
        Some(Hold::Retry) | None => {
            let said = record.outcome.as_ref().map_or("", |said| &said.message);
            let why = if said.is_empty() {
                "it gave no reason"
            } else {
                said
            };
            on(
                "backoff",
                due,
                format!(
                    "attempt {} of {} failed in a way that may pass ({why}); the next one starts then",
                    record.attempts, record.max_attempts
                ),
            )
        }
    };
    WaitingOn {
        eta_s: left,
        advice: Some(advice),
        ..waits
    }
}

/// What it waits for, with what only the store's other rows and the process server know.
pub(super) async fn whole(api: &Api, record: &ProcessRecord) -> ApiResult<Option<WaitingOn>> {
    let waits = unpaused(api, record).await?;
    let (Some(key), Some(waits)) = (&record.paused, waits.clone()) else {
        return Ok(waits);
    };
    let pause = api.store.pause(key).await?;
    Ok(Some(match (record.state, pause) {
        (State::Ready, Some(pause)) => at_pause(&pause),
        (_, Some(pause)) => besides(waits, &at_pause(&pause)),
        (_, None) => waits,
    }))
}

/// With a pause, which will hold it once it waits for nothing else.
pub(super) fn besides(waits: WaitingOn, pause: &WaitingOn) -> WaitingOn {
    let advice = [waits.advice, pause.advice.clone()];
    let advice: Vec<String> = advice.into_iter().flatten().collect();
    WaitingOn {
        detail: format!("{}; and {}", waits.detail, pause.detail),
        advice: Some(advice.join("; and: ")),
        // The pause may last longer.
        eta_s: None,
        ..waits
    }
}

/// As [`whole`], pauses of what is not ready left out.
async fn unpaused(api: &Api, record: &ProcessRecord) -> ApiResult<Option<WaitingOn>> {
    let waits = in_store(record);
    match record.state {
        State::Ready if record.paused.is_some() => Ok(waits),
        State::Ready => in_queue(api, record).await,
        State::Blocked => match &record.resource {
            Some(resource) => {
                let line = api.store.resource_line(resource, Some(record.id)).await?;
                Ok(Some(at_resource(resource, line.holder, line.waiting)))
            }
            None => Ok(waits),
        },
        State::Unknown | State::Cancelling => {
            let views = api.engine.agents(vec![record.agent]).await?;
            let there = views.first().is_some_and(|view| view.session.is_some());
            let away = if there { "" } else { "; it has no session now" };
            Ok(waits.map(|waits| WaitingOn {
                detail: format!("{}{away}", waits.detail),
                advice: Some(match there {
                    true => "wait: the agent has a session and is asked again at growing intervals; if it \
                             is stuck, look at the host"
                        .to_owned(),
                    false => format!(
                        "bring the agent back (drover agents show {}); if the host is gone for good: \
                         drover processes cancel --force {}",
                        record.agent, record.id
                    ),
                }),
                ..waits
            }))
        }
        _ => Ok(waits),
    }
}

async fn in_queue(api: &Api, record: &ProcessRecord) -> ApiResult<Option<WaitingOn>> {
    let waits = api.engine.waiting_on(record.id, record.agent).await?;
    if let Some(dispatch::WaitingOn::Host(queued)) = &waits
        && let Ok(flow) = api.engine.flow_of(record.agent).await
    {
        return process_limits::waits(api, queued, &flow, &record.tenant)
            .await
            .map(Some);
    }
    // Where the gateway does not say, what the process server knows.
    Ok(waits.as_ref().map(queue))
}

/// What an agent's queue makes it wait for.
pub(super) fn queue(waiting: &dispatch::WaitingOn) -> WaitingOn {
    match waiting {
        dispatch::WaitingOn::Session { agent } => WaitingOn {
            advice: Some(format!(
                "start the agent on its host, and look at its log: drover agents show {agent}"
            )),
            ..on(
                "agent",
                agent.to_string(),
                "the agent has no session; it starts when the agent is back".to_owned(),
            )
        },
        dispatch::WaitingOn::Host(queued) => at_capacity(queued, queued.capacity, queued.in_use),
    }
}

/// It waits for a place at its agent, which takes `limit` at once.
pub(super) fn at_capacity(queued: &dispatch::Queued, limit: u32, in_use: u32) -> WaitingOn {
    let free = limit.saturating_sub(in_use);
    WaitingOn {
        limit: Some(limit),
        in_use: Some(in_use),
        position: (queued.position > 0).then_some(queued.position),
        eta_s: queued.eta(free).map(rounded_up),
        advice: Some("wait; or cancel what matters less on this agent".to_owned()),
        ..on(
            "capacity",
            queued.agent.to_string(),
            in_line(limit, in_use, queued.position),
        )
    }
}

pub(super) fn rounded_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// What a pause makes it wait for.
pub(super) fn at_pause(pause: &Pause) -> WaitingOn {
    let key = &pause.key;
    let at = Timestamp(pause.at.0);
    WaitingOn {
        advice: Some(format!("drover pauses remove {key}")),
        ..on(
            "pause",
            key.to_string(),
            format!("{} paused the {key} at {at}: {}", pause.by, pause.reason),
        )
    }
}

/// Whom it waits for at a resource; `before`: how many others come first.
pub(super) fn at_resource(
    resource: &str,
    holder: Option<(ProcessId, String, State)>,
    before: u32,
) -> WaitingOn {
    let others = match before {
        0 => String::new(),
        1 => ", and one other comes before it".to_owned(),
        more => format!(", and {more} others come before it"),
    };
    let key = resource.to_owned();
    let Some((id, kind, state)) = holder else {
        let detail = format!("`{resource}` has just become free{others}; it is about to be ready");
        return on("resource", key, detail);
    };
    WaitingOn {
        advice: Some(format!("wait; or: drover processes why {id}")),
        position: Some(before + 1),
        held_by: Some(id.0),
        ..on(
            "resource",
            key,
            format!(
                "the process {id} ({kind}, {state}) works on `{resource}`{others}; it follows when that \
                 has ended"
            ),
        )
    }
}

/// Where a process stands in its agent's queue, in words; `position` 0 is further back than memory.
pub(super) fn in_line(limit: u32, in_use: u32, position: u32) -> String {
    let free = limit.saturating_sub(in_use);
    match position {
        0 => format!("{in_use} of {limit} places are taken, and many are before it"),
        place if place <= free => {
            "the agent has a free place for it; it is about to start".to_owned()
        }
        place => format!("{in_use} of {limit} places are taken; it is number {place} in line"),
    }
}
