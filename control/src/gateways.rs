//! Several agent servers elsewhere: who is there, who owns which group, and one link that leads to all.
//!
//! ```text
//!   process server ─▶ switch.rs ─┬─▶ agent server A: its groups        keeper.rs   once a second
//!                                └─▶ agent server B: its groups          ├─ renews the leases of those that ask
//!                                                                        ├─ gives groups away: balance.rs
//!   store: agent_server (leases), group_owner (owner, epoch) ◀───────────┘   and tells what has changed
//! ```
//!
//! An agent server has no store. It *registers* by letting a process server in: whoever reaches it writes it down
//! and prolongs its lease for it ([`LEASE`], every [`LINK_RENEW`](protocol::limits::LINK_RENEW)). So one that nobody
//! reaches any more loses its groups, whatever it thinks itself, and one that some process servers do not reach keeps them. It asks for that
//! every five seconds, and sends nothing on to agents once its last question that was answered is ten seconds old: so it
//! has stopped before its groups are another's, also where it stood still in between. Where a lock service says that one
//! is gone, both times are shorter: watch.rs. Where the store was away for a while, leases say nothing yet: grace.rs.
//!
//! One that is told to stop says so when it asks, and waits until its groups are others': leaving.rs.
//!
//! A group is given away by compare-and-set on its epoch, never otherwise, and every process server tells every
//! gateway what the store says. Nothing is lost or done twice where two of them see it differently: a dispatch carries the epoch,
//! agents refuse a lower one than they have seen, and what was on its way is asked for by its operation id.

mod balance;
mod figures;
mod grace;
mod keeper;
mod leaving;
mod switch;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::ids::{Epoch, GatewayId, GroupId, ServerId};
use protocol::limits::LINK_LEASE;
use tokio::sync::Notify;

use self::balance::Pace;
pub(crate) use self::balance::{Field, Gift, Taker, elsewhere, even};
use self::figures::Figures;
pub(crate) use self::figures::metrics;
use self::grace::Grace;
use self::keeper::MOVES_EVERY;
pub(crate) use self::keeper::{keep, watch};
use self::leaving::Leaving;
pub use self::switch::{AddError, Switch, Way};
use crate::clock::{self, UnixMs};
use crate::store::groups::Group;
use crate::store::{Store, StoreError};

/// An agent server whose lease nobody has prolonged for so long has lost its groups. Six seconds of silence end a link
/// before, so all of it takes less than 20 s.
pub const LEASE: Duration = Duration::from_secs(12);
/// What the locks of agent servers are called, where there is a lock service: each is held by the agent server's own
/// process, under its run.
pub const LOCKS: &str = "agent-server";
/// An agent server that holds such a lock asks for its lease to be prolonged this often …
pub const WATCHED_RENEW: Duration = Duration::from_secs(1);
/// … and dispatches for so long from its last question that was answered, since it may be given up early.
pub const WATCHED_LEASE: Duration = Duration::from_secs(3);
/// A group that somebody has moved stays where it went for so long, whatever the loads are: long enough to look at
/// what it has changed.
pub const STAYS: Duration = Duration::from_secs(600);

// It has stopped to dispatch before: the lease in the store begins later than the question that it counts from.
const _: () = assert!(LINK_LEASE.as_millis() < LEASE.as_millis());

/// An agent server, as whoever reaches it knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentServer {
    /// This run of its gateway: what owns groups.
    pub run: GatewayId,
    /// `host:port` where process servers reach it: it tells the runs of one agent server from another's, so each
    /// must lead to one agent server.
    pub link: String,
    /// `host:port` where agents reach it, the best first.
    pub addresses: Vec<String>,
    /// How many shards its gateway has.
    pub shards: u16,
    /// Agents that it is given at most, while another one has room.
    pub capacity: u32,
}

/// What the store knows of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The agent server.
    pub server: AgentServer,
    /// Its lease has not run out.
    pub alive: bool,
    /// It gives its groups to the others.
    pub draining: bool,
    /// When somebody has reached it last.
    pub renewed_at: UnixMs,
}

/// Where a group is to be, while that agent server is there and does not drain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// The agent server's link.
    pub link: String,
    /// It ends by itself then; `None`: when somebody removes it.
    pub until: Option<UnixMs>,
}

/// A group and its owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The group, with its epoch.
    pub group: Group,
    /// The run of a gateway that owns it; it may be gone.
    pub owner: Option<GatewayId>,
    /// Its agents that may come in.
    pub agents: u64,
    /// The agent server that it is pinned to.
    pub pin: Option<Pin>,
}

/// What the process servers of this program know in common of agent servers elsewhere.
#[derive(Default)]
pub struct Gateways {
    inner: Mutex<Inner>,
    /// There is something to look after.
    changed: Notify,
    /// An agent server is reached no longer: that waits for nothing.
    gone: Notify,
    figures: Figures,
}

#[derive(Default)]
struct Inner {
    /// Those that are reached, and by how many process servers.
    reached: BTreeMap<GatewayId, (AgentServer, usize)>,
    /// How often one has been.
    reaches: u64,
    /// What the store said of each group when its epoch was highest.
    owners: BTreeMap<GroupId, Owned>,
    /// How often that has changed.
    moves: u64,
    /// When it was last seen that another program had given groups away.
    given_by_others: Option<Instant>,
    /// Where agents reach the owners, by what the store says.
    addresses: BTreeMap<GatewayId, Vec<String>>,
    /// Every run that was ever reached: its place here is its number.
    numbers: Vec<GatewayId>,
    /// The number of the next process server.
    servers: u32,
    /// Who is to be told when its lease has been prolonged.
    asked: Vec<(GatewayId, Answer)>,
    /// Runs that have ended in order, and that the store does not know of yet.
    ended: Vec<GatewayId>,
    /// Those that are told to stop, and wait for others to be given their groups.
    leaving: BTreeMap<GatewayId, Leaving>,
    /// Runs of which a lock service says that they are gone.
    doubted: BTreeSet<GatewayId>,
    grace: Grace,
}

/// The run of a gateway that owns a group, and since which epoch at least: each epoch has one owner.
type Owned = (GatewayId, Epoch);

/// Tells an agent server that its lease has been prolonged.
pub type Answer = Box<dyn FnOnce() + Send>;

/// Questions that wait for the store; more push out the oldest, which is too old by then.
const ASKED_MAX: usize = 1024;

/// An agent server is reached, as long as this lives.
pub struct Reached {
    gateways: Arc<Gateways>,
    run: GatewayId,
}

impl Gateways {
    /// None is known.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A process server reaches an agent server from now on.
    pub fn reach(self: &Arc<Self>, server: AgentServer) -> Reached {
        let run = server.run;
        let mut inner = self.lock();
        inner.reached.entry(run).or_insert((server, 0)).1 += 1;
        inner.reaches += 1;
        drop(inner);
        self.changed.notify_one();
        Reached {
            gateways: Arc::clone(self),
            run,
        }
    }

    /// Those that are reached, by their runs.
    pub fn reached(&self) -> Vec<AgentServer> {
        let inner = self.lock();
        inner
            .reached
            .values()
            .map(|(server, _)| server.clone())
            .collect()
    }

    /// How often an agent server has been reached: whoever is there anew has to be told all.
    fn reaches(&self) -> u64 {
        self.lock().reaches
    }

    /// An agent server asks for its lease to be prolonged; `answer` is called when it has been.
    pub fn ask_lease(&self, run: GatewayId, answer: Answer) {
        let mut inner = self.lock();
        if inner.asked.len() >= ASKED_MAX {
            // It asks again.
            drop(inner.asked.remove(0));
        }
        inner.asked.push((run, answer));
        drop(inner);
        self.changed.notify_one();
    }

    /// These wait on: they are not reached yet.
    fn keep_asked(&self, asked: Vec<(GatewayId, Answer)>) {
        let mut inner = self.lock();
        let newer = std::mem::replace(&mut inner.asked, asked);
        inner.asked.extend(newer);
    }

    /// The questions that wait.
    fn take_asked(&self) -> Vec<(GatewayId, Answer)> {
        std::mem::take(&mut self.lock().asked)
    }

    /// An agent server has said that it stops: nobody needs to wait for the end of its lease.
    pub fn ended(&self, run: GatewayId) {
        let mut inner = self.lock();
        inner.reached.remove(&run);
        inner.leaving.remove(&run);
        inner.ended.push(run);
        drop(inner);
        self.gone.notify_one();
    }

    /// The runs that have ended in order since it was asked last.
    fn take_ended(&self) -> Vec<GatewayId> {
        std::mem::take(&mut self.lock().ended)
    }

    /// The store could not be told of these: at the next look.
    fn keep_ended(&self, runs: Vec<GatewayId>) {
        self.lock().ended.extend(runs);
    }

    /// Whether a lock service says that this run is gone: whoever has a link to it should ask it.
    pub fn is_doubted(&self, run: GatewayId) -> bool {
        self.lock().doubted.contains(&run)
    }

    fn doubt(&self, runs: BTreeSet<GatewayId>) {
        self.lock().doubted = runs;
    }

    /// The owner of a group, as far as is known.
    pub fn owner(&self, group: GroupId) -> Option<GatewayId> {
        self.owned(group).map(|(owner, _)| owner)
    }

    fn owned(&self, group: GroupId) -> Option<Owned> {
        self.lock().owners.get(&group).copied()
    }

    /// Somebody knows more of a group than is known here: whoever looks after the groups is to read it soon.
    fn look_again(&self) {
        self.changed.notify_one();
    }

    /// How often groups have changed hands.
    fn moves(&self) -> u64 {
        self.lock().moves
    }

    /// Where agents find a gateway.
    fn addresses(&self, run: GatewayId) -> Vec<String> {
        let inner = self.lock();
        match inner.reached.get(&run) {
            Some((server, _)) => server.addresses.clone(),
            None => inner.addresses.get(&run).cloned().unwrap_or_default(),
        }
    }

    /// The number of a run: no other one has it while this program runs.
    fn number(&self, run: GatewayId) -> u64 {
        let mut inner = self.lock();
        let known = inner.numbers.iter().position(|known| *known == run);
        let at = known.unwrap_or_else(|| {
            inner.numbers.push(run);
            inner.numbers.len() - 1
        });
        // After 65,536 runs two have one number: an enrolment may have to be repeated.
        at as u64 & 0xffff
    }

    /// A number for a process server.
    fn next_server(&self) -> ServerId {
        let mut inner = self.lock();
        inner.servers += 1;
        ServerId(inner.servers)
    }

    /// Prolongs the leases of those that are reached, and gives away the groups that nobody owns who is
    /// alive. Returns all groups and their owners, which are known here from now on.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn settle(&self, store: &Store) -> Result<Vec<Placed>, StoreError> {
        store
            .renew_agent_servers(self.reached(), clock::now())
            .await?;
        self.place(store, Pace::default(), clock::monotonic()).await
    }

    /// Gives groups away: those that nobody owns who is alive, and so many others that are to be elsewhere. Returns all
    /// groups and their owners, which are known here from now on. `since`: when it begins.
    async fn place(
        &self,
        store: &Store,
        pace: Pace,
        since: Instant,
    ) -> Result<Vec<Placed>, StoreError> {
        let (began, now) = (clock::monotonic(), clock::now());
        let servers = store.agent_servers(now).await?;
        let groups = store.placed_groups(now).await?;
        // A store that does not answer is away.
        let alive = self.living(&servers, since + began.elapsed());
        let leaving = servers.iter().filter(|one| one.draining);
        let mut leaving: Vec<GatewayId> = leaving.map(|one| one.server.run).collect();
        let hurried = self.told_to_stop();
        leaving.extend(&hurried);
        // Nothing is given to one that could not be told, or that drains.
        let reached = self.reached().into_iter();
        let takers = reached.filter(|one| !leaving.contains(&one.run));
        let field = Field {
            servers: takers.map(|one| (one.run, Taker::from(one))).collect(),
            alive,
            leaving,
            hurried,
        };
        self.figures.loaded(&field, &groups);
        let pace = self.in_turn(pace, &groups, since + began.elapsed());
        let pace = self.hurry(pace, &groups, clock::monotonic());
        let plan = balance::plan(&field, &groups, pace);
        let groups = match plan.is_empty() {
            true => groups,
            false => {
                let given = store.give_groups(plan).await?;
                self.figures.given(given);
                store.placed_groups(now).await?
            }
        };
        self.judge(&field, &groups);
        self.know(servers, &groups);
        Ok(groups)
    }

    /// One program moves at a time: where another one has just given groups away, this one leaves those alone that can
    /// wait. Of two that look at the same moment, the compare-and-set of the epoch lets one move.
    fn in_turn(&self, pace: Pace, groups: &[Placed], now: Instant) -> Pace {
        let mut inner = self.lock();
        let by_others = groups.iter().any(|placed| {
            let known = inner.owners.get(&placed.group.id);
            known.is_some_and(|(_, epoch)| *epoch < placed.group.epoch)
        });
        if by_others {
            inner.given_by_others = Some(now);
        }
        let since = inner.given_by_others;
        match since.is_some_and(|at| now.saturating_duration_since(at) < MOVES_EVERY) {
            true => Pace {
                asked: 0,
                all: 0,
                ..pace
            },
            false => pace,
        }
    }

    /// Hears from the store who owns what; gives nothing away, and prolongs nothing.
    pub(crate) async fn learn(&self, store: &Store) -> Result<(), StoreError> {
        let now = clock::now();
        let servers = store.agent_servers(now).await?;
        self.know(servers, &store.placed_groups(now).await?);
        Ok(())
    }

    /// Those that keep what they own, by what the store has just said: it had said it at `now`.
    fn living(&self, servers: &[Registered], now: Instant) -> Vec<GatewayId> {
        self.lock().grace.living(servers, now)
    }

    /// The lease of an agent server was ended, since it is gone.
    fn give_up(&self, run: GatewayId) {
        self.lock().grace.give_up(run);
        self.figures.given_up();
    }

    /// What the store says, which is known here from now on. Of what was read twice at the same time the older may come
    /// last: it changes nothing.
    fn know(&self, servers: Vec<Registered>, groups: &[Placed]) {
        let mut inner = self.lock();
        let mut moved = false;
        for placed in groups {
            let Some(owner) = placed.owner else { continue };
            let (group, owned) = (placed.group.id, (owner, placed.group.epoch));
            let before = inner.owners.get(&group);
            if before.is_none_or(|before| before.1 <= owned.1 && *before != owned) {
                inner.owners.insert(group, owned);
                moved = true;
            }
        }
        inner.moves += u64::from(moved);
        inner.addresses = servers
            .into_iter()
            .map(|one| (one.server.run, one.server.addresses))
            .collect();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<AgentServer> for Taker {
    fn from(server: AgentServer) -> Self {
        Self {
            link: server.link,
            capacity: server.capacity,
        }
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        let mut inner = self.gateways.lock();
        if let Some((_, connections)) = inner.reached.get_mut(&self.run) {
            *connections -= 1;
            if *connections == 0 {
                inner.reached.remove(&self.run);
                inner.leaving.remove(&self.run);
            }
        }
        drop(inner);
        self.gateways.gone.notify_one();
    }
}
