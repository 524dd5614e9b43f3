//! `/v1/histograms`: how long things took over the last hour.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::Deserialize;

use crate::api::Api;
use crate::api::extract::{Params, clip};
use crate::api::model::Timestamp;
use crate::api::model::histograms::{
    HistogramInterval, HistogramName, HistogramNames, HistogramRange,
};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::{self, UnixMs};
use crate::telemetry::{COARSE, Found, Name};

/// A range without a `from` begins so long before its end: all that is kept.
const RANGE: Duration = Duration::from_secs(3600);
/// Seconds of a step.
const STEP_MAX: u64 = 3600;

/// Which times, and how they are told.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RangeParams {
    /// Where the range begins; an hour before its end when left out.
    from: Option<Timestamp>,
    /// Where the range ends; now when left out.
    to: Option<Timestamp>,
    /// Also tell each step of so many seconds. What is older than two minutes has steps of ten seconds
    /// and multiples of it.
    #[param(minimum = 1, maximum = 3600)]
    step: Option<u64>,
    /// Only of this route, such as `GET /v1/agents`; for `api` only.
    route: Option<String>,
    /// `json` (when left out), or `v2`: the whole histogram as HdrHistogram V2, compressed, in base64,
    /// as the tools of HdrHistogram read it.
    #[param(inline)]
    format: Option<Format>,
}

/// How a histogram is told.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Percentiles.
    Json,
    /// Everything.
    V2,
}

/// List histograms
///
/// What is measured, and from where to where.
#[utoipa::path(
    get,
    path = "/v1/histograms",
    tag = "server",
    operation_id = "list_histograms",
    responses((status = 200, description = "Their names.", body = HistogramNames))
)]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<HistogramNames> {
    let describe = |name: &Name| HistogramName {
        name: name.as_str().to_owned(),
        unit: "microseconds".to_owned(),
        about: name.about().to_owned(),
        routes: match name {
            Name::Api => api.telemetry.routes().map(str::to_owned).collect(),
            _ => Vec::new(),
        },
    };
    let since = api.histograms.kept_since();
    Json(HistogramNames {
        items: Name::ALL.iter().map(describe).collect(),
        kept_since: since.map(|(all, _)| Timestamp(all.0)),
    })
}

/// Show a histogram over a range of time
///
/// The last hour is kept, in memory. Percentiles over shards and routes come from their counts added
/// up. With `format=v2` the answer is one line of text: an HdrHistogram (bounds 1 µs to ten minutes,
/// two digits) in its V2 encoding, compressed, in base64.
#[utoipa::path(
    get,
    path = "/v1/histograms/{name}",
    tag = "server",
    operation_id = "get_histogram",
    params(
        ("name" = String, Path, description = "One that `GET /v1/histograms` lists."),
        RangeParams,
    ),
    responses(
        (status = 200, description = "How long it took.", content(
            (HistogramRange = "application/json"),
            (String = "text/plain"),
        )),
        (status = 400, description = "A parameter is not valid."),
        (status = 404, description = "There is no such histogram."),
        (status = 410, description = "The range lies before what is kept."),
    )
)]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    Params(params): Params<RangeParams>,
) -> ApiResult<Response> {
    let name = name(path)?;
    let route = params.route.as_deref();
    check_route(&api, name, route)?;
    let since = api.histograms.kept_since();
    let (from, to) = range(&params, clock::now(), since)?;
    let step = step(&params, from, since)?;
    let found = api.histograms.look(name, route, (from, to), step);
    if params.format == Some(Format::V2) {
        return v2(&found);
    }
    let (begin, end) = found.span.unwrap_or((from, to));
    let mut told = HistogramRange {
        name: name.as_str().to_owned(),
        route: params.route,
        from: Timestamp(begin.0),
        to: Timestamp(end.0),
        intervals: step.map(|_| intervals(&found)),
        ..HistogramRange::default()
    };
    summarise(&mut told, &found);
    Ok(Json(told).into_response())
}

fn name(path: Result<Path<String>, PathRejection>) -> ApiResult<Name> {
    let Path(text) = path.map_err(|_| ApiError::field("name", "is not valid UTF-8"))?;
    Name::parse(&text).ok_or_else(|| {
        let all: Vec<&str> = Name::ALL.iter().map(|name| name.as_str()).collect();
        ApiError::new(
            Kind::NotFound,
            format!(
                "There is no histogram `{}`; there are {}.",
                clip(&text),
                all.join(", ")
            ),
        )
    })
}

fn check_route(api: &Api, name: Name, route: Option<&str>) -> ApiResult<()> {
    let Some(route) = route else {
        return Ok(());
    };
    if name != Name::Api {
        let detail = format!("`{name}` has no routes, only `api` has; leave it out");
        return Err(ApiError::field("route", detail));
    }
    if api.telemetry.routes().any(|known| known == route) {
        return Ok(());
    }
    let detail = format!(
        "there is no route `{}`; GET /v1/histograms lists them, such as `GET /v1/agents`",
        clip(route)
    );
    Err(ApiError::field("route", detail))
}

fn range(
    params: &RangeParams,
    now: UnixMs,
    since: Option<(UnixMs, UnixMs)>,
) -> ApiResult<(UnixMs, UnixMs)> {
    let to = params.to.map_or(now, |at| UnixMs(at.0));
    let from = params.from.map_or(to.minus(RANGE), |at| UnixMs(at.0));
    if from >= to {
        let detail = format!(
            "is {}, and `to` is {}: it must be before",
            Timestamp(from.0),
            Timestamp(to.0)
        );
        return Err(ApiError::field("from", detail));
    }
    match since {
        Some((all, _)) if to <= all => Err(ApiError::new(
            Kind::NotKept,
            format!(
                "Nothing of that time is kept any more; ask for what is newer than {}, or read the \
                 files in `histograms` in the server's data directory.",
                Timestamp(all.0)
            ),
        )),
        Some(_) | None => Ok((from, to)),
    }
}

/// A step in milliseconds.
fn step(
    params: &RangeParams,
    from: UnixMs,
    since: Option<(UnixMs, UnixMs)>,
) -> ApiResult<Option<u64>> {
    let Some(seconds) = params.step else {
        return Ok(None);
    };
    let wrong = |detail: String| Err(ApiError::field("step", detail));
    if params.format == Some(Format::V2) {
        return wrong("a V2 histogram has no steps; leave it out, or ask for JSON".to_owned());
    }
    if !(1..=STEP_MAX).contains(&seconds) {
        return wrong(format!(
            "is {seconds}; it must be 1 to {STEP_MAX} (seconds)"
        ));
    }
    let step = seconds * 1000;
    // This also bounds the steps of an answer: an hour has 360 of them.
    if let Some((all, fine)) = since
        && from.max(all) < fine
        && step % COARSE != 0
    {
        return wrong(format!(
            "is {seconds}, and what is older than {} is kept in steps of ten seconds: ask for a \
             multiple of 10, or a later `from`",
            Timestamp(fine.0)
        ));
    }
    Ok(Some(step))
}

fn intervals(found: &Found) -> Vec<HistogramInterval> {
    let steps = found.steps.iter();
    steps
        .map(|step| HistogramInterval {
            from: Timestamp(step.from.0),
            bins: step.bins.clone(),
        })
        .collect()
}

fn summarise(told: &mut HistogramRange, found: &Found) {
    let histogram = found.times.histogram();
    told.count = histogram.len();
    if histogram.is_empty() {
        return;
    }
    let quantile = |q| Some(histogram.value_at_quantile(q));
    told.min_us = Some(histogram.min());
    told.mean_us = Some(found.times.sum_us() as f64 / histogram.len() as f64);
    told.p50_us = quantile(0.5);
    told.p90_us = quantile(0.9);
    told.p99_us = quantile(0.99);
    told.p999_us = quantile(0.999);
    told.p9999_us = quantile(0.9999);
    told.max_us = Some(histogram.max());
}

fn v2(found: &Found) -> ApiResult<Response> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(found.times.histogram(), &mut bytes)
        .map_err(|error| {
            tracing::error!(%error, "a histogram could not be written");
            ApiError::new(Kind::Internal, "The histogram could not be written.")
        })?;
    let format = "text/plain; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, format)], STANDARD.encode(bytes)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(from: Option<u64>, to: Option<u64>, step: Option<u64>) -> RangeParams {
        let at = |seconds: u64| Timestamp(seconds * 1000);
        RangeParams {
            from: from.map(at),
            to: to.map(at),
            step,
            route: None,
            format: None,
        }
    }

    /// Kept since second 1000, by the second since 4480; now it is second 4600.
    fn ask(from: Option<u64>, to: Option<u64>, step_s: Option<u64>) -> ApiResult<Option<u64>> {
        let at = |seconds: u64| UnixMs(seconds * 1000);
        let since = Some((at(1000), at(4480)));
        let params = params(from, to, step_s);
        let range = range(&params, at(4600), since)?;
        step(&params, range.0, since)
    }

    #[test]
    fn a_range_has_a_length_and_lies_where_something_is_kept() {
        assert_eq!(ask(None, None, None).unwrap(), None);
        assert_eq!(ask(Some(999), Some(1001), None).unwrap(), None);
        assert_eq!(ask(Some(998), Some(1000), None).unwrap_err().status(), 410);
        assert_eq!(ask(Some(2000), Some(2000), None).unwrap_err().status(), 400);
        // Nothing was kept yet: nothing is missing.
        let asked = params(Some(1), Some(2), Some(1));
        let range = range(&asked, UnixMs(9000), None).unwrap();
        assert_eq!(range, (UnixMs(1000), UnixMs(2000)));
        assert_eq!(step(&asked, range.0, None).unwrap(), Some(1000));
    }

    #[test]
    fn steps_are_bounded_and_as_fine_as_what_is_kept() {
        assert_eq!(ask(None, None, Some(10)).unwrap(), Some(10_000));
        assert_eq!(ask(Some(4480), None, Some(1)).unwrap(), Some(1000));
        for (from, step) in [(4479, 1), (1000, 15), (4480, 0), (4480, 3601)] {
            let refused = ask(Some(from), None, Some(step)).unwrap_err();
            assert_eq!(refused.status(), 400, "{from} {step}");
        }
    }
}
