//! The link between the control plane and the gateway where both live in one process: the gateway's
//! own queues, nothing between.

use control::downlink::{Link, LinkFull};
use gateway::{Handle, SendError};
use protocol::link::{Event, Request};

/// A gateway in this process.
pub(crate) struct LocalLink(pub(crate) Handle);

impl Link for LocalLink {
    fn send(&self, request: Request) -> Result<(), LinkFull> {
        if self.0.is_stopped() {
            return Err(LinkFull(Box::new(request)));
        }
        match self.0.send(request) {
            Err(SendError::Full(request)) => Err(LinkFull(request)),
            // A gateway that stopped this very moment ends the process; nothing here is durable.
            Ok(()) | Err(SendError::Stopped) => Ok(()),
        }
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        self.0.receive(out, max)
    }
}
