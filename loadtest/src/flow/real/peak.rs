//! What more process servers cost where the store is the limit (T10).

use std::time::Duration;

use serde::Serialize;

use super::bed::{Bed, Plan};
use super::stuck::{RATE_TAKES, rate};
use super::{Hosts, Options, SET_UP};

/// Operations a second that the server does at most, with so many process servers.
#[derive(Clone, Debug, Serialize)]
pub struct Peak {
    /// Process servers.
    pub servers: usize,
    /// One for each round.
    pub rates: Vec<f64>,
}

impl Peak {
    /// The mean of all rounds; 0 before the first.
    fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few rounds")]
        let rounds = self.rates.len().max(1) as f64;
        self.rates.iter().sum::<f64>() / rounds
    }
}

/// From the number of servers on that does most: what is left of the rate, at worst, where the next larger
/// number does its work. 1 where the largest number does most.
pub(super) fn left_beyond(peaks: &[Peak]) -> f64 {
    let rates: Vec<f64> = peaks.iter().map(Peak::rate).collect();
    let best = rates.iter().copied().fold(0.0, f64::max);
    let beyond = rates.iter().skip_while(|rate| **rate < best);
    let beyond: Vec<f64> = beyond.copied().collect();
    let steps = beyond.windows(2).map(|pair| pair[1] / pair[0]);
    steps.fold(1.0, f64::min)
}

/// About how long [`measure`] takes.
pub(super) fn expected(options: &Options) -> Duration {
    let points = u32::try_from(options.servers.len()).unwrap_or(u32::MAX);
    (SET_UP + RATE_TAKES) * points.saturating_mul(options.peak)
}

/// Measures it for every number of servers, round by round.
pub(super) async fn measure(options: &Options) -> anyhow::Result<Vec<Peak>> {
    let mut servers = options.servers.clone();
    servers.sort_unstable();
    let peaks = servers.into_iter().map(|servers| Peak {
        servers,
        rates: Vec::new(),
    });
    let mut peaks: Vec<Peak> = peaks.collect();
    for round in 0..options.peak {
        for peak in &mut peaks {
            println!("all that {} process servers do …", peak.servers);
            let name = format!("peak-{round}-{}", peak.servers);
            peak.rates.push(one(options, peak.servers, &name).await?);
        }
    }
    Ok(peaks)
}

async fn one(options: &Options, servers: usize, name: &str) -> anyhow::Result<f64> {
    let hosts = Hosts::never_the_limit(options.fleet.agents);
    let mut bed = Bed::prepare(&Plan {
        server: &options.server,
        site: options.site,
        folder: &options.work_dir.join(name),
        servers,
        settings: vec!["gateway.adaptive_limits=false".to_owned()],
        hosts,
        scenario: hosts.scenario(0.05, servers, options.seed),
        agents_apart: 0,
    })
    .await?;
    bed.load();
    let rate = rate(&bed).await?;
    bed.finish().await?;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_lost_beyond_the_best_counts() {
        let peaks = |rates: &[[f64; 2]]| -> Vec<Peak> {
            let numbered = rates.iter().zip(1..);
            let peak = numbered.map(|(rates, servers)| Peak {
                servers,
                rates: rates.to_vec(),
            });
            peak.collect()
        };
        let rising = peaks(&[[90.0, 90.0], [99.0, 101.0]]);
        assert!((left_beyond(&rising) - 1.0).abs() < 1e-12);
        let bent = peaks(&[[10.0, 10.0], [90.0, 110.0], [98.0, 98.0], [97.0, 97.0]]);
        assert!((left_beyond(&bent) - 0.98).abs() < 1e-12);
        assert!((left_beyond(&[]) - 1.0).abs() < 1e-12);
    }
}
