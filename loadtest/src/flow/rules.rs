//! The rules that are compared: Drover's, and four of senders that decide for themselves.

use super::scenario::Scenario;
use super::score::Score;
use super::world;

mod aimd;
mod bucket;
mod cattle;
pub(super) mod drover;
mod gradient;
mod senders;

/// Which rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum RuleName {
    /// Permits where the work is: the production code of `gateway::flow`.
    Drover,
    /// A fixed number of workers a server, no limit a host, every 15 s all that is due.
    Cattle,
    /// Each server adapts a limit a host: one more, or half as many.
    Aimd,
    /// Each server adapts a limit a host by Netflix's Gradient2.
    Gradient,
    /// One token bucket for all, at the nominal rate.
    Bucket,
}

impl RuleName {
    /// All, Drover's first.
    pub const ALL: [Self; 5] = [
        Self::Drover,
        Self::Cattle,
        Self::Aimd,
        Self::Gradient,
        Self::Bucket,
    ];

    /// As on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drover => "drover",
            Self::Cattle => "cattle",
            Self::Aimd => "aimd",
            Self::Gradient => "gradient",
            Self::Bucket => "bucket",
        }
    }

    /// Runs it in a scenario.
    pub fn run(self, scenario: &Scenario) -> Score {
        let senders = |policy: Box<dyn senders::Policy>| {
            let senders = senders::Senders::new(scenario, policy);
            world::run(scenario, senders).1.score
        };
        match self {
            Self::Drover => world::run(scenario, drover::Drover::new(scenario)).1.score,
            Self::Cattle => senders(Box::new(cattle::Cattle)),
            Self::Aimd => senders(Box::new(aimd::Aimd::new(scenario))),
            Self::Gradient => senders(Box::new(gradient::Gradient::new(scenario))),
            Self::Bucket => senders(Box::new(bucket::Bucket::new(scenario))),
        }
    }
}
