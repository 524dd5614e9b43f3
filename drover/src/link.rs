//! The link between the control plane and the gateway where both live in one process: the gateway's
//! own queues, nothing between.

use control::downlink::{Link, LinkFull};
use gateway::{Handle, SendError};
use protocol::link::{Event, Request};

/// A gateway in this process.
pub(crate) struct LocalLink(pub(crate) Handle);

impl Link for LocalLink {
    fn send(&self, request: Request) -> Result<(), LinkFull> {
        self.0.send(request).map_err(|error| match error {
            SendError::Full(request) | SendError::Stopped(request) => LinkFull(request),
        })
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        self.0.receive(out, max)
    }
}
