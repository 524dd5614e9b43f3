//! One process on SQLite becomes many on a database, with its agents and the work in hand: `drover store copy` and new
//! configuration, as docs/OPERATIONS.md has it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use testkit::{free_ports, loopback};
use tokio::process::Command;

use super::site::Services;
use super::{Account, Setup, Site, say, told};
use crate::clock;
use crate::report::{ConnectMs, RoundTripUs};
use crate::server::{Grown, ServerSpec, Subject, Target};
use crate::stand::Stand;

/// The work goes on undisturbed for so long before each step, and after the last.
const CALM: Duration = Duration::from_secs(20);
/// About what both steps take; the work goes on for longer.
const STEPS: Duration = Duration::from_secs(60);
/// All agents must be back within this.
const BACK_WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Clone, Debug)]
pub struct Grow {
    /// On what; its site, which it becomes, is not one process.
    pub setup: Setup,
    /// Processes a second.
    pub rate: f64,
}

/// How long what took, seconds from the moment at which the one process was asked to stop.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Downtime {
    /// It has ended in order.
    pub stopped_s: f64,
    /// Its store is copied, and compared.
    pub copied_s: f64,
    /// All processes of the new deployment are ready.
    pub started_s: f64,
    /// The first process has ended there.
    pub working_s: f64,
    /// All agents have a session there.
    pub agents_back_s: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Grew {
    /// Always `grow`.
    pub scenario: &'static str,
    /// What it has become.
    pub site: &'static str,
    /// Agents.
    pub agents: usize,
    /// Of these: those whom the new deployment knows by their old id.
    pub agents_known: usize,
    /// Agents that it knows and that never joined.
    pub strangers: usize,
    /// The restart by which agents learnt the new addresses: until all had a session again, seconds.
    pub announced_s: f64,
    /// Processes that were accepted and had not ended when the one process was asked to stop.
    pub in_hand: usize,
    /// How long what was away.
    pub downtime: Downtime,
    /// The account.
    #[serde(flatten)]
    pub account: Account,
    /// Loss of a session to the next, milliseconds.
    pub reconnect_ms: ConnectMs,
    /// Intended submission to the end as the API told it, microseconds.
    pub rtt_us: RoundTripUs,
    /// From the first process to the end of the last, seconds.
    pub seconds: f64,
    /// Whether everything held.
    pub passed: bool,
    /// What did not.
    pub violations: Vec<String>,
    /// A few of the processes that failed or did not end, as the API tells them.
    pub examples: Vec<serde_json::Value>,
}

impl Grow {
    /// Runs it, prints and writes what was found.
    ///
    /// # Errors
    /// When a step fails or the site is one process; a run that was carried out and found violations returns them.
    pub async fn run(&self) -> anyhow::Result<Grew> {
        let began = clock::now();
        let services = self.setup.site.services().await?;
        ensure!(
            self.setup.site != Site::Single,
            "one process is what it grows from: choose another --to, such as control"
        );
        let opened = Target::Start(self.setup.server.clone()).open().await?;
        let (mut stand, _) = self.setup.people(opened, 0).await?;
        say(began, "one process has all agents; the work begins");
        stand.ledger.trace();
        let first = clock::now();
        // All the time.
        let working = self.setup.work(&stand, self.rate, CALM * 3 + STEPS);
        tokio::time::sleep(CALM).await;
        let gateways = free_ports(self.setup.site.with_sessions())?;
        let announced = announce(&mut stand, &gateways).await?;
        say(began, "it was restarted, and agents know the new addresses");
        tokio::time::sleep(CALM).await;
        let in_hand = stand.ledger.open_count();
        say(
            began,
            &format!("it is stopped with {in_hand} processes in hand"),
        );
        let downtime = self.move_to(&mut stand, &services, gateways, began).await?;
        let refused = working.await?.len() as u64;
        let account = Account::close(&stand, refused).await?;
        let mut found = self.found(&stand, account, downtime, first).await?;
        found.announced_s = announced.as_secs_f64();
        found.in_hand = in_hand;
        found.judge();
        self.tell(&found, &stand)?;
        stand.finish().await?;
        Ok(found)
    }

    /// Stops the one process, copies its store and starts the others.
    async fn move_to(
        &self,
        stand: &mut Stand,
        services: &Services,
        gateways: Vec<u16>,
        began: Instant,
    ) -> anyhow::Result<Downtime> {
        stand.fleet.expect_losses(true);
        let mut downtime = Downtime::default();
        let asked = clock::now();
        let since = || clock::now().duration_since(asked).as_secs_f64();
        let Subject::Ours(mut server) =
            std::mem::replace(&mut stand.subject, Subject::Theirs(None))
        else {
            anyhow::bail!("the one process is not ours to stop");
        };
        server.end().await?;
        downtime.stopped_s = since();
        let single = &self.setup.server;
        let mut spec = self.setup.site.apart(services, single.clone()).await?;
        let url = spec.store.clone().context("the site has no database")?;
        copy_store(single, &url).await?;
        downtime.copied_s = since();
        say(began, "its store is copied");
        spec.grown = Some(Grown {
            data_dir: single.data_dir.clone(),
            api: server.ready().api.replace("http://", ""),
            gateways,
        });
        let opened = spec.open().await?;
        downtime.started_s = since();
        say(began, "all processes are ready");
        stand.api = opened.client()?;
        stand.subject = opened.subject;
        back(stand).await?;
        downtime.agents_back_s = since();
        say(began, "all agents are back");
        let traced = stand.ledger.traced();
        let ready = asked + Duration::from_secs_f64(downtime.copied_s);
        let first = traced.iter().map(|one| one.ended).filter(|at| *at > ready);
        let first = first.min().unwrap_or_else(clock::now);
        downtime.working_s = first.duration_since(asked).as_secs_f64();
        Ok(downtime)
    }

    async fn found(
        &self,
        stand: &Stand,
        account: Account,
        downtime: Downtime,
        first: Instant,
    ) -> anyhow::Result<Grew> {
        let joined: HashSet<_> = stand.fleet.ids().iter().copied().collect();
        let known: HashSet<_> = stand.api.agents().await?.into_iter().collect();
        Ok(Grew {
            scenario: "grow",
            site: self.setup.site.name(),
            agents: self.setup.agents,
            agents_known: known.intersection(&joined).count(),
            strangers: known.difference(&joined).count(),
            announced_s: 0.0,
            in_hand: 0,
            downtime,
            account,
            reconnect_ms: ConnectMs::of(&stand.fleet.reconnect_times()),
            rtt_us: RoundTripUs::of(&stand.ledger.round_trips()),
            seconds: clock::now().duration_since(first).as_secs_f64(),
            passed: false,
            violations: Vec::new(),
            examples: stand.examples().await,
        })
    }

    fn tell(&self, found: &Grew, stand: &Stand) -> anyhow::Result<()> {
        told::print(&told::grow(found), &found.violations, &found.examples);
        self.setup.write("grow", found, (stand, &[], found.seconds))
    }
}

impl Grew {
    /// Whether everything held.
    fn judge(&mut self) {
        self.violations = self.account.violations(self.agents);
        let mut check = |held: bool, what: String| {
            if !held {
                self.violations.push(what);
            }
        };
        let unknown = self.agents.saturating_sub(self.agents_known);
        check(unknown == 0, format!("{unknown} agents are not known"));
        let strangers = self.strangers;
        check(strangers == 0, format!("{strangers} agents joined anew"));
        check(self.in_hand > 0, "no work was in hand".to_owned());
        self.passed = self.violations.is_empty();
    }
}

/// Restarts the one process such that its agents learn where agent servers will be; how long until all are back.
async fn announce(stand: &mut Stand, gateways: &[u16]) -> anyhow::Result<Duration> {
    stand.fleet.expect_losses(true);
    let asked = clock::now();
    let Some(server) = stand.subject.servers_mut().first_mut() else {
        anyhow::bail!("the one process is not ours to restart");
    };
    let own = server.ready().agents.clone();
    server.end().await?;
    server.set(&format!("gateway.advertise={own},{}", loopback(gateways)));
    server.restart().await?;
    back(stand).await?;
    Ok(clock::now().duration_since(asked))
}

/// Waits until every agent has a new session.
async fn back(stand: &Stand) -> anyhow::Result<()> {
    let since = clock::now();
    let agents = stand.fleet.ids().len();
    while stand.fleet.up() < agents || !stand.fleet.renewed() {
        ensure!(
            clock::now().duration_since(since) < BACK_WITHIN,
            "only {} of {agents} agents came back",
            stand.fleet.up()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// `drover store copy` of a stopped server's store.
async fn copy_store(server: &ServerSpec, to: &str) -> anyhow::Result<()> {
    let copied = Command::new(&server.binary)
        .args(["store", "copy", "--from", "sqlite:", "--to", to])
        .arg("--data-dir")
        .arg(&server.data_dir)
        .output()
        .await?;
    ensure!(
        copied.status.success(),
        "the store was not copied: {}",
        String::from_utf8_lossy(&copied.stderr)
    );
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::drill::tests::drilled;
    use super::*;

    pub(in super::super) fn grew() -> Grew {
        let drilled = drilled();
        Grew {
            scenario: "grow",
            site: "distributed",
            agents: 500,
            agents_known: 500,
            strangers: 0,
            announced_s: 5.0,
            in_hand: 40,
            downtime: Downtime {
                stopped_s: 0.5,
                copied_s: 3.0,
                started_s: 9.0,
                working_s: 9.5,
                agents_back_s: 21.0,
            },
            account: drilled.account,
            reconnect_ms: drilled.reconnect_ms,
            rtt_us: drilled.rtt_us,
            seconds: 120.0,
            passed: false,
            violations: Vec::new(),
            examples: Vec::new(),
        }
    }

    #[test]
    fn it_has_grown_only_if_agents_are_the_same_and_work_was_in_hand() {
        let mut good = grew();
        good.judge();
        assert!(good.passed, "{:?}", good.violations);
        let wrong: [fn(&mut Grew); 4] = [
            |grew| grew.agents_known = 499,
            |grew| grew.strangers = 1,
            |grew| grew.in_hand = 0,
            |grew| grew.account.processes.lost = 1,
        ];
        for change in wrong {
            let mut grew = grew();
            change(&mut grew);
            grew.judge();
            assert_eq!((grew.passed, grew.violations.len()), (false, 1));
        }
    }
}
