//! What the API measures about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};

use super::access::ROUTES;
use crate::telemetry::metrics::{Family, Kind, Value};
use crate::telemetry::{Name, Reading, Times};

/// Requests that fit no route of the table: wrong paths and methods, and the dashboard's files.
const OTHER: &str = "other";

/// Counters since the start.
pub(crate) struct Telemetry {
    /// By hundreds of the status: 1xx, 2xx, …
    by_status: [AtomicU64; 5],
    /// As [`ROUTES`], and [`OTHER`] at the end: what strangers ask for makes no more of them.
    routes: Vec<Route>,
}

struct Route {
    name: String,
    /// From a request's head to the head of its answer; nothing before the first.
    answers: Mutex<Option<Times>>,
}

impl Route {
    fn new(name: String) -> Self {
        Self {
            name,
            answers: Mutex::default(),
        }
    }

    fn answers(&self) -> MutexGuard<'_, Option<Times>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let known = ROUTES.iter();
        let names = known.map(|(method, path, _)| format!("{method} {path}"));
        let names = names.chain(std::iter::once(OTHER.to_owned()));
        Self {
            by_status: Default::default(),
            routes: names.map(Route::new).collect(),
        }
    }

    /// A request was answered; the first byte of the answer took so long.
    pub(super) fn answered(
        &self,
        method: &Method,
        path: Option<&str>,
        status: StatusCode,
        took: Duration,
    ) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.by_status[class].fetch_add(1, Ordering::Relaxed);
        let place = ROUTES
            .iter()
            .position(|(of, route, _)| of == method && Some(*route) == path)
            .unwrap_or(ROUTES.len());
        let mut answers = self.routes[place].answers();
        answers.get_or_insert_with(Times::new).record(took);
    }

    /// A request was refused before anybody looked at what it asks for.
    pub(super) fn refused(&self) {
        self.by_status[3].fetch_add(1, Ordering::Relaxed);
    }

    /// The names of all routes, as [`read`](Self::read) tells them.
    pub(super) fn routes(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|route| route.name.as_str())
    }

    /// Tells the latencies of every route that was asked for.
    pub(crate) fn read(&self, tell: &mut dyn FnMut(Reading<'_>)) {
        for route in &self.routes {
            if let Some(times) = &*route.answers() {
                tell(Reading {
                    name: Name::Api,
                    route: Some(&route.name),
                    histogram: times.histogram(),
                    sum_us: times.sum_us(),
                });
            }
        }
    }

    /// The figures for `/metrics`.
    pub(super) fn families(&self) -> [Family; 2] {
        let mut requests = Family::new(
            Kind::Counter,
            "drover_api_requests_total",
            "Requests answered, by class of status.",
        );
        for (class, count) in (1..).zip(&self.by_status) {
            let value = Value::Number(count.load(Ordering::Relaxed));
            requests = requests.with(vec![("status", format!("{class}xx"))], value);
        }
        let mut answers = Family::new(
            Kind::Histogram,
            "drover_api_answer_seconds",
            "From a request's head to the head of its answer, by route.",
        );
        for route in &self.routes {
            if let Some(times) = &*route.answers() {
                let value = Value::Times(Box::new(times.clone()));
                answers = answers.with(vec![("route", route.name.clone())], value);
            }
        }
        [requests, answers]
    }
}
