//! A gateway of several process servers: the gateway's [`Hub`] behind a lock, one end for each server, in this
//! process or behind a connection, and a task that takes the gateway's events to them and cuts off those that
//! hang.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::clock;
use control::downlink::{End, Link, LinkFull, Wake};
use gateway::Handle;
use gateway::hub::{Hub, JoinError, SILENCE_MAX, TICK};
use protocol::ids::{GatewayId, ServerId};
use protocol::link::{Event, Request};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{FIRST, Part, send};

/// Events taken from the gateway under one lock.
const EVENTS_PER_TURN: usize = 256;
/// A gateway without room is tried again after this.
pub(super) const RETRY: Duration = Duration::from_millis(2);

/// What all ends share.
pub(crate) struct Shared {
    gateway: GatewayId,
    handle: Handle,
    inner: Mutex<Inner>,
    /// Rung by the gateway, and by ends that have room again.
    wake: Wake,
}

struct Inner {
    hub: Hub,
    bells: BTreeMap<ServerId, Bells>,
    /// The number of the next process server. None is given twice: what is still on its way to one that is
    /// gone must not reach another.
    next: ServerId,
    /// Who led when that was told last.
    led: Option<ServerId>,
    /// The gateway's door is still shut, and to be opened when the first server has begun: it has said who may
    /// come in.
    shut: bool,
}

/// How a process server is called.
struct Bells {
    wake: Wake,
    cut_off: CancellationToken,
}

/// One process server's end. Dropping it is leaving.
pub(super) struct HubLink {
    server: ServerId,
    shared: Arc<Shared>,
    cut_off: CancellationToken,
}

/// What the opening of the gateway's door waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opens {
    /// Whoever started the gateway opens it.
    Elsewhere,
    /// The first process server has said who may come in.
    WithTheFirst,
}

/// What process servers of one gateway share. `wake` is rung by the gateway; somebody must
/// [`run`](Shared::run) it.
pub(crate) fn share(gateway: GatewayId, handle: Handle, wake: Wake, opens: Opens) -> Arc<Shared> {
    Arc::new(Shared {
        gateway,
        handle,
        inner: Mutex::new(Inner {
            hub: Hub::default(),
            bells: BTreeMap::new(),
            next: FIRST,
            led: None,
            shut: opens == Opens::WithTheFirst,
        }),
        wake,
    })
}

impl Shared {
    /// The end of a new process server in this process. One that the hub does not take (there are too many) is
    /// cut off from the beginning.
    pub(crate) fn join(self: &Arc<Self>) -> End {
        let (link, wake) = self.enter(Part::Works).unwrap_or_else(|(error, link)| {
            tracing::error!(%error, "a process server has no gateway");
            link.cut_off.cancel();
            (link, Wake::new())
        });
        End {
            server: link.server,
            link: Arc::new(link),
            wake,
        }
    }

    /// A new process server's end, wherever it is, and what is rung when there is something for it; or why the
    /// hub does not take it, and an end that leads nowhere.
    pub(super) fn enter(
        self: &Arc<Self>,
        part: Part,
    ) -> Result<(HubLink, Wake), (JoinError, HubLink)> {
        let (wake, cut_off) = (Wake::new(), CancellationToken::new());
        let mut inner = self.lock();
        let server = inner.next;
        inner.next = ServerId(server.0 + 1);
        let joined = match part {
            Part::Works => inner.hub.handle_join(server),
            Part::Observes => inner.hub.handle_observe(server),
        };
        if joined.is_ok() {
            let bells = Bells {
                wake: wake.clone(),
                cut_off: cut_off.clone(),
            };
            inner.bells.insert(server, bells);
        }
        drop(inner);
        let link = HubLink {
            server,
            shared: Arc::clone(self),
            cut_off,
        };
        match joined {
            Ok(()) => Ok((link, wake)),
            Err(error) => Err((error, link)),
        }
    }

    /// How many process servers are there; those that only observe are none.
    pub(crate) fn servers(&self) -> usize {
        self.lock().hub.servers()
    }

    /// Takes events to the servers and what the hub itself has to say to the gateway, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (more, blocked) = self.turn();
            tokio::select! {
                // A gateway that is never silent must not keep the time from passing.
                biased;
                _ = ticks.tick() => self.tick(),
                () = tokio::task::yield_now(), if more => {}
                () = self.wake.rung(), if !more => {}
                () = tokio::time::sleep(RETRY), if blocked => {}
            }
        }
    }

    /// Cuts off who hangs; the next turn says what follows.
    fn tick(&self) {
        let mut inner = self.lock();
        for server in inner.hub.handle_tick(clock::monotonic()) {
            tracing::error!(
                number = %server,
                "a process server has not come to read for {} s while others did; it is cut off, and they take over",
                SILENCE_MAX.as_secs()
            );
            if let Some(bells) = inner.bells.remove(&server) {
                bells.cut_off.cancel();
            }
        }
    }

    /// Whether there may be more, and whether a request waits for room.
    fn turn(&self) -> (bool, bool) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut inner = self.lock();
        let max = inner.hub.room().min(EVENTS_PER_TURN);
        let taken = match max {
            0 => 0,
            max => self.handle.receive(&mut events, max),
        };
        for event in events {
            inner.hub.handle_event(event);
        }
        let blocked = self.flush(&mut inner.hub);
        inner.ring();
        // If a shard could not be told, the next turn tells it.
        if inner.shut && !blocked && inner.hub.leader().is_some() && self.handle.open() {
            inner.shut = false;
            tracing::info!("a process server has said which agents may come in; the door is open");
        }
        (taken > 0, blocked)
    }

    /// Hands requests to the gateway; whether it had no room for one.
    fn flush(&self, hub: &mut Hub) -> bool {
        while let Some(request) = hub.poll_request() {
            if let Err(LinkFull(request)) = send(&self.handle, request) {
                hub.unsent(*request);
                return true;
            }
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Wakes whoever has something to read, and all when somebody else leads.
    fn ring(&mut self) {
        let leader = self.hub.leader();
        let anew = std::mem::replace(&mut self.led, leader) != leader;
        for (server, bells) in &self.bells {
            if anew || self.hub.has_event(*server) {
                bells.wake.ring();
            }
        }
    }
}

impl HubLink {
    /// The number of the process server.
    pub(super) fn server(&self) -> ServerId {
        self.server
    }

    /// The process server comes to read.
    pub(super) fn come(&self) {
        let mut inner = self.shared.lock();
        inner.hub.handle_come(self.server);
        inner.ring();
        // What the hub has to say to the gateway now, and a door that is shut, are the shared task's.
        self.shared.wake.ring();
    }

    /// Appends at most `max` events for the process server and says how many.
    pub(super) fn take(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let mut inner = self.shared.lock();
        self.take_from(&mut inner.hub, out, max)
    }

    /// Answers a request in the gateway's place.
    pub(super) fn answer(&self, event: Event) {
        let mut inner = self.shared.lock();
        inner.hub.handle_event(event);
        inner.ring();
    }

    fn take_from(&self, hub: &mut Hub, out: &mut Vec<Event>, max: usize) -> usize {
        let (had_room, before) = (hub.room() > 0, out.len());
        while out.len() - before < max
            && let Some(event) = hub.poll_event(self.server)
        {
            out.push(event);
        }
        if !had_room && hub.room() > 0 {
            self.shared.wake.ring();
        }
        out.len() - before
    }
}

impl Link for HubLink {
    fn gateway(&self) -> GatewayId {
        self.shared.gateway
    }

    fn leads(&self) -> bool {
        self.shared.lock().hub.leader() == Some(self.server)
    }

    fn drain(&self) {
        let mut inner = self.shared.lock();
        inner.hub.handle_drain(self.server);
        inner.ring();
        self.shared.wake.ring();
    }

    fn cut_off(&self) -> CancellationToken {
        self.cut_off.clone()
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        let mut inner = self.shared.lock();
        inner
            .hub
            .handle_request(self.server, request)
            .map_err(LinkFull)?;
        if self.shared.flush(&mut inner.hub) {
            // It is the shared task that tries again.
            self.shared.wake.ring();
        }
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let mut inner = self.shared.lock();
        let had_room = inner.hub.room() > 0;
        inner.hub.handle_come(self.server);
        // Its first coming makes room, and may leave something to say.
        if !had_room {
            self.shared.wake.ring();
        }
        self.take_from(&mut inner.hub, out, max)
    }
}

impl Drop for HubLink {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.bells.remove(&self.server);
        inner.hub.handle_leave(self.server);
        inner.ring();
        self.shared.wake.ring();
    }
}
