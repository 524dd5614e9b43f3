//! The `simulated` driver: work that takes time and has one countable effect. For load tests and
//! tours.
//!
//! Input: `{"service_ms": 20, "distribution": "exponential", "failure_rate": 0.01, …}`. A run waits a
//! drawn service time and then applies its effect to an [`EffectLog`], which plays the hypervisor: it
//! survives the agent, says after a crash whether the effect is there, and notices every second
//! application.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use protocol::ids::{AgentId, OperationId};
use protocol::limits;
use protocol::operation::{Channel, Outcome, OutcomeStatus, Progress};
use serde::Deserialize;

use super::{Driver, Job, Lost, Recovered, bare_outcome};
use crate::files;

/// The longest simulated service time, in milliseconds: one day.
const SERVICE_MS_MAX: f64 = 86_400_000.0;
/// Progress reports of one run.
const PROGRESS_MAX: u32 = 1_000;

/// What the driver accepts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Mean service time in milliseconds.
    #[serde(default)]
    pub service_ms: f64,
    /// How service times spread around the mean.
    #[serde(default)]
    pub distribution: Distribution,
    /// Coefficient of variation (standard deviation ÷ mean) of `lognormal`.
    #[serde(default = "one")]
    pub cv: f64,
    /// Part of the runs that fails, transiently and without an effect: 0–1.
    #[serde(default)]
    pub failure_rate: f64,
    /// Bytes of output in the result.
    #[serde(default)]
    pub output_bytes: usize,
    /// Progress reports, spread evenly over the run.
    #[serde(default)]
    pub progress: u32,
}

/// How service times spread around their mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Always the mean.
    #[default]
    Fixed,
    /// Exponential.
    Exponential,
    /// Log-normal with the coefficient of variation `cv`.
    Lognormal,
}

fn one() -> f64 {
    1.0
}

impl Input {
    /// Reads and checks an input.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(input: &[u8]) -> Result<Self, String> {
        let parsed: Self = serde_json::from_slice(input).map_err(|error| {
            format!("{error}; the simulated driver takes for example {{\"service_ms\": 20}}")
        })?;
        let within = |name: &str, value: f64, max: f64| match (0.0..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("`{name}` is {value}; it must be from 0 to {max}")),
        };
        within("service_ms", parsed.service_ms, SERVICE_MS_MAX)?;
        within("cv", parsed.cv, 100.0)?;
        within("failure_rate", parsed.failure_rate, 1.0)?;
        if parsed.output_bytes > limits::OUTPUT_BYTES_MAX {
            let max = limits::OUTPUT_BYTES_MAX;
            return Err(format!("`output_bytes` must be at most {max}"));
        }
        if parsed.progress > PROGRESS_MAX {
            return Err(format!("`progress` must be at most {PROGRESS_MAX}"));
        }
        Ok(parsed)
    }

    /// Draws a service time. `uniform` gives numbers from 0 (excluded) to 1.
    pub fn service_time(&self, mut uniform: impl FnMut() -> f64) -> Duration {
        let ms = match self.distribution {
            Distribution::Fixed => self.service_ms,
            Distribution::Exponential => -self.service_ms * uniform().ln(),
            Distribution::Lognormal => {
                // With variance s² of the logarithm: mean = exp(m + s²/2), cv² = exp(s²) − 1.
                let variance = self.cv.mul_add(self.cv, 1.0).ln();
                // Box and Muller: one normal number from two uniform ones.
                let normal =
                    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
                self.service_ms * variance.sqrt().mul_add(normal, -variance / 2.0).exp()
            }
        };
        Duration::from_secs_f64(ms.clamp(0.0, SERVICE_MS_MAX) / 1000.0)
    }
}

/// Whether an effect is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It is.
    Present,
    /// It certainly is not.
    Absent,
    /// It cannot be told.
    Unknown,
}

/// The simulated hypervisor: remembers effects, whatever happens to the agent.
pub trait EffectLog: Send + Sync + 'static {
    /// Applies an operation's effect. Returns whether it was new; a second time is a duplicate,
    /// which the log counts.
    ///
    /// # Errors
    /// The effect could not be applied and is absent.
    fn apply(&self, agent: AgentId, operation: OperationId) -> io::Result<bool>;
    /// Whether an operation's effect is there.
    fn find(&self, agent: AgentId, operation: OperationId) -> Effect;
    /// The operation will not be asked for again.
    fn forget(&self, _agent: AgentId, _operation: OperationId) {}
}

/// Effects as empty files in a directory: they survive the process, and creating one twice fails.
#[derive(Debug)]
pub struct DirectoryEffects(PathBuf);

impl DirectoryEffects {
    /// Keeps effects in `path`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(path: &Path) -> io::Result<Self> {
        files::private_dir(path)?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, operation: OperationId) -> PathBuf {
        self.0
            .join(format!("{}-{}", operation.process, operation.step))
    }
}

impl EffectLog for DirectoryEffects {
    fn apply(&self, _agent: AgentId, operation: OperationId) -> io::Result<bool> {
        match fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(self.path(operation))
        {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn find(&self, _agent: AgentId, operation: OperationId) -> Effect {
        match self.path(operation).try_exists() {
            Ok(true) => Effect::Present,
            Ok(false) => Effect::Absent,
            Err(_) => Effect::Unknown,
        }
    }

    fn forget(&self, _agent: AgentId, operation: OperationId) {
        if let Err(error) = fs::remove_file(self.path(operation))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%operation, %error, "a simulated effect's file could not be removed");
        }
    }
}

/// The driver. See the module's page.
pub struct SimulatedDriver {
    effects: Arc<dyn EffectLog>,
}

impl SimulatedDriver {
    /// A driver whose effects go to `effects`.
    pub fn new(effects: Arc<dyn EffectLog>) -> Self {
        Self { effects }
    }
}

impl Driver for SimulatedDriver {
    fn validate(&self, input: &[u8]) -> Result<(), String> {
        Input::parse(input).map(|_| ())
    }

    fn run(&self, job: Job) -> BoxFuture<'static, Outcome> {
        run(Arc::clone(&self.effects), job).boxed()
    }

    fn recover(&self, lost: Lost) -> BoxFuture<'static, Recovered> {
        let recovered = match self.effects.find(lost.agent, lost.operation) {
            Effect::Present => Recovered::Finished(bare_outcome(
                OutcomeStatus::Succeeded,
                "found done after a restart of the agent",
            )),
            Effect::Absent => Recovered::Restart,
            Effect::Unknown => Recovered::Interrupted {
                message: "the agent stopped while it ran, and its effect cannot be looked up"
                    .into(),
            },
        };
        std::future::ready(recovered).boxed()
    }

    fn forget(&self, agent: AgentId, operation: OperationId) {
        self.effects.forget(agent, operation);
    }
}

async fn run(effects: Arc<dyn EffectLog>, mut job: Job) -> Outcome {
    tokio::select! {
        outcome = work(&*effects, job.agent, job.operation, &job.input, &job.progress) => outcome,
        reason = job.stop.requested() => bare_outcome(reason.status(), "stopped; no effect"),
    }
}

async fn work(
    effects: &dyn EffectLog,
    agent: AgentId,
    operation: OperationId,
    input: &[u8],
    progress: &super::ProgressSink,
) -> Outcome {
    let input = match Input::parse(input) {
        Ok(input) => input,
        Err(message) => return bare_outcome(OutcomeStatus::FailedPermanent, message),
    };
    // 1 − x: the generator's numbers include 0 and not 1, the logarithm needs it the other way.
    let service_time = input.service_time(|| 1.0 - rand::random::<f64>());
    let pieces = input.progress + 1;
    for piece in 1..=pieces {
        tokio::time::sleep(service_time / pieces).await;
        if piece < pieces {
            progress.send(report(piece, pieces)).await;
        }
    }
    if rand::random::<f64>() < input.failure_rate {
        return bare_outcome(
            OutcomeStatus::FailedTransient,
            "a simulated failure; no effect",
        );
    }
    match effects.apply(agent, operation) {
        Ok(true) => {}
        Ok(false) => tracing::error!(%agent, %operation, "a simulated effect was applied twice"),
        Err(error) => {
            let message = format!("the simulated effect could not be applied: {error}");
            return bare_outcome(OutcomeStatus::FailedTransient, message);
        }
    }
    let mut outcome = bare_outcome(OutcomeStatus::Succeeded, "");
    outcome.output = Bytes::from(vec![b'x'; input.output_bytes]);
    outcome
}

fn report(piece: u32, pieces: u32) -> Progress {
    Progress {
        sequence: 0,
        percent: u8::try_from(u64::from(piece) * 100 / u64::from(pieces)).ok(),
        message: String::new(),
        channel: Channel::None,
        output: Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::ProcessId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn inputs_are_checked_with_words_that_help() {
        assert!(Input::parse(b"{}").is_ok());
        for (input, word) in [
            (&b"{\"service\": 1}"[..], "service_ms"),
            (b"{\"service_ms\": -1}", "from 0"),
            (b"{\"failure_rate\": 2}", "failure_rate"),
            (b"{\"output_bytes\": 999999}", "output_bytes"),
            (b"3", "simulated driver"),
        ] {
            let error = Input::parse(input).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_mean_of_each_distribution_is_the_one_asked_for() {
        // A fixed sequence (golden ratio) fills (0, 1] evenly: no randomness, no flakes.
        for distribution in ["fixed", "exponential", "lognormal"] {
            let json = format!(
                "{{\"service_ms\": 50, \"cv\": 0.5, \"distribution\": \"{distribution}\"}}"
            );
            let input = Input::parse(json.as_bytes()).unwrap();
            let mut state = 0.0_f64;
            let mut second = 0.0_f64;
            let mut turn = false;
            let mut uniform = || {
                turn = !turn;
                let step = if turn { &mut state } else { &mut second };
                *step = (*step
                    + if turn {
                        0.618_033_988_75
                    } else {
                        0.414_213_562_37
                    })
                    % 1.0;
                1.0 - *step
            };
            let n = 20_000;
            let sum: f64 = (0..n)
                .map(|_| input.service_time(&mut uniform).as_secs_f64())
                .sum();
            let mean_ms = sum * 1000.0 / f64::from(n);
            assert!((mean_ms - 50.0).abs() < 2.0, "{distribution}: {mean_ms}");
        }
    }

    #[test]
    fn a_directory_of_effects_counts_the_second_time_and_outlives_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let agent = AgentId(Uuid::from_u128(1));
        let operation = OperationId::new(ProcessId(Uuid::from_u128(2)), 0);
        let effects = DirectoryEffects::new(dir.path()).unwrap();
        assert_eq!(effects.find(agent, operation), Effect::Absent);
        assert!(effects.apply(agent, operation).unwrap());
        let effects = DirectoryEffects::new(dir.path()).unwrap();
        assert_eq!(effects.find(agent, operation), Effect::Present);
        assert!(!effects.apply(agent, operation).unwrap());
        effects.forget(agent, operation);
        assert_eq!(effects.find(agent, operation), Effect::Absent);
    }
}
