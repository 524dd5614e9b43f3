//! What the deliverer measures about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::plan::HookFigures;
use crate::store::webhooks::DeliveryState;
use crate::telemetry::Times;
use crate::telemetry::metrics::{Family, Kind, Value};

/// Counters since the start, and how every webhook fares now.
pub(crate) struct Stats {
    succeeded: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    missed: AtomicU64,
    disabled: AtomicU64,
    times: Mutex<Times>,
    now: Mutex<Vec<HookFigures>>,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            succeeded: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            disabled: AtomicU64::new(0),
            times: Mutex::new(Times::new()),
            now: Mutex::default(),
        }
    }

    /// An attempt took so long.
    pub(crate) fn attempted(&self, took: Duration) {
        lock(&self.times).record(took);
    }

    /// A result is durable.
    pub(crate) fn settled(&self, state: DeliveryState) {
        let counter = match state {
            DeliveryState::Succeeded => &self.succeeded,
            DeliveryState::Waiting => &self.retried,
            DeliveryState::Dead => &self.dead,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Events were trimmed before they were read.
    pub(crate) fn missed(&self, count: u64) {
        self.missed.fetch_add(count, Ordering::Relaxed);
    }

    /// A webhook was disabled for failing.
    pub(crate) fn disabled(&self) {
        self.disabled.fetch_add(1, Ordering::Relaxed);
    }

    /// How every webhook fares.
    pub(crate) fn now(&self, figures: Vec<HookFigures>) {
        *lock(&self.now) = figures;
    }

    /// The figures for `/metrics`.
    pub(crate) fn families(&self) -> [Family; 6] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut attempts = Family::new(
            Kind::Counter,
            "drover_webhook_attempts_total",
            "Attempts to deliver an event, by what came of them.",
        );
        for (result, counter) in [
            ("succeeded", &self.succeeded),
            ("retried", &self.retried),
            ("dead", &self.dead),
        ] {
            let labels = vec![("result", result.to_owned())];
            attempts = attempts.with(labels, Value::Number(read(counter)));
        }
        let mut lag = Family::new(
            Kind::Gauge,
            "drover_webhook_lag_events",
            "Events that a webhook is behind the newest one.",
        );
        let mut flights = Family::new(
            Kind::Gauge,
            "drover_webhook_attempts_in_flight",
            "Attempts under way.",
        );
        for figures in lock(&self.now).iter() {
            let labels = || vec![("webhook", figures.webhook.to_string())];
            let in_flight = u64::try_from(figures.flights).unwrap_or(u64::MAX);
            lag = lag.with(labels(), Value::Number(figures.lag));
            flights = flights.with(labels(), Value::Number(in_flight));
        }
        let count = |name, help, counter| Family::number(Kind::Counter, name, help, read(counter));
        [
            attempts,
            lag,
            flights,
            count(
                "drover_webhook_events_missed_total",
                "Events that were trimmed before a webhook had read them.",
                &self.missed,
            ),
            count(
                "drover_webhooks_disabled_total",
                "Webhooks that were disabled because nothing reached them.",
                &self.disabled,
            ),
            Family::times(
                "drover_webhook_attempt_seconds",
                "From an attempt's begin to its answer.",
                lock(&self.times).clone(),
            ),
        ]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
