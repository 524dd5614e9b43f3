//! A gateway of several process servers in this process: the gateway's [`Hub`] behind a lock, one end for
//! each server, and a task that takes the gateway's events to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::downlink::{End, Link, LinkFull, Wake};
use gateway::Handle;
use gateway::hub::Hub;
use protocol::ids::{GatewayId, ServerId};
use protocol::link::{Event, Request};

use super::{FIRST, send};

/// Events taken from the gateway under one lock.
const EVENTS_PER_TURN: usize = 256;
/// A gateway without room is tried again after this.
const RETRY: Duration = Duration::from_millis(2);

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
    wakes: BTreeMap<ServerId, Wake>,
}

/// One process server's end. Dropping it is leaving.
struct HubLink {
    server: ServerId,
    shared: Arc<Shared>,
}

/// Ends of a gateway for `servers` process servers, at least one. `wake` is rung by the gateway; somebody
/// must [`run`](Shared::run) what is shared.
pub(crate) fn share(
    gateway: GatewayId,
    handle: Handle,
    wake: Wake,
    servers: u32,
) -> (Arc<Shared>, End, Vec<End>) {
    let shared = Arc::new(Shared {
        gateway,
        handle,
        inner: Mutex::new(Inner {
            hub: Hub::default(),
            wakes: BTreeMap::new(),
        }),
        wake,
    });
    let first = shared.join(FIRST);
    let others = (FIRST.0 + 1..FIRST.0 + servers).map(|number| shared.join(ServerId(number)));
    let others = others.collect();
    (shared, first, others)
}

impl Shared {
    /// A process server's end. One that the hub does not take (its number is taken) hears nothing.
    fn join(self: &Arc<Self>, server: ServerId) -> End {
        let wake = Wake::new();
        let mut inner = self.lock();
        match inner.hub.handle_join(server) {
            Ok(()) => drop(inner.wakes.insert(server, wake.clone())),
            Err(error) => tracing::error!(%error, "a process server has no gateway"),
        }
        drop(inner);
        let link = Arc::new(HubLink {
            server,
            shared: Arc::clone(self),
        });
        End { server, link, wake }
    }

    /// Takes events to the servers and what the hub itself has to say to the gateway, for ever.
    #[expect(clippy::infinite_loop, reason = "it ends with its task")]
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let (more, blocked) = self.turn();
            if more {
                tokio::task::yield_now().await;
            } else if blocked {
                drop(tokio::time::timeout(RETRY, self.wake.rung()).await);
            } else {
                self.wake.rung().await;
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
    /// Wakes whoever has something to read.
    fn ring(&self) {
        for (server, wake) in &self.wakes {
            if self.hub.has_event(*server) {
                wake.ring();
            }
        }
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
        let before = out.len();
        while out.len() - before < max
            && let Some(event) = inner.hub.poll_event(self.server)
        {
            out.push(event);
        }
        if !had_room && inner.hub.room() > 0 {
            self.shared.wake.ring();
        }
        out.len() - before
    }
}

impl Drop for HubLink {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.wakes.remove(&self.server);
        inner.hub.handle_leave(self.server);
        inner.ring();
        self.shared.wake.ring();
    }
}
