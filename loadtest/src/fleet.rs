//! Simulated hypervisors: the agent crate's own agents, ten thousand in one process.
//!
//! They share a few sockets, one journal file and one driver. What plays the hypervisor is the
//! [`Ledger`]: it outlives every kill of an agent and counts every effect. A killed agent dies like a
//! killed process: its socket falls silent, and its tasks are gone in the middle of whatever they did.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agent::driver::simulated::{Effect, EffectLog};
use agent::driver::{Drivers, SimulatedDriver};
use agent::transport::SilenceableEndpoint;
use agent::{
    Agent, AgentParts, EnrolError, Identity, Journal, Observer, Profile, SessionEnd, Trust,
};
use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use protocol::agent::Welcome;
use protocol::enrol::{EnrolRefusal, JoinToken};
use protocol::ids::{AgentId, Epoch, Fence, GroupId, OperationId};
use protocol::limits::CAPACITY_MAX;
use protocol::operation::Refusal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::clock;
use crate::ledger::{self, Ledger};

/// Which fleet.
#[derive(Clone, Debug)]
pub struct FleetSpec {
    /// Hypervisors.
    pub agents: usize,
    /// `host:port` of the gateway.
    pub server: String,
    /// The journal goes here.
    pub work_dir: PathBuf,
    /// Whether agents steer themselves to their home shard.
    pub steering_hint: bool,
}

/// What the agents of a fleet can do.
pub struct Work {
    /// Their drivers.
    pub drivers: Drivers,
    /// Operations at once that each takes.
    pub capacity: u32,
    /// Called whenever one refuses a command.
    pub on_refusal: Option<Refused>,
}

/// Told of every command of a fleet.
pub trait CommandWatch: Send + Sync {
    /// An agent has durably accepted an operation, which came under this epoch of its group.
    fn accepted(&self, agent: AgentId, operation: OperationId, epoch: Epoch);
    /// One was refused.
    fn refused(&self, why: &Refusal);
}

/// Told of a refusal.
pub type Refused = Arc<dyn Fn(&Refusal) + Send + Sync>;

/// Agents that share a socket. Killing some of them takes sockets of their own.
const AGENTS_PER_SOCKET: usize = 500;
/// Enrolments under way at once.
const ENROLMENTS: usize = 32;
/// An agent tries to join for so long; the server lets in so many a second.
const ENROL_WITHIN: Duration = Duration::from_secs(120);
/// Before the second try; each later pause is twice as long, up to [`ENROL_PAUSE_MAX`].
const ENROL_PAUSE: Duration = Duration::from_millis(200);
const ENROL_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Tokens asked for at once, when they are needed: they live an hour.
const TOKENS_PER_REQUEST: usize = 500;
/// Connecting takes at most this long, or the histogram says so.
const CONNECT_MAX: Duration = Duration::from_secs(600);
/// Agents that are asked to stop get this long, and a millisecond each.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A socket with room for more agents.
struct Roomy {
    endpoint: SilenceableEndpoint,
    agents: usize,
}

/// A fleet that has joined.
pub struct Fleet {
    spec: FleetSpec,
    identities: Vec<Identity>,
    trust: Arc<Trust>,
    drivers: Arc<Drivers>,
    journal: Journal,
    /// What they all say about themselves; each has its own name.
    profile: Profile,
    log: Arc<SessionLog>,
    running: Mutex<BTreeMap<usize, Running>>,
    /// The last of the shared sockets.
    shared: Mutex<Option<Roomy>>,
    shutdown: CancellationToken,
}

/// One running agent.
struct Running {
    task: JoinHandle<()>,
    endpoint: SilenceableEndpoint,
}

impl Fleet {
    /// Makes tokens, enrols every agent over the real enrolment, and keeps what they got.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn enrol(
        spec: FleetSpec,
        api: &Api,
        ledger: Arc<Ledger>,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<Self> {
        let driver = SimulatedDriver::new(Arc::new(Hypervisors(ledger)));
        let work = |_: &[AgentId]| Work {
            drivers: Drivers::new().with("simulated", driver),
            capacity: CAPACITY_MAX,
            on_refusal: None,
        };
        Self::enrol_for(spec, api, work, progress).await
    }

    /// The same with other work, which is made for the agents when they are known.
    ///
    /// # Errors
    /// As [`Fleet::enrol`].
    pub async fn enrol_for(
        spec: FleetSpec,
        api: &Api,
        work: impl FnOnce(&[AgentId]) -> Work,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<Self> {
        let identities = enrol_all(&spec, api, progress).await?;
        let roots = identities
            .first()
            .map(|first| first.roots.clone())
            .unwrap_or_default();
        let agents: Vec<AgentId> = identities.iter().map(|identity| identity.agent).collect();
        let work = work(&agents);
        let profile = Profile {
            capacity: work.capacity,
            hostname: String::new(),
            software: concat!("drover-loadtest/", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: Vec::new(),
        };
        Ok(Self {
            trust: Arc::new(Trust::new(&roots)?),
            drivers: Arc::new(work.drivers),
            journal: Journal::open(&spec.work_dir.join("fleet.journal"))?,
            profile,
            log: Arc::new(SessionLog::new(work.on_refusal)),
            running: Mutex::default(),
            shared: Mutex::default(),
            shutdown: CancellationToken::new(),
            identities,
            spec,
        })
    }

    /// Who is in it, in the order of their numbers.
    pub fn ids(&self) -> Arc<[AgentId]> {
        self.identities
            .iter()
            .map(|identity| identity.agent)
            .collect()
    }

    /// The group of each.
    pub fn groups(&self) -> HashMap<AgentId, GroupId> {
        let identities = self.identities.iter();
        identities.map(|one| (one.agent, one.group)).collect()
    }

    /// Tells `watch` of every command from now on; once.
    pub fn watch_commands(&self, watch: Arc<dyn CommandWatch>) {
        if self.log.watch.set(watch).is_err() {
            tracing::error!("the commands of this fleet are watched already");
        }
    }

    /// Starts the agents of a range of numbers on sockets that other calls may share.
    pub fn start(&self, numbers: Range<usize>) {
        self.start_on(numbers, &mut lock(&self.shared));
    }

    /// Starts the agents of a range of numbers on sockets that only this call uses: they can be
    /// killed with their agents, and each call comes from other ports.
    pub fn start_apart(&self, numbers: Range<usize>) {
        self.start_on(numbers, &mut None);
    }

    fn start_on(&self, numbers: Range<usize>, last: &mut Option<Roomy>) {
        for n in numbers {
            let Some(endpoint) = room(last) else {
                return;
            };
            match self.agent(n, &endpoint) {
                Ok(agent) => {
                    self.log.standing_outside(self.identities[n].agent);
                    let (shutdown, log) = (self.shutdown.clone(), Arc::clone(&self.log));
                    let task = tokio::spawn(async move {
                        if let Err(error) = agent.run(shutdown).await {
                            log.died.fetch_add(1, Ordering::Relaxed);
                            tracing::error!(%error, n, "an agent ended");
                        }
                    });
                    lock(&self.running).insert(n, Running { task, endpoint });
                }
                Err(error) => tracing::error!(%error, n, "an agent cannot be started"),
            }
        }
    }

    fn agent(&self, n: usize, endpoint: &SilenceableEndpoint) -> anyhow::Result<Agent> {
        let mut identity = copy_of(self.identities.get(n).context("no such agent")?);
        if !self.spec.steering_hint {
            // Another group's slot is as good as none.
            identity.slot.0 = u8::try_from(n % 251).unwrap_or(0);
        }
        let mut profile = self.profile.clone();
        profile.hostname = hostname(n);
        Ok(Agent::new(AgentParts {
            identity,
            trust: Arc::clone(&self.trust),
            endpoint: endpoint.endpoint().clone(),
            journal: self.journal.clone(),
            drivers: Arc::clone(&self.drivers),
            profile: Arc::new(profile),
            servers: vec![self.spec.server.clone()],
            observer: Arc::clone(&self.log) as Arc<dyn Observer>,
            stop_grace: Duration::from_secs(1),
        })?)
    }

    /// Kills the agents of a range as SIGKILL does: nobody hears a word. They must have been
    /// started by [`Fleet::start_apart`]: their sockets die with them.
    pub async fn kill(&self, numbers: Range<usize>) {
        let killed: Vec<_> = {
            let mut running = lock(&self.running);
            let with_number = |n| Some((n, running.remove(&n)?));
            numbers.filter_map(with_number).collect()
        };
        for (_, agent) in &killed {
            agent.endpoint.silence();
        }
        for (n, agent) in killed {
            agent.task.abort();
            // A cancelled task ends with an error that says just that.
            drop(agent.task.await);
            self.log.killed(self.identities[n].agent);
        }
    }

    /// Sessions that are up, as their agents see it.
    pub fn up(&self) -> usize {
        self.log.up.load(Ordering::Relaxed) as usize
    }

    /// Sessions that ended although nobody broke anything, and agents that gave up.
    pub fn lost(&self) -> u64 {
        self.log.lost.load(Ordering::Relaxed) + self.log.died.load(Ordering::Relaxed)
    }

    /// From now on sessions may (or may not) end because the test breaks something.
    pub fn expect_losses(&self, expected: bool) {
        self.log.losses_expected.store(expected, Ordering::Relaxed);
        if expected {
            self.log.ups_since.store(0, Ordering::Relaxed);
        }
    }

    /// Whether every agent has a session that is younger than the last call of
    /// [`Fleet::expect_losses`] with `true`: one that has not noticed an outage yet has none.
    pub fn renewed(&self) -> bool {
        self.log.ups_since.load(Ordering::Relaxed) as usize >= self.identities.len()
    }

    /// Start of the agent to `Welcome` of every first session, in microseconds.
    pub fn connect_times(&self) -> Histogram<u64> {
        lock(&self.log.times).first.clone()
    }

    /// Loss of a session (or the agent's new start) to the next `Welcome`, in microseconds.
    pub fn reconnect_times(&self) -> Histogram<u64> {
        lock(&self.log.times).again.clone()
    }

    /// Asks every agent to stop and waits for them a while.
    pub async fn stop(self) {
        self.expect_losses(true);
        self.shutdown.cancel();
        let running = std::mem::take(&mut *lock(&self.running));
        let each = Duration::from_millis(running.len() as u64);
        let deadline = tokio::time::Instant::from_std(clock::now() + STOP_WITHIN + each);
        for agent in running.into_values() {
            if tokio::time::timeout_at(deadline, agent.task).await.is_err() {
                tracing::warn!("agents did not stop in time");
                return;
            }
        }
    }
}

/// An agent consumes its identity; a killed one needs it again.
fn copy_of(identity: &Identity) -> Identity {
    Identity {
        agent: identity.agent,
        group: identity.group,
        slot: identity.slot,
        domain: identity.domain.clone(),
        key: identity.key.clone_key(),
        chain: identity.chain.clone(),
        roots: Vec::new(),
        addresses: identity.addresses.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket() -> io::Result<SilenceableEndpoint> {
    SilenceableEndpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn hostname(n: usize) -> String {
    format!("hv-{n}")
}

/// A socket with room for one more, opened where the last one is full.
fn room(last: &mut Option<Roomy>) -> Option<SilenceableEndpoint> {
    if last
        .as_ref()
        .is_none_or(|roomy| roomy.agents == AGENTS_PER_SOCKET)
    {
        let opened = socket().inspect_err(|error| tracing::error!(%error, "no socket"));
        *last = opened.ok().map(|endpoint| Roomy {
            endpoint,
            agents: 0,
        });
    }
    let roomy = last.as_mut()?;
    roomy.agents += 1;
    Some(roomy.endpoint.clone())
}

/// Everybody joins, many at once, each for itself: one that must try again holds up nobody.
async fn enrol_all(
    spec: &FleetSpec,
    api: &Api,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<Vec<Identity>> {
    let endpoint = socket()?;
    let enrolled = numbered_tokens(api, spec.agents)
        .map_ok(|(n, token)| enrol_one(api, endpoint.endpoint(), &spec.server, token, n))
        .try_buffer_unordered(ENROLMENTS);
    let mut enrolled = std::pin::pin!(enrolled);
    let mut by_number: Vec<Option<Identity>> = Vec::new();
    by_number.resize_with(spec.agents, || None);
    let mut joined = 0;
    while let Some((n, identity)) = enrolled.try_next().await? {
        by_number[n] = Some(identity);
        joined += 1;
        progress(joined);
    }
    let identities: Vec<_> = by_number.into_iter().flatten().collect();
    let (joined, agents) = (identities.len(), spec.agents);
    anyhow::ensure!(
        joined == agents,
        "{joined} of {agents} agents joined: too few tokens"
    );
    Ok(identities)
}

/// So many agents' numbers, each with a join token, asked for in batches as they are needed.
fn numbered_tokens(
    api: &Api,
    agents: usize,
) -> impl stream::Stream<Item = anyhow::Result<(usize, String)>> {
    let batches = stream::iter((0..agents).step_by(TOKENS_PER_REQUEST));
    batches
        .then(move |first| async move {
            let count = TOKENS_PER_REQUEST.min(agents - first);
            let tokens = api.join_tokens(count).await?;
            anyhow::Ok(stream::iter((first..).zip(tokens).map(anyhow::Ok)))
        })
        .try_flatten()
}

/// Lets one agent join; tries again for [`ENROL_WITHIN`], while others go on.
async fn enrol_one(
    api: &Api,
    endpoint: &quinn::Endpoint,
    server: &str,
    token: String,
    n: usize,
) -> anyhow::Result<(usize, Identity)> {
    let mut token: JoinToken = token.parse()?;
    let hostname = hostname(n);
    let give_up = clock::now() + ENROL_WITHIN;
    let mut pause = ENROL_PAUSE;
    loop {
        let error = match agent::enrol(endpoint, server, &token, &hostname).await {
            Ok(identity) => return Ok((n, identity)),
            Err(error) => error,
        };
        if clock::now() > give_up {
            return Err(error).with_context(|| format!("{hostname} cannot join"));
        }
        tracing::debug!(%error, n, "enrolment failed; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ENROL_PAUSE_MAX);
        // The reply to a try that was too late is lost, and its token used.
        if matches!(error, EnrolError::Refused(EnrolRefusal::UsedToken)) {
            let fresh = api.join_tokens(1).await?;
            token = fresh.first().context("no join token")?.parse()?;
        }
    }
}

/// What happened to the sessions.
struct SessionLog {
    up: AtomicU32,
    ups_since: AtomicU32,
    lost: AtomicU64,
    died: AtomicU64,
    losses_expected: AtomicBool,
    on_refusal: Option<Refused>,
    watch: OnceLock<Arc<dyn CommandWatch>>,
    /// Under which epoch operations came that are not accepted yet, where somebody watches.
    commanded: Mutex<HashMap<(AgentId, OperationId), Epoch>>,
    times: Mutex<Times>,
}

/// How long agents stood outside.
struct Times {
    outside_since: HashMap<AgentId, Instant>,
    known: HashSet<AgentId>,
    first: Histogram<u64>,
    again: Histogram<u64>,
}

impl SessionLog {
    fn new(on_refusal: Option<Refused>) -> Self {
        Self {
            on_refusal,
            watch: OnceLock::new(),
            commanded: Mutex::default(),
            up: AtomicU32::new(0),
            ups_since: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            died: AtomicU64::new(0),
            losses_expected: AtomicBool::new(false),
            times: Mutex::new(Times {
                outside_since: HashMap::new(),
                known: HashSet::new(),
                first: ledger::new_histogram(CONNECT_MAX),
                again: ledger::new_histogram(CONNECT_MAX),
            }),
        }
    }

    /// An agent died, with its session if it had one.
    fn killed(&self, agent: AgentId) {
        let outside = lock(&self.times).outside_since.contains_key(&agent);
        if !outside {
            self.up.fetch_sub(1, Ordering::Relaxed);
            self.standing_outside(agent);
        }
    }

    /// The clock of an agent without a session runs; one that runs already goes on.
    fn standing_outside(&self, agent: AgentId) {
        lock(&self.times)
            .outside_since
            .entry(agent)
            .or_insert_with(clock::now);
    }
}

impl Observer for SessionLog {
    fn session_up(&self, agent: AgentId, _welcome: &Welcome, took: Duration) {
        self.up.fetch_add(1, Ordering::Relaxed);
        self.ups_since.fetch_add(1, Ordering::Relaxed);
        let mut times = lock(&self.times);
        // Failed tries before this one count: what matters is how long the agent stood outside.
        let since = times.outside_since.remove(&agent);
        let took = since.map_or(took, |at| clock::now().duration_since(at));
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let is_first = times.known.insert(agent);
        let histogram = if is_first {
            &mut times.first
        } else {
            &mut times.again
        };
        histogram.saturating_record(micros);
    }

    fn session_down(&self, agent: AgentId, end: &SessionEnd) {
        self.up.fetch_sub(1, Ordering::Relaxed);
        self.standing_outside(agent);
        if !self.losses_expected.load(Ordering::Relaxed) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%agent, %end, "a session was lost");
        }
    }

    fn commanded(&self, agent: AgentId, operation: OperationId, epoch: Epoch) {
        if self.watch.get().is_some() {
            lock(&self.commanded).insert((agent, operation), epoch);
        }
    }

    fn accepted(&self, agent: AgentId, operation: OperationId, _fence: Fence) {
        if let Some(watch) = self.watch.get()
            && let Some(epoch) = lock(&self.commanded).remove(&(agent, operation))
        {
            watch.accepted(agent, operation, epoch);
        }
    }

    fn refused(&self, agent: AgentId, operation: OperationId, _fence: Fence, why: &Refusal) {
        if let Some(told) = &self.on_refusal {
            told(why);
        }
        if let Some(watch) = self.watch.get() {
            lock(&self.commanded).remove(&(agent, operation));
            watch.refused(why);
        }
    }

    fn connect_failed(&self, agent: AgentId, reason: &str) {
        tracing::debug!(%agent, reason, "a connection failed");
        self.standing_outside(agent);
    }
}

/// Every simulated hypervisor: effects go into the ledger, and stay there.
struct Hypervisors(Arc<Ledger>);

impl EffectLog for Hypervisors {
    fn apply(&self, _agent: AgentId, operation: OperationId) -> io::Result<bool> {
        Ok(self.0.effect(operation) == 1)
    }

    fn find(&self, _agent: AgentId, operation: OperationId) -> Effect {
        if self.0.has_effect(operation) {
            Effect::Present
        } else {
            Effect::Absent
        }
    }
}
