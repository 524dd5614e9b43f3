//! The link between the control plane and the gateway. Where both live in one process it is the gateway's
//! own queues, and nothing between where there is one process server; where there are several, a
//! [`hub`](shared) says whose is what. Between machines the hub is the agent server's, and process servers
//! [come](listener) to it from [elsewhere](remote) over [QUIC](wire).

mod departure;
mod lease;
mod listener;
mod remote;
mod shared;
mod wire;

use std::sync::Arc;

use control::downlink::{End, Link, LinkFull, Wake};
use gateway::{Handle, SendError};
use protocol::ids::{GatewayId, ServerId};
use protocol::link::{Event, Request};

pub(crate) use self::departure::Departure;
pub(crate) use self::lease::Lease;
pub(crate) use self::listener::{AgentsPlace, Door, ListenError, Listener};
pub(crate) use self::remote::Remote;
pub(crate) use self::shared::{Opens, Shared, share};

/// What somebody does with a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// A process server, which claims, and may lead.
    Works,
    /// An API server alone: it hears what there is to be seen, and gives orders.
    Observes,
}

/// The first process server's number.
const FIRST: ServerId = ServerId(1);

/// A gateway in this process, of one process server.
struct LocalLink {
    gateway: GatewayId,
    handle: Handle,
}

/// The end of a gateway's only process server; `wake` is rung by the gateway.
pub(crate) fn only(gateway: GatewayId, handle: Handle, wake: Wake) -> End {
    End {
        server: FIRST,
        link: Arc::new(LocalLink { gateway, handle }),
        wake,
    }
}

impl Link for LocalLink {
    fn gateway(&self) -> GatewayId {
        self.gateway
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        send(&self.handle, request)
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        self.handle.receive(out, max)
    }
}

fn send(handle: &Handle, request: Request) -> Result<(), LinkFull> {
    if handle.is_stopped() {
        return Err(LinkFull(Box::new(request)));
    }
    match handle.send(request) {
        Err(SendError::Full(request)) => Err(LinkFull(request)),
        // A gateway that stopped this very moment ends the process; nothing here is durable.
        Ok(()) | Err(SendError::Stopped) => Ok(()),
    }
}
