//! Rounds: every peer has its turn in each, in an order that moves on by one.

use std::path::PathBuf;

use super::folder::Folder;
use super::model::{Comparison, PeerInfo, Plan, SCHEMA};
use super::turn::Turn;
use super::{floors, machine, measures, process, table};
use crate::peers::material::Material;
use crate::peers::{self, KEEP_ALIVE, PAYLOAD_BYTES, Peer, Server};
use crate::{clock, report};

/// What to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// By name.
    pub peers: Vec<String>,
    /// Which measures; all of them when empty.
    pub measures: Vec<Measure>,
    /// Alternating rounds.
    pub rounds: u32,
    /// The greatest number of sessions.
    pub sessions: usize,
    /// New sessions a second at most.
    pub connect_rate: f64,
    /// Commands a second for CPU measures.
    pub command_rate: f64,
    /// How long that load lasts at the full size, in seconds; half as long at smaller sizes.
    pub load_seconds: f64,
    /// Commands a second for round-trip times.
    pub round_trip_rate: f64,
    /// How long that load lasts, in seconds.
    pub round_trip_seconds: f64,
    /// How long the idle fleet is watched, in seconds.
    pub idle_seconds: f64,
    /// A program and its arguments that become the server process of library peers.
    pub server_wrapper: Vec<String>,
    /// `perf record` every server while it is under load, into this folder.
    pub profile: Option<PathBuf>,
    /// The whole comparison goes into this file too.
    pub json: Option<PathBuf>,
    /// A dated folder is made in this one; `None`: no folder.
    pub results: Option<PathBuf>,
    /// The folder's name behind the date.
    pub name: String,
}

/// A group of measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Measure {
    /// Memory of an idle session: slope between two sizes of the fleet
    SessionRss,
    /// Server CPU of an mTLS handshake
    HandshakeCpu,
    /// Server CPU of a command at 100, 1,000 … sessions
    CommandCpu,
    /// Server CPU of an idle fleet
    IdleCpu,
    /// Command round-trip percentiles
    RoundTrip,
}

impl Options {
    /// Whether a measure was asked for.
    pub fn wants(&self, measure: Measure) -> bool {
        self.measures.is_empty() || self.measures.contains(&measure)
    }

    /// The sizes of the fleet at which commands are measured: powers of ten from 100, and the last.
    pub fn command_sizes(&self) -> Vec<usize> {
        let powers = [100, 1_000, 10_000];
        let mut sizes: Vec<_> = powers
            .into_iter()
            .filter(|&size| size < self.sessions)
            .collect();
        sizes.push(self.sessions);
        sizes
    }

    fn plan(&self) -> Plan {
        Plan {
            sessions: self.sessions,
            rounds: self.rounds,
            payload_bytes: PAYLOAD_BYTES,
            keep_alive_seconds: KEEP_ALIVE.as_secs_f64(),
            connect_rate: self.connect_rate,
            command_rate: self.command_rate,
            round_trip_rate: self.round_trip_rate,
            idle_seconds: self.idle_seconds,
        }
    }
}

/// Runs a comparison; prints every turn as it ends, and the ratios. What there is is written after
/// every turn, so that a run that is killed has left what it knew.
///
/// # Errors
/// When a peer is unknown, there is no place for the certificates or a result cannot be written. A
/// turn that fails is told on standard error and missing from the result.
pub fn run(options: &Options) -> anyhow::Result<Comparison> {
    let chosen: Vec<&'static Peer> = options
        .peers
        .iter()
        .map(|name| peers::find(name))
        .collect::<Result<_, _>>()?;
    process::raise_open_files()?;
    let place = tempfile::tempdir()?;
    eprintln!("making {} certificates", options.sessions);
    Material::make(place.path(), options.sessions)?;
    let mut comparison = begin(options, &chosen);
    let folder = Folder::make(options, &comparison)?;
    for round in 1..=options.rounds {
        match floors::run(round, options, place.path()) {
            Ok(floors) => comparison.floors.extend(floors),
            Err(error) => eprintln!("round {round}: floors: {error:#}"),
        }
        for turn in 0..chosen.len() {
            let first = usize::try_from(round - 1)?;
            let peer = chosen[(first + turn) % chosen.len()];
            let turn = u32::try_from(turn + 1)?;
            let taken = Turn::start(peer, round, turn, options, place.path()).and_then(Turn::take);
            match taken {
                Ok(run) => {
                    table::print_run(&run);
                    comparison.runs.push(run);
                }
                Err(error) => eprintln!("round {round}: {}: {error:#}", peer.name),
            }
            comparison.summarise();
            folder.write(&comparison)?;
        }
        folder.draw(&comparison)?;
    }
    table::print(&comparison);
    if let Some(path) = folder.path() {
        println!("\nwritten to {}", path.display());
    }
    Ok(comparison)
}

fn begin(options: &Options, chosen: &[&'static Peer]) -> Comparison {
    let info = |peer: &&'static Peer| PeerInfo {
        name: peer.name.to_owned(),
        about: peer.about.to_owned(),
        broker: matches!(peer.server, Server::Broker { .. }),
    };
    Comparison {
        schema: SCHEMA,
        date: clock::stamp(clock::unix_seconds()),
        commit: machine::commit(),
        command: report::command(),
        machine: machine::describe(),
        plan: options.plan(),
        peers: chosen.iter().map(info).collect(),
        measures: measures::infos(options.sessions, &options.command_sizes()),
        runs: Vec::new(),
        floors: Vec::new(),
        summary: Vec::new(),
        targets: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(sessions: usize, measures: Vec<Measure>) -> Options {
        Options {
            peers: Vec::new(),
            measures,
            rounds: 1,
            sessions,
            connect_rate: 1000.0,
            command_rate: 2000.0,
            load_seconds: 8.0,
            round_trip_rate: 1000.0,
            round_trip_seconds: 10.0,
            idle_seconds: 20.0,
            server_wrapper: Vec::new(),
            profile: None,
            json: None,
            results: None,
            name: String::new(),
        }
    }

    #[test]
    fn commands_are_measured_at_powers_of_ten_and_at_the_full_size() {
        let sizes = |sessions| options(sessions, Vec::new()).command_sizes();
        assert_eq!(sizes(10_000), [100, 1_000, 10_000]);
        assert_eq!(sizes(1_000), [100, 1_000]);
        assert_eq!(sizes(50), [50]);
    }

    #[test]
    fn no_measures_are_all_measures() {
        assert!(options(10, Vec::new()).wants(Measure::IdleCpu));
        let one = options(10, vec![Measure::RoundTrip]);
        assert!(one.wants(Measure::RoundTrip) && !one.wants(Measure::IdleCpu));
    }

    #[test]
    fn every_peer_has_a_name_of_its_own() {
        for (place, peer) in peers::PEERS.iter().enumerate() {
            let same = |other: &Peer| other.name == peer.name;
            assert_eq!(peers::PEERS.iter().position(same), Some(place));
        }
    }
}
