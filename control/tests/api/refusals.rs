//! What is refused is counted once and logged once, with plain names, and a flood of it does not
//! fill the log.

use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use protocol::enrol::EnrolRefusal;
use protocol::ids::AgentId;
use protocol::link::{Event, SecurityEvent};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::DefaultGuard;

use crate::plane::{Plane, REMOTE, csr, eventually, plane};

/// The warnings of this thread, as `message field=value …`.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
}

impl Log {
    /// Tests run their server on their own thread: what it logs is theirs.
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let guard = tracing::subscriber::set_default(log.clone());
        (log, guard)
    }

    fn with(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let found = lines.iter().filter(|line| line.contains(text));
        found.cloned().collect()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1 + self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields);
        self.lines.lock().unwrap().push(text);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.fields, " {field}={value}").unwrap();
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => write!(self.fields, " {field}={value:?}").unwrap(),
        }
    }
}

/// The value of a figure of `/metrics`; 0 while it is not there.
async fn figure(plane: &Plane, name: &str) -> u64 {
    let (_, text) = plane.get("/metrics").await;
    let text = text.as_str().unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn a_refused_token_is_counted_once_and_logged_once() {
    let plane = plane().await;
    let expired = plane.join_tokens(json!({ "ttl_seconds": 1 })).await;
    eventually("the token's end", async || {
        let (_, list) = plane.get("/v1/tokens").await;
        (list["items"][0]["state"] == "expired").then_some(())
    })
    .await;
    let used = plane.join_tokens(json!({})).await;
    plane.enrol(1, used[0].secret, csr()).await.unwrap();
    let cases = [
        ([7; 32], EnrolRefusal::UnknownToken, "unknown_token"),
        (used[0].secret, EnrolRefusal::UsedToken, "used_token"),
        (
            expired[0].secret,
            EnrolRefusal::ExpiredToken,
            "expired_token",
        ),
    ];
    for (ticket, (secret, refusal, result)) in (2..).zip(cases) {
        let (log, _guard) = Log::start();
        let refused = plane.enrol(ticket, secret, csr()).await;
        assert_eq!(refused.unwrap_err(), refusal);
        let name = format!("drover_enrolments_total{{result=\"{result}\"}}");
        assert_eq!(figure(&plane, &name).await, 1, "{name}");
        let lines = log.with("an enrolment was refused");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(&format!("remote={REMOTE}")), "{lines:?}");
        assert!(lines[0].contains("reason="), "{lines:?}");
    }
    assert_eq!(
        figure(&plane, "drover_enrolments_total{result=\"enrolled\"}").await,
        1
    );
}

#[tokio::test]
async fn what_a_gateway_refused_is_counted_once_and_logged_once() {
    let plane = plane().await;
    let agent = AgentId(uuid::Uuid::from_u128(0x01a2));
    let cases = [
        (
            SecurityEvent::ForeignCertificate,
            "foreign_certificate",
            None,
        ),
        (SecurityEvent::RevokedAgent, "revoked_agent", Some(agent)),
        (
            SecurityEvent::IdentityMismatch,
            "identity_mismatch",
            Some(agent),
        ),
        (
            SecurityEvent::ForeignOperation,
            "foreign_operation",
            Some(agent),
        ),
    ];
    let (log, _guard) = Log::start();
    for (kind, name, agent) in cases {
        plane.gateway.say(Event::Security {
            kind,
            agent,
            remote: REMOTE.parse().unwrap(),
        });
        let figure_name = format!("drover_security_events_total{{kind=\"{name}\"}}");
        eventually(&figure_name, async || {
            (figure(&plane, &figure_name).await > 0).then_some(())
        })
        .await;
        assert_eq!(figure(&plane, &figure_name).await, 1, "{name}");
        let who = agent.map_or_else(String::new, |agent| format!(" agent={agent}"));
        let expected = format!("a gateway refused a peer kind={name}{who} remote={REMOTE}");
        assert_eq!(log.with(name), [expected]);
    }
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_whole_and_logged_in_part() {
    let plane = plane().await;
    let (log, _guard) = Log::start();
    let flood = 1000;
    for _ in 0..flood {
        plane.gateway.say(Event::Security {
            kind: SecurityEvent::NoCertificate,
            agent: None,
            remote: REMOTE.parse().unwrap(),
        });
    }
    let unsaid = || -> usize {
        let lines = log.with("more peers refused");
        let number = |line: &String| line.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        lines.iter().map(number).sum()
    };
    let said = || log.with("a gateway refused a peer").len();
    eventually("a word about the rest", async || {
        (said() + unsaid() == flood).then_some(())
    })
    .await;
    assert!(said() < 100, "{} lines", said());
    let name = "drover_security_events_total{kind=\"no_certificate\"}";
    eventually("the count", async || {
        (figure(&plane, name).await == flood as u64).then_some(())
    })
    .await;
}
