//! The way down to a gateway, as the control plane sees it: a bounded queue each way and one wake.
//!
//! ```text
//!   control ── send(Request) ──▶ gateway
//!   control ◀─ receive(Event) ── gateway ── Wake::ring ──▶ control's dispatcher
//! ```
//!
//! In profile `all` this is the gateway's handle in the same process; between machines it is a
//! connection. Nothing here blocks, retries or is durable.

use std::pin::Pin;
use std::sync::Arc;

use protocol::ids::{GatewayId, GroupId, ServerId};
use protocol::link::{Event, Request};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::gateways::Gateways;

/// The ends of a gateway that the process servers of this program have.
pub enum Ends {
    /// For the only one. Without it the program ends.
    One(End),
    /// For several, which share the gateway, or for those of a gateway elsewhere. When one ends by itself, or its
    /// gateway is gone, another one takes its place.
    Several {
        /// How many, at least 1.
        servers: u32,
        /// A new end, under a number that no process server has had.
        join: Join,
    },
}

/// Makes ends of a gateway.
pub type Join = Arc<dyn Fn() -> Joining + Send + Sync>;

/// An end that is being made: of a gateway elsewhere when that can be reached, however long that takes.
pub type Joining = Pin<Box<dyn Future<Output = End> + Send>>;

/// One process server's way to a gateway.
pub struct End {
    /// The process server, as the gateway tells it from others.
    pub server: ServerId,
    /// The gateway's queues.
    pub link: Arc<dyn Link>,
    /// Rung when the gateway has events.
    pub wake: Wake,
}

/// A gateway's queues, as one process server sees them. Dropping it is leaving.
pub trait Link: Send + Sync + 'static {
    /// This run of the gateway: it owns the groups, so it is what their epochs follow. The first of several.
    fn gateway(&self) -> GatewayId;

    /// What is known of several gateways, where this leads to more than one.
    fn several(&self) -> Option<&Gateways> {
        None
    }

    /// The run of a gateway that owns a group.
    fn owner(&self, _group: GroupId) -> GatewayId {
        self.gateway()
    }

    /// Whether this process server speaks for all that share the gateway: it records what is to be
    /// recorded once, such as the beginnings and ends of sessions.
    fn leads(&self) -> bool {
        true
    }

    /// This process server drains: it takes no more events, which are the others' now.
    fn drain(&self) {}

    /// Cancelled when the gateway takes this process server for hung, because it has not come to
    /// [`receive`](Self::receive) for 10 s while others did, or when a gateway elsewhere is gone: it hears
    /// nothing more, what it says goes nowhere, and another one should take its place. By default that never
    /// happens.
    fn cut_off(&self) -> CancellationToken {
        CancellationToken::new()
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// The queue has no room, or the gateway has stopped: the request comes back, nothing was sent.
    fn send(&self, request: Request) -> Result<(), LinkFull>;

    /// Appends at most `max` events that have arrived and says how many. To be called at least every few
    /// seconds, with 0 where there is no room: whoever does not come is taken for hung.
    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize;
}

/// The request could not be handed over; it is here, whole.
#[derive(Debug, thiserror::Error)]
#[error("the gateway's queue is full; the request will be sent again shortly")]
pub struct LinkFull(pub Box<Request>);

/// Tells the control plane that a gateway has events for it. Cheap, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// A wake that nobody has rung yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rings. Several rings before the next wait count as one; none is lost.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits for a ring.
    pub async fn rung(&self) {
        self.0.notified().await;
    }

    /// As the callback that a gateway wants.
    pub fn callback(&self) -> Arc<dyn Fn() + Send + Sync> {
        let wake = self.clone();
        Arc::new(move || wake.ring())
    }
}
