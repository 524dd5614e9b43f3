//! One look at the figures, as text or as the server's own document.

use std::time::Duration;

use control::api::model::overview::Overview;
use serde_json::value::RawValue;

use super::figures::{Figures, Series, Sort};
use super::format::{NONE, bytes, count, count_or_none, micros, rate, span, words};
use super::read;
use crate::cli::client::Client;
use crate::cli::{Output, print};
use crate::fault::{Exit, Fault};

/// The server makes a document at most this often.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Groups that are listed.
const GROUPS_MAX: usize = 100;

/// Prints the figures. Rates are between two looks: where nobody has looked lately, it looks twice.
pub(super) async fn run(client: &Client, output: Output) -> Result<Exit, Fault> {
    let path = ["v1", "overview"];
    let mut document: Box<RawValue> = client.get(&path, &[]).await?;
    let mut overview = read(document.get())?;
    if overview.rates.is_empty() {
        tokio::time::sleep(SECOND_LOOK).await;
        document = client.get(&path, &[]).await?;
        overview = read(document.get())?;
    }
    if output.is_json() {
        print::line(document.get())?;
    } else {
        print::line(&text(&Figures::new(overview, Sort::Missing)))?;
    }
    Ok(Exit::Success)
}

fn text(figures: &Figures) -> String {
    let overview = figures.overview();
    [
        facts(overview),
        print::table(
            ["PER SECOND", "NOW"],
            Series::RATES.map(|series| {
                let now = series.of(overview).map_or(NONE.to_owned(), rate);
                [series.label().to_owned(), now]
            }),
            "",
        ),
        shards(overview),
        groups(figures),
        counts(
            ["PROCESSES", "NOW, OR ENDED SO"],
            &overview.processes.by_state,
        ),
        counts(["WAITING ON", "NOW"], &overview.processes.waiting_on),
        latency(overview),
        failures(overview),
    ]
    .join("\n")
}

fn facts(overview: &Overview) -> String {
    let (server, sessions) = (&overview.server, &overview.sessions);
    let (store, datapath) = (&overview.store, &overview.datapath);
    let up = span(server.uptime_seconds);
    print::facts(&[
        ("at", Some(overview.at.to_string())),
        (
            "server",
            Some(format!(
                "{}, up {up}, version {}, profile {}",
                print::word(&server.state),
                server.version,
                server.profile
            )),
        ),
        ("store error", store.error.clone()),
        (
            "sessions",
            Some(format!(
                "{} of {}, {} half-open; {} begun, {} ended",
                count(sessions.up),
                count(sessions.known),
                count_or_none(sessions.half_open),
                count(sessions.begun),
                count(sessions.ended)
            )),
        ),
        (
            "cpu",
            server.cpu_cores.map(|cores| format!("{cores:.2} cores")),
        ),
        ("memory", server.rss_bytes.map(bytes)),
        (
            "store",
            Some(format!(
                "{} commits, {} failed",
                count(store.commits),
                count(store.failed_commits)
            )),
        ),
        (
            "datapath",
            Some(format!(
                "{}, {} dropped",
                datapath.kind.as_deref().unwrap_or(NONE),
                count_or_none(datapath.dropped)
            )),
        ),
        (
            "found full",
            Some(format!(
                "{} uplink, {} mailbox, {} downlink; {} wait",
                count_or_none(datapath.uplink_full),
                count_or_none(datapath.mailbox_full),
                count(datapath.downlink_full),
                count(datapath.outbox)
            )),
        ),
    ])
}

fn shards(overview: &Overview) -> String {
    print::table(
        ["SHARD", "SESSIONS", "AT HOME", "HALF-OPEN"],
        overview.sessions.by_shard.iter().map(|shard| {
            [
                shard.shard.to_string(),
                count(shard.sessions),
                count(shard.at_home),
                count_or_none(shard.half_open),
            ]
        }),
        "no shard holds a session\n",
    )
}

fn groups(figures: &Figures) -> String {
    let shown = figures.groups().min(GROUPS_MAX);
    let mut text = print::table(
        ["GROUP", "SESSIONS", "AGENTS"],
        (0..shown)
            .filter_map(|place| figures.group(place))
            .map(|group| [group.name.clone(), count(group.up), count(group.known)]),
        "no group has agents\n",
    );
    let hidden = figures.groups() - shown;
    if hidden > 0 {
        text.push_str(&format!(
            "({} more are not shown; `drover groups list` lists them)\n",
            count(hidden as u64)
        ));
    }
    text
}

fn counts<'a>(
    header: [&str; 2],
    counts: impl IntoIterator<Item = (&'a String, &'a u64)>,
) -> String {
    let rows = counts.into_iter();
    print::table(
        header,
        rows.map(|(name, number)| [words(name), count(*number)]),
        "",
    )
}

fn latency(overview: &Overview) -> String {
    print::table(
        [
            "SINCE THE START",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "MAX",
            "COUNT",
        ],
        overview.latency.iter().map(|(name, took)| {
            [
                words(name),
                micros(took.p50_us),
                micros(took.p90_us),
                micros(took.p99_us),
                micros(took.p999_us),
                micros(took.max_us),
                count(took.count),
            ]
        }),
        "nothing has been measured yet\n",
    )
}

fn failures(overview: &Overview) -> String {
    print::table(
        ["FAILED AT", "KIND", "PROCESS", "MESSAGE"],
        overview.processes.newest_failures.iter().map(|failure| {
            [
                failure.at.to_string(),
                failure.kind.clone(),
                failure.process.to_string(),
                failure.message.clone(),
            ]
        }),
        "no process that is still kept has failed\n",
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_part_of_the_overview_is_in_the_text() {
        let text = text(&Figures::new(sample::overview(), Sort::Missing));
        for part in [
            "ready, up 3 h 20 min, version 0.1.0, profile all",
            "19 of 21, 2 half-open; 1,204 begun, 1,185 ended",
            "uring, 0 dropped",
            "commands         1,234",
            "turned away      1.5",
            "handshakes       0.4",
            "commits          –",
            "rack-7  9         11",
            "permit      3",
            "store commit     950 µs  1.40 ms  12.3 ms  54.0 ms  120 ms  4,321",
            "exit code 7",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("store error"), "{text}");
    }

    #[test]
    fn a_long_list_of_groups_says_what_it_leaves_out() {
        let mut overview = sample::overview();
        overview.sessions.by_group = (0..10_000)
            .map(|n| sample::group(&format!("g{n}"), 1, 1))
            .collect();
        let text = groups(&Figures::new(overview, Sort::Missing));
        assert!(text.contains("(9,900 more are not shown"), "{text}");
        assert_eq!(text.lines().count(), 1 + GROUPS_MAX + 1);
    }
}
