//! Figures with their names, labels and meaning, before anything is written: the parts of the program
//! tell them, and `/metrics` writes them in the format that its reader asks for.

use std::sync::Arc;

use super::Times;

/// Adds the figures of a part of the program. No name comes from two sources.
pub type MetricsSource = Arc<dyn Fn(&mut Vec<Family>) + Send + Sync>;

/// Figures of one name.
#[derive(Clone, Debug)]
pub struct Family {
    /// The whole name; of a counter with `_total`.
    pub name: String,
    /// What it means, for people.
    pub help: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// The figures, each with labels of its own.
    pub samples: Vec<Sample>,
}

/// What kind of figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Times, in seconds outside.
    Histogram,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The figure itself.
    pub value: Value,
}

/// A figure's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(u64),
    /// Of a histogram.
    Times(Box<Times>),
}

impl Family {
    /// A family without figures yet.
    pub fn new(kind: Kind, name: impl Into<String>, help: &'static str) -> Self {
        Self {
            name: name.into(),
            help,
            kind,
            samples: Vec::new(),
        }
    }

    /// With one more figure.
    #[must_use]
    pub fn with(mut self, labels: Vec<(&'static str, String)>, value: Value) -> Self {
        self.samples.push(Sample { labels, value });
        self
    }

    /// A number without labels.
    pub(crate) fn number(kind: Kind, name: &str, help: &'static str, value: u64) -> Self {
        Self::new(kind, name, help).with(Vec::new(), Value::Number(value))
    }

    /// Times without labels.
    pub(crate) fn times(name: &str, help: &'static str, times: Times) -> Self {
        let value = Value::Times(Box::new(times));
        Self::new(Kind::Histogram, name, help).with(Vec::new(), value)
    }
}
