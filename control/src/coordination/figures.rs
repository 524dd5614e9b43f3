//! What a process tells of its lock and event services: whether they are there, and what came of talking to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Events, Locks};
use crate::telemetry::metrics::{Family, Kind, MetricsSource, Value};

/// Of one service, counted since it was opened.
#[derive(Default, Debug)]
pub struct Figures {
    connected: AtomicBool,
    losses: AtomicU64,
    failed_calls: AtomicU64,
    heard: AtomicU64,
    sent: AtomicU64,
}

impl Figures {
    /// Of what is never away.
    pub(super) fn always_there() -> Arc<Self> {
        let figures = Self::default();
        figures.is_there(true);
        Arc::new(figures)
    }

    /// Whether the service is there now. What was there and is not is lost once more.
    pub(super) fn is_there(&self, there: bool) {
        let was = self.connected.swap(there, Ordering::Relaxed);
        if was && !there {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What came of a call.
    pub(super) fn called<T, E>(&self, done: &Result<T, E>) {
        if done.is_err() {
            self.failed_calls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What came of a call to a service that has no connection: by its last answer it is there.
    pub(super) fn asked<T, E>(&self, done: &Result<T, E>) {
        self.called(done);
        self.is_there(done.is_ok());
    }

    /// An event came.
    pub(super) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// An event was taken by the service.
    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// The figures for `/metrics` of the services that a process uses.
pub fn metrics(locks: Option<&dyn Locks>, events: Option<&dyn Events>) -> MetricsSource {
    // Not the services themselves: they end with whoever uses them.
    let locks = locks.and_then(Locks::figures);
    let events = events.and_then(Events::figures);
    Arc::new(move |all: &mut Vec<Family>| {
        let services = [("locks", locks.as_deref()), ("events", events.as_deref())];
        let services = services.map(|(name, figures)| Some((name, figures?)));
        all.extend(families(services.into_iter().flatten()));
        if let Some(events) = &events {
            all.extend(of_events(events));
        }
    })
}

fn families<'a>(services: impl Iterator<Item = (&'static str, &'a Figures)>) -> [Family; 3] {
    let mut connected = Family::new(
        Kind::Gauge,
        "drover_coordination_connected",
        "Whether the lock service and the event service are reached now. Where they are not, work goes on by heartbeats.",
    );
    let mut losses = Family::new(
        Kind::Counter,
        "drover_coordination_losses_total",
        "How often a lock or event service was lost that was there.",
    );
    let mut failed = Family::new(
        Kind::Counter,
        "drover_coordination_failed_calls_total",
        "Calls to a lock or event service that failed.",
    );
    for (name, figures) in services {
        let of = || vec![("service", name.to_owned())];
        let there = figures.connected.load(Ordering::Relaxed);
        connected = connected.with(of(), Value::Number(u64::from(there)));
        losses = losses.with(of(), number(&figures.losses));
        failed = failed.with(of(), number(&figures.failed_calls));
    }
    [connected, losses, failed]
}

fn of_events(events: &Figures) -> [Family; 2] {
    let heard = Family::new(
        Kind::Counter,
        "drover_events_heard_total",
        "Events that came from the event service.",
    );
    let sent = Family::new(
        Kind::Counter,
        "drover_events_sent_total",
        "Events that the event service has taken.",
    );
    [
        heard.with(Vec::new(), number(&events.heard)),
        sent.with(Vec::new(), number(&events.sent)),
    ]
}

fn number(count: &AtomicU64) -> Value {
    Value::Number(count.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_there_is_lost() {
        let figures = Figures::default();
        let losses = || figures.losses.load(Ordering::Relaxed);
        figures.is_there(false);
        assert_eq!(losses(), 0, "it was never there");
        figures.asked(&Ok::<_, ()>(()));
        figures.asked(&Err::<(), _>(()));
        figures.asked(&Err::<(), _>(()));
        assert_eq!(losses(), 1);
        assert_eq!(figures.failed_calls.load(Ordering::Relaxed), 2);
        assert!(!figures.connected.load(Ordering::Relaxed));
        figures.asked(&Ok::<_, ()>(()));
        assert!(figures.connected.load(Ordering::Relaxed));
    }
}
