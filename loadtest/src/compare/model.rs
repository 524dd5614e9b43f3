//! The document that `compare --json` writes: every run as it was, and the ratios made of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::targets::{self, Judged};

/// The version of this shape. Raised when a field changes its meaning.
pub const SCHEMA: u32 = 1;
/// The peer that all others are compared with. Its variants' names begin with it.
pub const DROVER: &str = "drover";

/// Whether this peer is Drover in some variant.
pub fn is_drover(peer: &str) -> bool {
    peer.strip_prefix(DROVER)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// One comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began: `YYYY-MM-DD-HHMMSS`, UTC.
    pub date: String,
    /// The commit that was built, `+dirty` behind it where files differed.
    pub commit: String,
    /// The command line.
    pub command: Vec<String>,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked of every peer.
    pub plan: Plan,
    /// The peers in the order of their first turn.
    pub peers: Vec<PeerInfo>,
    /// The measures, in the order in which to show them.
    pub measures: Vec<MeasureInfo>,
    /// One entry a peer and round, in the order in which they ran.
    pub runs: Vec<Run>,
    /// One entry a floor and round.
    pub floors: Vec<FloorRun>,
    /// Medians over the rounds, and Drover's ratio to each peer.
    pub summary: Vec<Row>,
    /// What was to be reached, and what was; empty for a fleet of another size than
    /// [`targets::SESSIONS`].
    #[serde(default)]
    pub targets: Vec<Judged>,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Processors that this process could see.
    pub cpus: usize,
    /// Main memory.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Open files allowed (hard limit); TCP peers hold a file a session.
    pub open_files: u64,
    /// 1-minute load average before the first run: above about 0.5 other work disturbed the times.
    pub load_before: f64,
}

/// What was asked of every peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The greatest number of sessions.
    pub sessions: usize,
    /// Alternating rounds.
    pub rounds: u32,
    /// Bytes of a command's payload, and of its answer's.
    pub payload_bytes: usize,
    /// Keep-alive of each session, in seconds.
    pub keep_alive_seconds: f64,
    /// New sessions a second at most while the fleet comes up.
    pub connect_rate: f64,
    /// Commands a second for the CPU measures.
    pub command_rate: f64,
    /// Commands a second for the round-trip times.
    pub round_trip_rate: f64,
    /// How long the idle fleet was watched, in seconds.
    pub idle_seconds: f64,
}

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its short name, unique: `quinn-tuned`.
    pub name: String,
    /// What it is, in one line, with its version.
    pub about: String,
    /// Whether commands come from a client of a broker (not on the server's bill) rather than from
    /// within the server.
    pub broker: bool,
}

/// One measure. Less is better in all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasureInfo {
    /// Its short name, unique: `command_cpu_10000`.
    pub id: String,
    /// For people.
    pub label: String,
    /// `KiB`, `µs`, `%`, `ms` …
    pub unit: String,
    /// Of Drover this is the gateway's thread alone, a part of the measure of this id, without the
    /// stand-in of the control plane; beside it stand the whole processes of the other peers.
    #[serde(default)]
    pub part_of: Option<String>,
}

/// One peer's turn in one round: a fresh server, a fresh fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which peer.
    pub peer: String,
    /// Which round, from 1.
    pub round: u32,
    /// Its place in the round, from 1.
    pub turn: u32,
    /// How long the turn took, in seconds.
    pub took_seconds: f64,
    /// By measure id. One that could not be taken is absent; `notes` says why.
    pub values: BTreeMap<String, f64>,
    /// Command round-trips by load, such as `round_trip`.
    pub histograms: BTreeMap<String, HistogramBlob>,
    /// What went wrong or must be known.
    pub notes: Vec<String>,
}

/// A whole histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistogramBlob {
    /// Of the recorded values: `ns`.
    pub unit: String,
    /// HdrHistogram V2 (not deflated), in standard base64.
    pub v2_base64: String,
    /// Commands sent.
    pub sent: u64,
    /// Answers received. What had none in time is in the histogram with the time it was waited for.
    pub answered: u64,
}

/// A floor in one round: what crypto and kernel cost without a server around them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FloorRun {
    /// Its name: `handshake`, `datagram`.
    pub floor: String,
    /// In one line.
    pub about: String,
    /// The measure that it bounds: a [`MeasureInfo::id`].
    pub measure: String,
    /// Which round, from 1.
    pub round: u32,
    /// In the measure's unit.
    pub value: f64,
}

/// One measure over all rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// A [`MeasureInfo::id`].
    pub measure: String,
    /// By peer.
    pub peers: BTreeMap<String, Spread>,
    /// By floor.
    pub floors: BTreeMap<String, Spread>,
    /// Drover ÷ peer (or floor), made within each round. Below 1 Drover is better. In a measure
    /// that is a part (see [`MeasureInfo::part_of`]): Drover's part ÷ the peer's whole.
    pub ratios: BTreeMap<String, Spread>,
}

/// A figure over the rounds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; the mean of the two middle ones.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many rounds it is made of.
    pub rounds: usize,
}

impl Spread {
    /// Of values in any order; nothing of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self {
            median,
            min,
            max,
            rounds: values.len(),
        })
    }
}

impl Comparison {
    /// Makes [`Comparison::summary`] and [`Comparison::targets`] of the runs and floors.
    pub fn summarise(&mut self) {
        self.summary = self
            .measures
            .iter()
            .map(|measure| self.row(measure))
            .collect();
        self.targets = targets::judge(self);
    }

    /// What a peer's turn had. Where a measure is a part of Drover's process, the other peers have
    /// the whole of theirs.
    pub(super) fn value(&self, measure: &MeasureInfo, peer: &str, round: u32) -> Option<f64> {
        let run = |run: &&Run| run.peer == peer && run.round == round;
        let id = match &measure.part_of {
            Some(whole) if !is_drover(peer) => whole,
            _ => &measure.id,
        };
        self.runs.iter().find(run)?.values.get(id).copied()
    }

    fn row(&self, measure: &MeasureInfo) -> Row {
        let value = |peer: &str, round: u32| self.value(measure, peer, round);
        let rounds = 1..=self.plan.rounds;
        let mut row = Row {
            measure: measure.id.clone(),
            peers: BTreeMap::new(),
            floors: BTreeMap::new(),
            ratios: BTreeMap::new(),
        };
        for peer in &self.peers {
            let name = &peer.name;
            let values = rounds.clone().filter_map(|round| value(name, round));
            if let Some(spread) = Spread::of(values.collect()) {
                row.peers.insert(name.clone(), spread);
            }
            let ratios = rounds
                .clone()
                .filter_map(|round| Some(value(DROVER, round)? / value(name, round)?));
            if name != DROVER
                && let Some(spread) = Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())
            {
                row.ratios.insert(name.clone(), spread);
            }
        }
        let mut floors: BTreeMap<&str, Vec<&FloorRun>> = BTreeMap::new();
        let bounded = measure.part_of.as_ref().unwrap_or(&measure.id);
        for floor in self.floors.iter().filter(|floor| floor.measure == *bounded) {
            floors.entry(&floor.floor).or_default().push(floor);
        }
        for (name, runs) in floors {
            let values = runs.iter().map(|run| run.value).collect();
            if let Some(spread) = Spread::of(values) {
                row.floors.insert(name.to_owned(), spread);
            }
            let ratios = runs
                .iter()
                .filter_map(|run| Some(value(DROVER, run.round)? / run.value));
            if let Some(spread) = Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect()) {
                row.ratios.insert(name.to_owned(), spread);
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::compare::made_up;

    fn run(peer: &str, round: u32, value: f64) -> Run {
        made_up::run(peer, round, &[("cpu", value)])
    }

    fn comparison() -> Comparison {
        Comparison {
            measures: vec![made_up::measure("cpu", None)],
            ..made_up::empty(10, 3)
        }
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        let mut comparison = comparison();
        // The machine was twice as slow in round 2: no ratio may mix the rounds.
        comparison.runs = vec![
            run(DROVER, 1, 5.0),
            run("quinn", 1, 10.0),
            run("quinn", 2, 20.0),
            run(DROVER, 2, 10.0),
            run(DROVER, 3, 6.0),
        ];
        comparison.summarise();
        let row = &comparison.summary[0];
        let half = Spread {
            median: 0.5,
            min: 0.5,
            max: 0.5,
            rounds: 2,
        };
        assert_eq!(row.ratios["quinn"], half);
        assert_eq!(row.peers[DROVER].median, 6.0);
        assert!(!row.ratios.contains_key(DROVER));
    }

    #[test]
    fn a_part_of_drover_stands_beside_the_whole_of_the_others() {
        let mut comparison = comparison();
        comparison
            .measures
            .push(made_up::measure("cpu_shard", Some("cpu")));
        let mut drover = run(DROVER, 1, 8.0);
        drover.values.insert("cpu_shard".to_owned(), 2.0);
        comparison.runs = vec![drover, run("quinn", 1, 10.0)];
        // A round in which the part is missing has no ratio, rather than one of the whole.
        comparison
            .runs
            .extend([run(DROVER, 2, 8.0), run("quinn", 2, 10.0)]);
        comparison
            .floors
            .push(made_up::floor("memory", "cpu", 1, 1.0));
        comparison.summarise();
        let row = &comparison.summary[1];
        assert_eq!(row.ratios["quinn"].median, 0.2);
        assert_eq!(row.ratios["quinn"].rounds, 1);
        assert_eq!(row.ratios["memory"].median, 2.0);
        assert_eq!(row.peers["quinn"].median, 10.0);
        assert_eq!(comparison.summary[0].ratios["quinn"].median, 0.8);
    }

    #[test]
    fn only_names_that_begin_with_drover_are_drover() {
        assert!(is_drover("drover") && is_drover("drover-direct"));
        assert!(!is_drover("quinn") && !is_drover("drovers"));
    }

    #[test]
    fn the_median_of_an_even_number_is_the_middle_of_two() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
