//! What Drover is to reach beside its peers, as data, and whether a comparison shows it.

use serde::{Deserialize, Serialize};

use super::model::{Comparison, DROVER, MeasureInfo, Row, Spread, is_drover};

/// The size of the fleet for which the targets are made. Other comparisons are not judged.
pub const SESSIONS: usize = 10_000;

/// One thing to reach.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// A [`MeasureInfo::id`].
    pub measure: &'static str,
    /// What Drover's figure is divided by.
    pub against: Against,
    /// Met up to this, inclusive.
    pub at_most: f64,
    /// What would be better still.
    pub stretch: Option<f64>,
}

/// What Drover's figure is divided by.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// Nothing: the figure itself, in its own unit.
    Nothing,
    /// A peer or a floor of this name.
    One(&'static str),
    /// Drover's own figure for another measure.
    Own(&'static str),
    /// Whichever other peer comes off best against Drover.
    EveryPeer,
}

const fn target(measure: &'static str, against: Against, at_most: f64) -> Target {
    Target {
        measure,
        against,
        at_most,
        stretch: None,
    }
}

impl Target {
    const fn stretch(mut self, to: f64) -> Self {
        self.stretch = Some(to);
        self
    }
}

/// All of them. CPU figures are those of the whole process.
pub const TARGETS: &[Target] = &[
    target("session_rss", Against::Nothing, 14.0).stretch(11.0),
    target("session_rss", Against::One("quinn"), 0.40),
    target("session_rss", Against::One("s2n-quic"), 0.80),
    target("handshake_cpu_net", Against::One("in-memory"), 1.15),
    target("handshake_cpu_net", Against::One("quinn"), 0.85),
    target("command_cpu_10000", Against::One("quinn"), 0.70),
    target("command_cpu_10000", Against::One("s2n-quic"), 0.85),
    target("command_cpu_10000", Against::One("tonic"), 1.0).stretch(0.7),
    target("command_cpu_10000", Against::One("nats"), 0.4),
    target("command_cpu_10000", Against::Own("command_cpu_100"), 1.8),
    target("idle_cpu", Against::Nothing, 2.0),
    target("idle_cpu", Against::One("s2n-quic"), 0.8),
    target("idle_cpu", Against::One("tonic"), 0.8),
    target("rtt_p50", Against::EveryPeer, 1.0),
    target("rtt_p99", Against::EveryPeer, 1.0),
    target("rtt_p999", Against::EveryPeer, 1.0),
];

/// A target, and what a comparison found. The verdict goes by the median over the rounds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// A [`MeasureInfo::id`].
    pub measure: String,
    /// Its label.
    pub label: String,
    /// What Drover's figure is divided by: a peer, a floor or a measure of Drover's own; `None`:
    /// the figure itself.
    pub against: Option<String>,
    /// The measure's unit, or `×` of a ratio.
    pub unit: String,
    /// Met up to this, inclusive.
    pub at_most: f64,
    /// What would be better still.
    pub stretch: Option<f64>,
    /// Of the whole process.
    pub found: Found,
    /// Of the gateway's thread alone, where it is measured. Shown, never the verdict.
    pub part: Option<Found>,
}

/// A figure and what it means.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Over the rounds; `None`: not measured.
    pub spread: Option<Spread>,
    /// What it means.
    pub verdict: Verdict,
}

/// What a figure means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Reached, and the stretch too.
    Stretch,
    /// Reached.
    Met,
    /// Not reached.
    Missed,
    /// This comparison cannot say.
    NotMeasured,
}

impl Verdict {
    /// In a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stretch => "met (stretch)",
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Found {
    fn of(spread: Option<Spread>, target: &Target) -> Self {
        let verdict = match spread.map(|spread| spread.median) {
            None => Verdict::NotMeasured,
            Some(median) if target.stretch.is_some_and(|stretch| median <= stretch) => {
                Verdict::Stretch
            }
            Some(median) if median <= target.at_most => Verdict::Met,
            Some(_) => Verdict::Missed,
        };
        Self { spread, verdict }
    }
}

/// Judges all targets; none where the fleet has another size than they are made for.
pub(super) fn judge(comparison: &Comparison) -> Vec<Judged> {
    if comparison.plan.sessions != SESSIONS {
        return Vec::new();
    }
    TARGETS
        .iter()
        .map(|target| judge_one(comparison, target))
        .collect()
}

fn judge_one(comparison: &Comparison, target: &Target) -> Judged {
    let whole = measure(comparison, target.measure);
    let part = comparison
        .measures
        .iter()
        .find(|part| part.part_of.as_deref() == Some(target.measure));
    let (against, spread) = whole.map_or((None, None), |m| found(comparison, target, m));
    let unit = match target.against {
        Against::Nothing => whole.map_or("", |measure| &measure.unit),
        _ => "×",
    };
    Judged {
        measure: target.measure.to_owned(),
        label: whole
            .map_or(target.measure, |measure| &measure.label)
            .to_owned(),
        against: against.or_else(|| name(target.against)),
        unit: unit.to_owned(),
        at_most: target.at_most,
        stretch: target.stretch,
        found: Found::of(spread, target),
        part: part.map(|part| Found::of(found(comparison, target, part).1, target)),
    }
}

fn name(against: Against) -> Option<String> {
    let name = match against {
        Against::Nothing => return None,
        Against::One(name) | Against::Own(name) => name,
        Against::EveryPeer => "every peer",
    };
    Some(name.to_owned())
}

fn measure<'a>(comparison: &'a Comparison, id: &str) -> Option<&'a MeasureInfo> {
    let mut measures = comparison.measures.iter();
    measures.find(|measure| measure.id == id)
}

/// What it was divided by, where that was chosen here, and the figure.
fn found(
    comparison: &Comparison,
    target: &Target,
    measured: &MeasureInfo,
) -> (Option<String>, Option<Spread>) {
    let mut rows = comparison.summary.iter();
    let Some(row) = rows.find(|row| row.measure == measured.id) else {
        return (None, None);
    };
    match target.against {
        Against::Nothing => (None, row.peers.get(DROVER).copied()),
        Against::One(name) => (None, row.ratios.get(name).copied()),
        Against::EveryPeer => match hardest(row) {
            Some((name, spread)) => (Some(format!("{name} (the best peer)")), Some(spread)),
            None => (None, None),
        },
        Against::Own(other) => {
            let label = measure(comparison, other).map(|other| format!("Drover's {}", other.label));
            (label, growth(comparison, measured, other))
        }
    }
}

/// The peer that Drover has most to do to keep up with.
fn hardest(row: &Row) -> Option<(&str, Spread)> {
    row.ratios
        .iter()
        .filter(|(name, _)| row.peers.contains_key(*name) && !is_drover(name))
        .max_by(|(_, one), (_, other)| one.median.total_cmp(&other.median))
        .map(|(name, spread)| (name.as_str(), *spread))
}

/// Drover's figure ÷ its figure for another measure, within each round; parts by parts.
fn growth(comparison: &Comparison, measured: &MeasureInfo, other: &str) -> Option<Spread> {
    let other = match &measured.part_of {
        None => measure(comparison, other)?,
        Some(_) => {
            let mut parts = comparison.measures.iter();
            parts.find(|part| part.part_of.as_deref() == Some(other))?
        }
    };
    let value = |measure, round| comparison.value(measure, DROVER, round);
    let ratios = (1..=comparison.plan.rounds)
        .filter_map(|round| Some(value(measured, round)? / value(other, round)?));
    Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::made_up::{empty, floor, measure, peer, run};
    use crate::compare::measures;

    /// A comparison that has every measure; figures are chosen by the test.
    fn comparison(figures: &[(&str, &[(&str, f64)])]) -> Comparison {
        let mut comparison = empty(SESSIONS, 1);
        comparison.measures = measures::infos(SESSIONS, &[100, 1_000, 10_000]);
        comparison.peers = figures.iter().map(|(name, _)| peer(name)).collect();
        comparison.runs = figures
            .iter()
            .map(|(name, values)| run(name, 1, values))
            .collect();
        comparison
    }

    fn judged<'a>(comparison: &'a Comparison, measure: &str, against: Option<&str>) -> &'a Judged {
        let found = comparison
            .targets
            .iter()
            .find(|j| j.measure == measure && j.against.as_deref() == against);
        found.unwrap_or_else(|| panic!("{measure} {against:?} in {:#?}", comparison.targets))
    }

    #[test]
    fn every_target_names_a_measure() {
        let infos = measures::infos(SESSIONS, &[100, 1_000, 10_000]);
        let known = |id: &str| infos.iter().any(|info| info.id == id);
        for target in TARGETS {
            assert!(known(target.measure), "{}", target.measure);
            if let Against::Own(other) = target.against {
                assert!(known(other), "{other}");
            }
        }
    }

    #[cfg(feature = "peers")]
    #[test]
    fn every_target_names_a_peer_or_a_floor() {
        for target in TARGETS {
            if let Against::One(name) = target.against {
                assert!(
                    name == "in-memory" || crate::peers::find(name).is_ok(),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_limit_is_met_on_it_and_missed_above_it() {
        let verdict = |rss: f64| {
            let mut comparison = comparison(&[(DROVER, &[("session_rss", rss)])]);
            comparison.summarise();
            let judged = judged(&comparison, "session_rss", None);
            assert_eq!(judged.unit, "KiB");
            judged.found.verdict
        };
        assert_eq!(verdict(11.0), Verdict::Stretch);
        assert_eq!(verdict(11.1), Verdict::Met);
        assert_eq!(verdict(14.0), Verdict::Met);
        assert_eq!(verdict(14.1), Verdict::Missed);
    }

    #[test]
    fn the_whole_process_is_judged_and_the_gateway_alone_is_beside_it() {
        let mut comparison = comparison(&[
            (
                DROVER,
                &[
                    ("command_cpu_10000", 90.0),
                    ("command_cpu_10000_shard", 60.0),
                ],
            ),
            ("quinn", &[("command_cpu_10000", 100.0)]),
        ]);
        comparison.summarise();
        let quinn = judged(&comparison, "command_cpu_10000", Some("quinn"));
        assert_eq!(quinn.found.verdict, Verdict::Missed);
        assert_eq!(quinn.part.unwrap().verdict, Verdict::Met);
        assert_eq!(quinn.part.unwrap().spread.unwrap().median, 0.6);
        let nats = judged(&comparison, "command_cpu_10000", Some("nats"));
        assert_eq!(nats.found.verdict, Verdict::NotMeasured);
    }

    #[test]
    fn the_best_peer_counts_and_no_variant_of_drover() {
        let mut comparison = comparison(&[
            (DROVER, &[("rtt_p99", 2.0)]),
            ("drover-direct", &[("rtt_p99", 0.1)]),
            ("quinn", &[("rtt_p99", 4.0)]),
            ("tonic", &[("rtt_p99", 1.0)]),
        ]);
        comparison.summarise();
        let found = judged(&comparison, "rtt_p99", Some("tonic (the best peer)"));
        assert_eq!(found.found.spread.unwrap().median, 2.0);
        assert_eq!(found.found.verdict, Verdict::Missed);
    }

    #[test]
    fn growth_is_within_drover_and_floors_bound_handshakes() {
        let mut comparison = comparison(&[(
            DROVER,
            &[
                ("command_cpu_100", 50.0),
                ("command_cpu_10000", 100.0),
                ("command_cpu_100_shard", 40.0),
                ("command_cpu_10000_shard", 60.0),
                ("handshake_cpu_net", 400.0),
            ],
        )]);
        let floor = floor("in-memory", "handshake_cpu_net", 1, 400.0);
        comparison.floors.push(floor);
        comparison.summarise();
        let label = "Drover's server CPU of a command, 100 sessions";
        let growth = judged(&comparison, "command_cpu_10000", Some(label));
        assert_eq!(growth.found.verdict, Verdict::Missed);
        assert_eq!(growth.part.unwrap().spread.unwrap().median, 1.5);
        let handshake = judged(&comparison, "handshake_cpu_net", Some("in-memory"));
        assert_eq!(handshake.found.verdict, Verdict::Met);
    }

    #[test]
    fn fleets_of_another_size_are_not_judged() {
        let mut comparison = empty(SESSIONS / 10, 1);
        comparison.measures = vec![measure("session_rss", None)];
        comparison.runs = vec![run(DROVER, 1, &[("session_rss", 1.0)])];
        comparison.summarise();
        assert!(comparison.targets.is_empty());
    }
}
