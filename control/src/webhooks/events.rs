//! Which events there are for webhooks, which of them a webhook wants, and what it is sent.

use bytes::Bytes;
use protocol::ids::AgentId;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::model::Timestamp;
use crate::clock::UnixMs;
use crate::store::log::EventRow;

/// Bytes of a body at most; an event over this is sent without its details.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 10;
/// Patterns that a webhook may name.
pub(crate) const PATTERNS_MAX: usize = 32;

/// Every event that a webhook can ask for. A new kind of event in the log wants a line here.
pub(crate) const EVENTS: [&str; 20] = [
    "agent.down",
    "agent.enrolled",
    "agent.rekeyed",
    "agent.revoked",
    "agent.up",
    "batch.finished",
    "batch.started",
    "limit.removed",
    "limit.set",
    "pause.added",
    "pause.removed",
    "process.cancelled",
    "process.created",
    "process.failed",
    "process.progress",
    "process.state",
    "process.succeeded",
    "security.enrolment_refused",
    "server.gone",
    "webhook.disabled",
];

/// The log's word for every end of a process; webhooks are told which end it was.
const FINISHED: &str = "process.finished";

/// A pattern that no event has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no event; there are {all}, `FAMILY.*` and `*`", all = EVENTS.join(", "))]
pub(crate) struct UnknownEvent(pub(crate) String);

/// Checks one of a webhook's patterns: an event, `process.finished` (any end), `FAMILY.*` or `*`.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), UnknownEvent> {
    let known = pattern == FINISHED || EVENTS.iter().any(|event| matches(pattern, event));
    if known {
        Ok(())
    } else {
        Err(UnknownEvent(pattern.chars().take(64).collect()))
    }
}

fn matches(pattern: &str, event: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(family) => family.ends_with('.') && family.len() > 1 && event.starts_with(family),
        None => pattern == event,
    }
}

/// What a webhook wants to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wants {
    /// Patterns; one that fits is enough.
    pub(crate) events: Vec<String>,
    /// Only events about this agent.
    pub(crate) agent: Option<AgentId>,
    /// Only events about processes of this kind.
    pub(crate) kind: Option<String>,
    /// Only events about processes of this tenant.
    pub(crate) tenant: Option<String>,
}

/// An event of the log with what webhooks filter by.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Logged {
    /// As the log has it.
    pub(crate) event: EventRow,
    /// The kind of the process that it is about, where that is still kept.
    pub(crate) kind: Option<String>,
    /// Whose that process is.
    pub(crate) tenant: Option<String>,
}

impl Logged {
    /// The event's name for webhooks: that of the log, but an end of a process says which.
    pub(crate) fn name(&self) -> String {
        match self.event.data["to"].as_str() {
            Some(end) if self.event.kind == FINISHED => format!("process.{end}"),
            _ => self.event.kind.clone(),
        }
    }
}

impl Wants {
    /// Whether this webhook is told of the event, whose name is `name`.
    pub(crate) fn wants(&self, logged: &Logged, name: &str) -> bool {
        let of_agent = self
            .agent
            .is_none_or(|agent| logged.event.agent == Some(agent));
        let of_kind = self
            .kind
            .as_ref()
            .is_none_or(|kind| logged.kind.as_ref() == Some(kind));
        let of_tenant = self
            .tenant
            .as_ref()
            .is_none_or(|tenant| logged.tenant.as_ref() == Some(tenant));
        let named = |pattern: &String| {
            matches(pattern, name) || (pattern == FINISHED && logged.event.kind == FINISHED)
        };
        of_agent && of_kind && of_tenant && self.events.iter().any(named)
    }
}

/// What is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    /// The event's name.
    pub(crate) name: String,
    /// JSON.
    pub(crate) body: Bytes,
}

/// The message about an event: the same however often it is made.
pub(crate) fn message(logged: &Logged, name: String) -> Message {
    let whole = body(logged, &name, Some(&logged.event.data));
    let body = if whole.len() <= BODY_BYTES_MAX {
        whole
    } else {
        body(logged, &name, None)
    };
    Message {
        name,
        body: Bytes::from(body),
    }
}

fn body(logged: &Logged, name: &str, details: Option<&Value>) -> String {
    let EventRow {
        seq,
        at,
        process,
        agent,
        ..
    } = &logged.event;
    let mut data = json!({ "sequence": seq });
    if let Some(process) = process {
        data["process"] = json!(process.0);
    }
    if let Some(agent) = agent {
        data["agent"] = json!(agent.0);
    }
    if let Some(kind) = &logged.kind {
        data["kind"] = json!(kind);
    }
    if let Some(tenant) = &logged.tenant {
        data["tenant"] = json!(tenant);
    }
    match details {
        Some(details) => data["details"] = details.clone(),
        None => data["details_omitted"] = json!(true),
    }
    envelope(name, *at, &data)
}

/// The body of a test, which is about no event.
pub(crate) fn test_message(webhook: Uuid, at: UnixMs) -> Message {
    let name = "webhook.test".to_owned();
    let body = envelope(&name, at, &json!({ "webhook": webhook }));
    Message {
        name,
        body: Bytes::from(body),
    }
}

fn envelope(name: &str, at: UnixMs, data: &Value) -> String {
    json!({ "type": name, "timestamp": Timestamp(at.0), "data": data }).to_string()
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;

    use super::*;

    fn logged(kind: &str, data: Value) -> Logged {
        Logged {
            event: EventRow {
                seq: 7,
                at: UnixMs(1_795_512_600_125),
                kind: kind.to_owned(),
                process: Some(ProcessId(Uuid::from_u128(1))),
                agent: Some(AgentId(Uuid::from_u128(2))),
                data,
            },
            kind: Some("exec".to_owned()),
            tenant: Some("acme".to_owned()),
        }
    }

    fn wants(events: &[&str]) -> Wants {
        Wants {
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            agent: None,
            kind: None,
            tenant: None,
        }
    }

    #[test]
    fn an_end_is_told_by_its_own_name_and_wanted_by_three() {
        let end = logged("process.finished", json!({ "to": "failed" }));
        let name = end.name();
        assert_eq!(name, "process.failed");
        for pattern in ["process.failed", "process.finished", "process.*", "*"] {
            assert!(wants(&[pattern]).wants(&end, &name), "{pattern}");
        }
        for pattern in ["process.succeeded", "agent.*", "process.state"] {
            assert!(!wants(&[pattern]).wants(&end, &name), "{pattern}");
        }
    }

    #[test]
    fn filters_ask_for_what_the_event_carries() {
        let created = logged("process.created", json!({}));
        let mut of_agent = wants(&["*"]);
        of_agent.agent = Some(AgentId(Uuid::from_u128(2)));
        assert!(of_agent.wants(&created, "process.created"));
        of_agent.agent = Some(AgentId(Uuid::from_u128(3)));
        assert!(!of_agent.wants(&created, "process.created"));
        let mut of_kind = wants(&["*"]);
        of_kind.kind = Some("exec".to_owned());
        assert!(of_kind.wants(&created, "process.created"));
        let mut of_tenant = wants(&["*"]);
        of_tenant.tenant = Some("acme".to_owned());
        assert!(of_tenant.wants(&created, "process.created"));
        of_tenant.tenant = Some("other".to_owned());
        assert!(!of_tenant.wants(&created, "process.created"));
        let mut forgotten = created;
        (forgotten.kind, forgotten.tenant) = (None, None);
        assert!(!of_kind.wants(&forgotten, "process.created"));
        assert!(!of_tenant.wants(&forgotten, "process.created"));
    }

    #[test]
    fn slips_in_patterns_are_found() {
        for good in ["*", "process.*", "process.finished", "agent.up", "batch.*"] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".*",
            "**",
            "proc*",
            "process",
            "process.suceeded",
            "x.*",
            "Process.*",
        ] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
        let words = check_pattern("process.suceeded").unwrap_err().to_string();
        assert!(words.contains("process.succeeded"), "{words}");
    }

    #[test]
    fn a_body_says_what_when_and_about_what() {
        let event = logged("process.finished", json!({ "to": "succeeded" }));
        let message = message(&event, event.name());
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body["type"], "process.succeeded");
        assert_eq!(body["timestamp"], "2026-11-24T09:30:00.125Z");
        assert_eq!(body["data"]["sequence"], 7);
        assert_eq!(body["data"]["process"], Uuid::from_u128(1).to_string());
        assert_eq!(body["data"]["agent"], Uuid::from_u128(2).to_string());
        assert_eq!(body["data"]["kind"], "exec");
        assert_eq!(body["data"]["tenant"], "acme");
        assert_eq!(body["data"]["details"]["to"], "succeeded");
    }

    #[test]
    fn an_event_over_the_limit_is_told_without_its_details() {
        let event = logged(
            "process.progress",
            json!({ "output": "x".repeat(BODY_BYTES_MAX) }),
        );
        let message = message(&event, event.name());
        assert!(message.body.len() < 1000);
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body["data"]["details_omitted"], true);
        assert_eq!(body["data"]["sequence"], 7);
    }
}
