//! A service is gone for a while: the store, the locks or the events. Sessions stay, nothing accepted is lost, and soon
//! after it is back everything is as it was.

use std::time::{Duration, Instant};

use serde::Serialize;
use testkit::Server;

use super::{Account, PROCESS_DEADLINE, Service, Setup, say, told};
use crate::clock;
use crate::ledger::{self, Traced};
use crate::report::RoundTripUs;
use crate::server::Usage;
use crate::stand::Stand;

/// Everything must be normal so long after the service is back.
const NORMAL_WITHIN: Duration = Duration::from_secs(30);
/// It is watched for so long then.
const WATCHED: Duration = Duration::from_secs(60);
/// A figure is taken over so long …
const WINDOW: Duration = Duration::from_secs(5);
/// … and is good where so many in a row are.
const STEADY: usize = 3;
/// Goodput is back at this share of what is due.
const GOODPUT_MIN: f64 = 0.95;
/// The 99th percentile is back at this many times what it was before, …
const P99_TIMES: u32 = 2;
/// … and this, which one late turn of a busy machine costs.
const P99_SLACK: Duration = Duration::from_millis(250);
/// An agent server is given groups 10 s after it has come, two a second, and agents follow within 10 s.
const SPREAD: Duration = Duration::from_secs(50);
/// Between two readings of memory and CPU.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// How a service goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum How {
    /// It is killed, and started again on its data.
    #[default]
    Dies,
    /// It is stopped as it stands, its connections with it, and goes on.
    StandsStill,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Outage {
    /// On what.
    pub setup: Setup,
    /// Which service is gone.
    pub service: Service,
    /// How.
    pub how: How,
    /// For how long.
    pub time: Duration,
    /// Before that, everything is watched for so long.
    pub calm: Duration,
    /// Processes a second.
    pub rate: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct OutageFound {
    /// Always `outage`.
    pub scenario: &'static str,
    /// The shape of the deployment.
    pub site: &'static str,
    /// What was gone.
    pub service: &'static str,
    /// `dies` or `stands still`.
    pub how: &'static str,
    /// For how long, seconds.
    pub outage_s: f64,
    /// Agents.
    pub agents: usize,
    /// Processes due a second.
    pub rate: f64,
    /// Sessions that ended.
    pub sessions_lost: u64,
    /// The account.
    #[serde(flatten)]
    pub account: Account,
    /// From the service's return until goodput and the 99th percentile were as before, seconds; nothing: they were not
    /// within a minute.
    pub normal_s: Option<f64>,
    /// Round trips of what was over before, microseconds.
    pub before_us: RoundTripUs,
    /// Of what was due while the service was gone.
    pub meanwhile_us: RoundTripUs,
    /// Of what was due when everything was normal again.
    pub after_us: Option<RoundTripUs>,
    /// From the first process to the end of the last, seconds.
    pub seconds: f64,
    /// Whether everything held.
    pub passed: bool,
    /// What did not.
    pub violations: Vec<String>,
    /// A few of the processes that failed or did not end, as the API tells them.
    pub examples: Vec<serde_json::Value>,
}

/// When what happened.
#[derive(Clone, Copy)]
struct Times {
    /// The first process is due.
    began: Instant,
    /// The service is gone.
    gone: Instant,
    /// It answers again.
    back: Instant,
    /// Nothing is due any more.
    over: Instant,
}

impl Outage {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When the site has no such service, or the run could not be carried out; one that was, and found violations,
    /// returns them.
    pub async fn run(&self) -> anyhow::Result<OutageFound> {
        let began = clock::now();
        let services = self.setup.site.services().await?;
        let server = services.server_of(self.service)?;
        let opened = self.setup.open(&services).await?;
        say(began, "all processes are ready");
        let (stand, _) = self.setup.people(opened, 0).await?;
        // In the beginning groups move to their agent servers, and sessions with them.
        if self.setup.site.with_sessions() > 1 {
            say(began, "all agents have a session; groups are spread");
            tokio::time::sleep(SPREAD).await;
        }
        stand.fleet.expect_losses(false);
        say(began, "the work begins");
        let found = self.watch(&stand, server, began).await?;
        stand.finish().await?;
        Ok(found)
    }

    async fn watch(
        &self,
        stand: &Stand,
        server: &Server,
        began: Instant,
    ) -> anyhow::Result<OutageFound> {
        stand.ledger.trace();
        let working = self.work(stand);
        let mut samples = Vec::new();
        let first = clock::now();
        sample(stand, first, self.calm, &mut samples).await;
        say(
            began,
            &format!("the {} {}", self.service.name(), self.how.name()),
        );
        let gone = clock::now();
        self.strike(server).await?;
        sample(stand, first, self.time, &mut samples).await;
        self.mend(server).await?;
        let back = clock::now();
        say(began, "it is back");
        sample(stand, first, WATCHED, &mut samples).await;
        let over = clock::now();
        let refused = working.await?.len() as u64;
        // Counted before anything is asked of the fleet.
        let sessions_lost = stand.fleet.lost();
        let account = Account::close(stand, refused).await?;
        let times = Times {
            began: first,
            gone,
            back,
            over,
        };
        let found = self.judge(stand, times, account, sessions_lost).await;
        self.tell(&found, stand, &samples)?;
        Ok(found)
    }

    async fn strike(&self, server: &Server) -> anyhow::Result<()> {
        match self.how {
            How::Dies => Ok(server.kill().await?),
            How::StandsStill => {
                server.pause();
                Ok(())
            }
        }
    }

    async fn mend(&self, server: &Server) -> anyhow::Result<()> {
        match self.how {
            How::Dies => Ok(server.restart().await?),
            How::StandsStill => {
                server.resume();
                Ok(())
            }
        }
    }

    /// Makes processes at a fixed rate from now on until everything was watched; what the API refused for good.
    fn work(&self, stand: &Stand) -> tokio::task::JoinHandle<Vec<String>> {
        let duration = self.calm + self.time + WATCHED;
        self.setup.work(stand, self.rate, duration)
    }

    async fn judge(
        &self,
        stand: &Stand,
        times: Times,
        account: Account,
        sessions_lost: u64,
    ) -> OutageFound {
        let traced = stand.ledger.traced();
        let before = before(&traced, times);
        let normal = normal(&traced, times, self.rate);
        let after = normal.map(|normal| round_trips(&traced, times.back + normal, times.over));
        let mut violations = account.violations(self.setup.agents);
        if sessions_lost > 0 {
            violations.push(format!("{sessions_lost} sessions lost"));
        }
        if normal.is_none_or(|normal| normal > NORMAL_WITHIN) {
            violations.push(format!("not normal within {} s", NORMAL_WITHIN.as_secs()));
        }
        OutageFound {
            scenario: "outage",
            site: self.setup.site.name(),
            service: self.service.name(),
            how: self.how.name(),
            outage_s: times.back.duration_since(times.gone).as_secs_f64(),
            agents: self.setup.agents,
            rate: self.rate,
            sessions_lost,
            account,
            normal_s: normal.map(|normal| normal.as_secs_f64()),
            before_us: before,
            meanwhile_us: round_trips(&traced, times.gone, times.back),
            after_us: after,
            seconds: clock::now().duration_since(times.began).as_secs_f64(),
            passed: violations.is_empty(),
            violations,
            examples: stand.examples().await,
        }
    }

    fn tell(
        &self,
        found: &OutageFound,
        stand: &Stand,
        samples: &[(f64, Usage)],
    ) -> anyhow::Result<()> {
        told::print(&told::outage(found), &found.violations, &found.examples);
        let raw = (stand, samples, found.seconds);
        let what = format!("outage-{}", self.service.name());
        self.setup.write(&what, found, raw)
    }
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Dies => "dies",
            Self::StandsStill => "stands still",
        }
    }
}

/// Lets time pass, and reads memory and CPU each second of it.
async fn sample(stand: &Stand, first: Instant, time: Duration, samples: &mut Vec<(f64, Usage)>) {
    let until = clock::now() + time;
    while clock::now() < until {
        let now = clock::now();
        let usage = stand.subject.usage();
        samples.push((now.duration_since(first).as_secs_f64(), usage));
        tokio::time::sleep_until(until.min(now + SAMPLE_EVERY).into()).await;
    }
}

/// Round trips of what was due in a time.
fn round_trips(traced: &[Traced], from: Instant, to: Instant) -> RoundTripUs {
    let mut histogram = ledger::new_histogram(PROCESS_DEADLINE);
    for one in traced.iter().filter(|one| one.due >= from && one.due < to) {
        let took = one.ended.saturating_duration_since(one.due).as_micros();
        histogram.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
    }
    RoundTripUs::of(&histogram)
}

/// Round trips of what was over before the service was gone.
fn before(traced: &[Traced], times: Times) -> RoundTripUs {
    let over = traced.iter().filter(|one| one.ended < times.gone);
    let over: Vec<Traced> = over.copied().collect();
    round_trips(&over, times.began, times.gone)
}

/// How long after the service's return both goodput and the 99th percentile were as before.
fn normal(traced: &[Traced], times: Times, rate: f64) -> Option<Duration> {
    let before = before(traced, times).p99;
    let slack = u64::try_from(P99_SLACK.as_micros()).unwrap_or(u64::MAX);
    let allowed = before * u64::from(P99_TIMES) + slack;
    let is_good = |from: Instant| {
        let to = from + WINDOW;
        let ended = traced
            .iter()
            .filter(|one| one.ended >= from && one.ended < to)
            .count();
        #[expect(clippy::cast_precision_loss, reason = "a count well below 2^53")]
        let goodput = ended as f64 / WINDOW.as_secs_f64();
        goodput >= rate * GOODPUT_MIN && round_trips(traced, from, to).p99 <= allowed
    };
    let windows = times.over.duration_since(times.back).as_secs() / WINDOW.as_secs();
    let starts = (0..u32::try_from(windows).unwrap_or(u32::MAX)).map(|n| WINDOW * n);
    let good: Vec<(Duration, bool)> = starts
        .map(|after| (after, is_good(times.back + after)))
        .collect();
    let steady = good
        .windows(STEADY)
        .find(|windows| windows.iter().all(|(_, good)| *good));
    steady.map(|windows| windows[0].0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::account;
    use super::*;

    const RATE: f64 = 50.0;

    fn times() -> Times {
        let began = clock::now();
        let gone = began + Duration::from_secs(30);
        let back = gone + Duration::from_secs(300);
        Times {
            began,
            gone,
            back,
            over: back + WATCHED,
        }
    }

    /// Fifty processes a second, each as long as `took` says of the second in which it is due.
    fn traced(times: Times, took: impl Fn(u64) -> Duration) -> Vec<Traced> {
        let seconds = times.over.duration_since(times.began).as_secs();
        let mut traced = Vec::new();
        for second in 0..seconds {
            for n in 0..50 {
                let due = times.began + Duration::from_millis(second * 1000 + n * 20);
                let ended = due + took(second);
                traced.push(Traced { due, ended });
            }
        }
        traced
    }

    #[test]
    fn normal_is_when_what_is_due_is_as_quick_as_before_and_stays_so() {
        let times = times();
        let quick = Duration::from_millis(100);
        let never = |_| quick;
        let found = normal(&traced(times, never), times, RATE);
        assert_eq!(
            found,
            Some(Duration::ZERO),
            "as with a service that nobody misses"
        );
        // Everything due meanwhile, what was under way before, and 12 s more, ends 13 s after the return.
        let late = |second: u64| match second {
            29..342 => Duration::from_secs(343 - second),
            _ => quick,
        };
        let late = traced(times, late);
        let found = normal(&late, times, RATE);
        assert_eq!(found, Some(Duration::from_secs(15)));
        let after = round_trips(&late, times.back + Duration::from_secs(15), times.over);
        assert!(after.max < 110_000, "{after:?}");
    }

    #[test]
    fn what_stays_slow_or_away_is_never_normal() {
        let times = times();
        let slow = |second: u64| match second {
            0..30 => Duration::from_millis(100),
            _ => Duration::from_millis(500),
        };
        assert_eq!(normal(&traced(times, slow), times, RATE), None);
        let nothing: Vec<Traced> = traced(times, |_| Duration::from_millis(100))
            .into_iter()
            .filter(|one| one.due < times.gone)
            .collect();
        assert_eq!(normal(&nothing, times, RATE), None);
    }

    pub(in super::super) fn found() -> OutageFound {
        let us = |p99| RoundTripUs {
            p50: 100_000,
            p99,
            p999: p99,
            max: p99,
        };
        OutageFound {
            scenario: "outage",
            site: "distributed",
            service: "store",
            how: "dies",
            outage_s: 300.0,
            agents: 500,
            rate: 50.0,
            sessions_lost: 0,
            account: account(),
            normal_s: Some(15.0),
            before_us: us(150_000),
            meanwhile_us: us(300_000_000),
            after_us: Some(us(160_000)),
            seconds: 420.0,
            passed: true,
            violations: Vec::new(),
            examples: Vec::new(),
        }
    }
}
