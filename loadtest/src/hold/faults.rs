//! What `hold` breaks, and how the fleet comes back.

use std::time::Duration;

use super::{Run, UP_SLACK};
use crate::clock;
use crate::report::{Fault, Return};
use crate::server::{Subject, Usage, usage_of};

/// How long the outage of a killed server or agent is.
const OUTAGE: Duration = Duration::from_secs(5);
/// Killed agents must all be back this long after they were started again.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// A return may take so many times as long as both sides' CPU time takes on all cores.
const CPU_FLOOR_TIMES: f64 = 1.3;
/// Or so much longer than the door takes: an agent that sends nothing until its next keep-alive
/// (10 s, a fifth more at most) does not know yet that its session is gone; 8 s for a first try
/// that fails.
const RETURN_SLACK: Duration = Duration::from_secs(20);

impl Run {
    /// Kills the server, starts it again and waits for the whole fleet.
    pub(super) async fn kill_server(&mut self) -> anyhow::Result<()> {
        let at_s = self.seconds();
        self.stand.fleet.expect_losses(true);
        let Subject::Ours(server) = &mut self.stand.subject else {
            anyhow::bail!("--kill-server needs a server that this test started");
        };
        self.bar.println("SIGKILL to the server");
        server.kill().await?;
        tokio::time::sleep(OUTAGE).await;
        server.restart().await?;
        self.bar.println("the server is started again");
        let before = self.used();
        let admission = self.door.admission(self.hold.agents);
        let patience = (admission + RETURN_SLACK) * 3 + UP_SLACK;
        let all_back_s = self.wait_back(true, patience).await;
        let after = self.used();
        let came_back = judge_return([before, after], cores(), admission);
        if all_back_s.is_none_or(|s| s > came_back.allowed_s) {
            self.violations.push(format!(
                "the fleet was not back {:.1} s after the server's restart",
                came_back.allowed_s
            ));
        }
        self.faults.push(Fault {
            what: "server killed (SIGKILL), started again after 5 s".to_owned(),
            at_s,
            all_back_s,
            came_back: Some(came_back),
        });
        self.stand.fleet.expect_losses(false);
        Ok(())
    }

    /// Kills agents, starts them again from their journals and waits for them.
    pub(super) async fn kill_agents(&mut self) {
        let at_s = self.seconds();
        let count = self.hold.kill_agents.min(self.hold.agents);
        self.bar.println(format!("killing {count} agents"));
        self.stand.fleet.kill(0..count).await;
        tokio::time::sleep(OUTAGE).await;
        self.stand.fleet.start_apart(0..count);
        let all_back_s = self.wait_back(false, BACK_WITHIN * 2).await;
        let what = format!("{count} agents killed, started again from their journals after 5 s");
        if all_back_s.is_none_or(|s| s > BACK_WITHIN.as_secs_f64()) {
            self.violations.push(format!(
                "{what}: not all sessions were back within {BACK_WITHIN:?}"
            ));
        }
        self.faults.push(Fault {
            what,
            at_s,
            all_back_s,
            came_back: None,
        });
    }

    /// Waits until every agent has a session, a new one where all are to be `renewed`; how many
    /// seconds that took, if it was within `patience`.
    async fn wait_back(&mut self, renewed: bool, patience: Duration) -> Option<f64> {
        let restarted = clock::now();
        loop {
            let waited = clock::now().duration_since(restarted);
            // A session that has not noticed the outage yet still counts itself as up.
            if self.stand.fleet.up() == self.hold.agents && (!renewed || self.stand.fleet.renewed())
            {
                return Some(waited.as_secs_f64());
            }
            if waited > patience {
                return None;
            }
            self.progress();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// CPU time of the server and of this process, which is the fleet.
    fn used(&self) -> [f64; 2] {
        let fleet: Usage = usage_of(std::process::id()).unwrap_or_default();
        [self.stand.subject.usage().cpu_seconds, fleet.cpu_seconds]
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a return may take, by what it cost (server, fleet; before and after).
#[expect(clippy::cast_precision_loss, reason = "a handful of cores")]
fn judge_return([before, after]: [[f64; 2]; 2], cores: usize, admission: Duration) -> Return {
    let [server_cpu_s, fleet_cpu_s] = [after[0] - before[0], after[1] - before[1]];
    let cpu_floor_s = (server_cpu_s + fleet_cpu_s) / cores as f64;
    let (admission_s, slack_s) = (admission.as_secs_f64(), RETURN_SLACK.as_secs_f64());
    Return {
        server_cpu_s,
        fleet_cpu_s,
        cores,
        cpu_floor_s,
        admission_s,
        slack_s,
        allowed_s: (CPU_FLOOR_TIMES * cpu_floor_s).max(admission_s + slack_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_may_take_what_the_cpu_or_what_the_door_needs() {
        let judged = |server: f64, fleet: f64, admission| {
            judge_return(
                [[5.0, 7.0], [5.0 + server, 7.0 + fleet]],
                2,
                Duration::from_secs(admission),
            )
        };
        let idle_cores = judged(4.0, 6.0, 10);
        assert_eq!((idle_cores.cpu_floor_s, idle_cores.allowed_s), (5.0, 30.0));
        let busy_cores = judged(30.0, 50.0, 10);
        assert_eq!((busy_cores.cpu_floor_s, busy_cores.allowed_s), (40.0, 52.0));
    }
}
