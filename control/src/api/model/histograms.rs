//! How long things took over the last hour.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

/// What is measured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistogramNames {
    /// Every histogram.
    pub items: Vec<HistogramName>,
    /// Since when they are kept: the server's start, or an hour ago. Absent in the first moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_since: Option<Timestamp>,
}

/// A histogram.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistogramName {
    /// Its name.
    pub name: String,
    /// What its values are: `microseconds`.
    pub unit: String,
    /// From where to where it measures.
    pub about: String,
    /// What the parameter `route` takes; only `api` has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}

/// How long something took in a range of time. Times are in microseconds, to within 1 %.
///
/// Percentiles come from all counts of the range together. Those of a range in which nothing was
/// counted are absent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct HistogramRange {
    /// The histogram's name.
    pub name: String,
    /// The route, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Where what was found begins: the server looks once a second, and keeps what is older than two
    /// minutes in pieces of ten seconds. A piece belongs to a range when its middle does.
    pub from: Timestamp,
    /// Where what was found ends.
    pub to: Timestamp,
    /// How many there were.
    pub count: u64,
    /// The shortest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_us: Option<u64>,
    /// The mean, exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_us: Option<f64>,
    /// Half took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 90 of 100 took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90_us: Option<u64>,
    /// 99 of 100 took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// 999 of 1,000 took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999_us: Option<u64>,
    /// 9,999 of 10,000 took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p9999_us: Option<u64>,
    /// The longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_us: Option<u64>,
    /// Step by step, in order; steps without a count are left out. Only with `step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<HistogramInterval>>,
}

/// One step of a range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistogramInterval {
    /// Where it begins: a multiple of the step.
    pub from: Timestamp,
    /// `[low, high, count]`: so many took at least `low` and less than `high` microseconds. A bin is
    /// at most 7 % wide; empty ones are left out.
    #[schema(example = json!([[480, 496, 3], [512, 544, 1]]))]
    pub bins: Vec<[u64; 3]>,
}
