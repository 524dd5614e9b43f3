//! One link that leads to several gateways, so that a process server need not know that there are several.
//!
//! ```text
//!   a request about an agent ─▶ the owner of its group      every other ─▶ all, or the gateway that asked
//!   events of all ─▶ one after the other, shards numbered through, permits of others than the owner left out
//! ```
//!
//! One that is gone is left out from then on: its sessions are over, and what was on its way there is asked for
//! when the agent has a session again. One that comes is [told](Switch::add) what a gateway must know before it is
//! heard.

#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::ids::{AgentId, GatewayId, GroupId, ServerId, SessionId, ShardId};
use protocol::link::{DownReason, Event, NotDelivered, Request, Route, SessionUp, Target};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{AgentServer, Gateways, Reached};
use crate::dispatch::{StartError, introduce};
use crate::downlink::{End, Link, LinkFull, Wake};
use crate::store::Store;

/// Where the number of a run stands in the ticket of an enrolment: gateways count from 1.
const NUMBER_SHIFT: u32 = 48;
/// The same in the number of a session, which people see: each gateway counts its own, so the end of a session at one
/// must not be taken for the end of the next session at another.
const SESSION_SHIFT: u32 = 40;
/// No run of a gateway.
const NOBODY: GatewayId = GatewayId(Uuid::nil());

/// The way to one gateway.
pub struct Way {
    /// The gateway.
    pub server: AgentServer,
    /// This process server's number there.
    pub number: ServerId,
    /// Its queues.
    pub link: Arc<dyn Link>,
}

/// See the module.
pub struct Switch {
    gateways: Arc<Gateways>,
    /// This process server's number here.
    server: ServerId,
    wake: Wake,
    inner: Mutex<Inner>,
    /// The way that is heard first next time.
    turn: AtomicUsize,
    /// The process server has left.
    left: CancellationToken,
}

struct Inner {
    /// By the runs of the gateways.
    ways: Vec<Live>,
    /// What is answered here.
    own: VecDeque<Event>,
    /// How often groups had changed hands when sessions were judged last.
    moves: u64,
}

/// A way that is there.
struct Live {
    way: Way,
    /// The number of its run.
    number: u64,
    gone: CancellationToken,
    sessions: BTreeMap<AgentId, (Target, SessionId)>,
    /// Sessions of groups that another one owns: what is left of before, such as at one that stood still; or of
    /// after, where it has been told by somebody else that the group is its own now.
    strangers: BTreeMap<AgentId, Box<SessionUp>>,
    /// It has been told all that it must know, and is heard; its lease is prolonged.
    reached: Option<Reached>,
}

/// Two addresses lead to one agent server.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// That run of a gateway is there already.
    #[error("{0} and {1} lead to one agent server; name each agent server once in link.connect")]
    Twice(String, String),
    /// It could not be told who may come in.
    #[error(transparent)]
    Introduction(#[from] StartError),
}

impl Switch {
    /// A link to these, which whoever [starts](crate::dispatch::start) on it introduces. `wake` is rung by each
    /// of them.
    pub fn new(gateways: &Arc<Gateways>, ways: Vec<Way>, wake: Wake) -> Arc<Self> {
        let switch = Arc::new(Self {
            gateways: Arc::clone(gateways),
            server: gateways.next_server(),
            wake,
            inner: Mutex::new(Inner {
                ways: Vec::new(),
                own: VecDeque::new(),
                moves: 0,
            }),
            turn: AtomicUsize::new(0),
            left: CancellationToken::new(),
        });
        for way in ways {
            let server = way.server.clone();
            match switch.insert(way) {
                Ok(()) => switch.is_reached(&server),
                Err(error) => tracing::error!(%error, "an agent server is left out"),
            }
        }
        switch
    }

    /// The end of a process server that uses it.
    pub fn end(self: &Arc<Self>) -> End {
        End {
            server: self.server,
            link: Arc::clone(self) as Arc<dyn Link>,
            wake: self.wake.clone(),
        }
    }

    /// Leads to one more gateway, once that has been told who may come in and what is limited.
    ///
    /// # Errors
    /// [`AddError`]; it does not lead there.
    pub async fn add(&self, way: Way, store: &Store) -> Result<(), AddError> {
        let (server, link) = (way.server.clone(), Arc::clone(&way.link));
        // What all are told meanwhile it is told as well.
        self.insert(way)?;
        if let Err(error) = introduce(store, &*link).await {
            self.lock()
                .ways
                .retain(|live| live.way.server.run != server.run);
            return Err(error.into());
        }
        self.is_reached(&server);
        self.wake.ring();
        Ok(())
    }

    /// Cancelled when the process server has left.
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    fn insert(&self, way: Way) -> Result<(), AddError> {
        let mut inner = self.lock();
        let run = way.server.run;
        let place = inner
            .ways
            .binary_search_by_key(&run, |live| live.way.server.run);
        let place = match place {
            Ok(at) => {
                let other = inner.ways[at].way.server.link.clone();
                return Err(AddError::Twice(other, way.server.link));
            }
            Err(place) => place,
        };
        let live = Live {
            number: self.gateways.number(run),
            gone: way.link.cut_off(),
            sessions: BTreeMap::new(),
            strangers: BTreeMap::new(),
            reached: None,
            way,
        };
        inner.ways.insert(place, live);
        Ok(())
    }

    fn is_reached(&self, server: &AgentServer) {
        let mut inner = self.lock();
        let live = inner
            .ways
            .iter_mut()
            .find(|live| live.way.server.run == server.run);
        // Otherwise it is gone already.
        if let Some(live) = live {
            live.reached = Some(self.gateways.reach(server.clone()));
        }
    }

    /// Says to the owner that it owns the group, and to all others who does, as the store said it last: gateways believe
    /// the first word of an epoch. Of an epoch that it has not said here nobody hears before whoever looks after the
    /// groups has read whose it is.
    fn assign(&self, inner: &Inner, request: Request) -> Result<(), LinkFull> {
        let Request::AssignGroup { group, slot, epoch } = &request else {
            return to_all(inner, request);
        };
        let owned = self.gateways.owned(*group);
        let Some((owner, known)) = owned.filter(|(_, known)| known >= epoch) else {
            self.gateways.look_again();
            return Ok(());
        };
        let assign = Request::AssignGroup {
            group: *group,
            slot: *slot,
            epoch: known,
        };
        let release = Request::ReleaseGroup {
            group: *group,
            epoch: known,
            addresses: self.gateways.addresses(owner),
        };
        for live in &inner.ways {
            let said = match live.way.server.run == owner {
                true => live.way.link.send(assign.clone()),
                false => live.way.link.send(release.clone()),
            };
            if said.is_err() {
                return Err(LinkFull(Box::new(request)));
            }
        }
        Ok(())
    }

    /// Says to the gateway of an agent what is about that agent.
    fn to_owner(&self, inner: &mut Inner, request: Request) -> Result<(), LinkFull> {
        let owner = group_of(&request).and_then(|group| self.gateways.owner(group));
        let live = inner
            .ways
            .iter()
            .find(|live| Some(live.way.server.run) == owner);
        match live {
            Some(live) => live.way.link.send(request),
            None => {
                inner.own.extend(nowhere(request));
                Ok(())
            }
        }
    }

    /// An event as a process server of all takes it; nothing where it is none of its business. `from`: the place
    /// of the gateway, and the first of its shards.
    fn translate(
        &self,
        live: &mut Live,
        (first_shard, shards_of_all): (u16, u16),
        mut event: Event,
    ) -> Option<Event> {
        let run = live.way.server.run;
        // Permits are of use where what they permit is sent.
        let number = live.number;
        let whole = |session: &mut SessionId| session.0 |= number << SESSION_SHIFT;
        let owns = |target: &Target| self.gateways.owner(target.group) == Some(run);
        match &mut event {
            Event::SessionUp(up) => {
                up.shard.0 += first_shard;
                whole(&mut up.session);
                // An older session must not stand in for the one that the owner has.
                if !owns(&up.target) {
                    live.strangers.insert(up.target.agent, up.clone());
                    return None;
                }
                live.strangers.remove(&up.target.agent);
                live.sessions
                    .insert(up.target.agent, (up.target, up.session));
            }
            Event::SessionDown {
                target, session, ..
            } => {
                whole(session);
                let stranger = live.strangers.get(&target.agent);
                if stranger.is_some_and(|up| up.session == *session) {
                    live.strangers.remove(&target.agent);
                    return None;
                }
                let kept = live.sessions.get(&target.agent);
                if kept.is_some_and(|(_, kept)| *kept == *session) {
                    live.sessions.remove(&target.agent);
                }
            }
            Event::Granted { target, server, .. } => {
                if *server != live.way.number || !owns(target) {
                    return None;
                }
                *server = self.server;
            }
            Event::Offered { target, .. } if !owns(target) => return None,
            Event::LimitTold { shard, shards, .. } | Event::Reported { shard, shards, .. } => {
                shard.0 += first_shard;
                *shards = shards_of_all;
            }
            // Its shard stays as it is: the ticket leads back.
            Event::Enrol { ticket, .. } => {
                if *ticket >> NUMBER_SHIFT != 0 {
                    return None;
                }
                *ticket |= live.number << NUMBER_SHIFT;
            }
            _ => {}
        }
        Some(event)
    }

    /// Meets the sessions that were of no group of their gateway's, and are now.
    fn meet_strangers(&self, inner: &mut Inner) {
        let moves = self.gateways.moves();
        if std::mem::replace(&mut inner.moves, moves) == moves {
            return;
        }
        let Inner { ways, own, .. } = inner;
        for live in ways {
            let run = live.way.server.run;
            let met = live.strangers.extract_if(.., |_, up| {
                self.gateways.owner(up.target.group) == Some(run)
            });
            for (agent, up) in met {
                live.sessions.insert(agent, (up.target, up.session));
                own.push_back(Event::SessionUp(up));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Leaves out those that are gone and have been heard to their end.
    fn bury(&mut self, silent: &[GatewayId]) {
        let gone = self.ways.extract_if(.., |live| {
            live.gone.is_cancelled() && silent.contains(&live.way.server.run)
        });
        for live in gone {
            let sessions = live.sessions.into_values();
            self.own
                .extend(sessions.map(|(target, session)| Event::SessionDown {
                    target,
                    session,
                    reason: DownReason::TransportError,
                }));
        }
    }

    fn take_own(&mut self, out: &mut Vec<Event>, max: usize) {
        let count = self.own.len().min(max);
        out.extend(self.own.drain(..count));
    }
}

impl Link for Switch {
    /// The first of them; nobody's where there is none.
    fn gateway(&self) -> GatewayId {
        first(&self.lock())
    }

    fn several(&self) -> Option<&Gateways> {
        Some(&self.gateways)
    }

    /// Nobody's where that is not known.
    fn owner(&self, group: GroupId) -> GatewayId {
        self.gateways.owner(group).unwrap_or(NOBODY)
    }

    /// Whoever speaks for all at the first of them: of the others all hear the same.
    fn leads(&self) -> bool {
        let inner = self.lock();
        inner.ways.first().is_some_and(|live| live.way.link.leads())
    }

    fn drain(&self) {
        for live in &self.lock().ways {
            live.way.link.drain();
        }
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        let mut inner = self.lock();
        match request.route() {
            Route::Every => self.assign(&inner, request),
            Route::Shard(_) => to_shard(&inner, request),
            Route::Home(_) => self.to_owner(&mut inner, request),
        }
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let before = out.len();
        let mut inner = self.lock();
        self.meet_strangers(&mut inner);
        inner.take_own(out, max);
        let starts = first_shards(&inner.ways);
        let all = starts.last().copied().unwrap_or(0);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (mut heard, mut silent) = (Vec::new(), Vec::new());
        let ways = inner.ways.len();
        for place in 0..ways {
            let at = turn.wrapping_add(place) % ways;
            let live = &mut inner.ways[at];
            // Whoever comes to read has told it all that it must know.
            if live.reached.is_none() {
                continue;
            }
            let room = max.saturating_sub(out.len() - before);
            // Also without room: whoever does not come is taken for hung.
            if live.way.link.receive(&mut heard, room) == 0 && room > 0 {
                silent.push(live.way.server.run);
            }
            let shards = (starts[at], all);
            out.extend(
                heard
                    .drain(..)
                    .filter_map(|event| self.translate(live, shards, event)),
            );
        }
        inner.bury(&silent);
        inner.take_own(out, max.saturating_sub(out.len() - before));
        out.len() - before
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.left.cancel();
    }
}

fn first(inner: &Inner) -> GatewayId {
    let first = inner.ways.first();
    first.map_or(NOBODY, |live| live.way.server.run)
}

/// The first shard of each, numbered through, and how many there are.
fn first_shards(ways: &[Live]) -> Vec<u16> {
    let mut starts = vec![0];
    for live in ways {
        let start: u16 = starts.last().copied().unwrap_or(0);
        starts.push(start.saturating_add(live.way.server.shards));
    }
    starts
}

/// Says it to all. Those that had room have heard it when another one had none: it may be said twice.
fn to_all(inner: &Inner, request: Request) -> Result<(), LinkFull> {
    for live in &inner.ways {
        if live.way.link.send(request.clone()).is_err() {
            return Err(LinkFull(Box::new(request)));
        }
    }
    Ok(())
}

/// Says it to the gateway whose shard it names; to nobody where whoever has asked is gone.
fn to_shard(inner: &Inner, request: Request) -> Result<(), LinkFull> {
    let at = match &request {
        Request::Lend { shard, .. } => {
            let starts = first_shards(&inner.ways);
            let within = |at: &usize| (starts[*at]..starts[at + 1]).contains(&shard.0);
            (0..inner.ways.len()).find(within)
        }
        Request::EnrolReply { ticket, .. } => {
            let number = *ticket >> NUMBER_SHIFT;
            inner.ways.iter().position(|live| live.number == number)
        }
        _ => None,
    };
    let Some(live) = at.map(|at| &inner.ways[at]) else {
        return Ok(());
    };
    let mut own = request.clone();
    match &mut own {
        Request::Lend { shard, .. } => {
            let start = at.map_or(0, |at| first_shards(&inner.ways)[at]);
            *shard = ShardId(shard.0 - start);
        }
        Request::EnrolReply { ticket, .. } => *ticket &= (1 << NUMBER_SHIFT) - 1,
        _ => {}
    }
    // What comes back is to be said again, and so is as it was.
    live.way
        .link
        .send(own)
        .map_err(|_| LinkFull(Box::new(request)))
}

/// The owner of the group cannot be reached. What is asked of an agent is asked again when it has a session.
fn nowhere(request: Request) -> Option<Event> {
    match request {
        Request::Dispatch {
            target, command, ..
        } => Some(Event::NotDelivered {
            target,
            operation: command.operation,
            fence: command.fence,
            reason: NotDelivered::NotOwner,
        }),
        Request::AskFlow { target, ticket } => Some(Event::FlowTold {
            target,
            ticket,
            flow: None,
        }),
        _ => None,
    }
}

/// The group that a request to one home is about.
fn group_of(request: &Request) -> Option<GroupId> {
    match request {
        Request::Demand { target, .. }
        | Request::AskFlow { target, .. }
        | Request::Charge { target, .. }
        | Request::ReturnPermits { target, .. }
        | Request::Dispatch { target, .. }
        | Request::Cancel { target, .. }
        | Request::Query { target, .. }
        | Request::Forget { target, .. } => Some(target.group),
        _ => None,
    }
}
