//! Calls into quinn's endpoint, which all connections of a shard share, and which reads what
//! anybody sends: a panic there costs the datagram or the newcomer, not the shard.
//!
//! `catch_unwind` wants to know that what a panic leaves half done is not relied on. quinn's
//! endpoint holds tables only: connection ids to handles, handles to their ids, first packets of
//! newcomers. A call adds to or takes from them for one peer, so a panic can leave behind, for that
//! peer alone:
//!
//! - an entry of a connection that nobody has, because its TLS panicked on the first bytes. Its
//!   datagrams find no [`Peer`](super::Peer) and are dropped, its handle is not given out again.
//!   It costs memory for good: these are the orphans that are counted here.
//! - an id that leads to a first packet that is gone, or to that of another newcomer. A datagram
//!   sent there panics again, and is caught again, or does not decrypt and is dropped: QUIC
//!   authenticates every packet under its connection's own keys.
//!
//! Going on therefore risks one peer's connection and a little memory; not going on ends every
//! session of the shard, as often as somebody repeats the datagram. When the orphans are too many
//! the panic goes on after all: a shard that leaks without end would fall later and worse.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::Endpoint;

/// Connections that only quinn knows, each a few hundred bytes.
pub(super) const ORPHANS_MAX: usize = 16_384;

impl Endpoint {
    /// Calls into quinn's endpoint for a peer, with the buffer for what it answers. `None`: it
    /// panicked, and has lost what it was given.
    ///
    /// # Panics
    /// With quinn's panic, when earlier ones have left too much behind. The shard ends then.
    pub(super) fn guarded<T>(
        &mut self,
        remote: SocketAddr,
        call: impl FnOnce(&mut quinn_proto::Endpoint, &mut Vec<u8>) -> T,
    ) -> Option<T> {
        let (quinn, scratch) = (&mut self.quinn, &mut self.scratch);
        // The module says why what is left is safe to use; `scratch` is cleared before each use.
        match catch_unwind(AssertUnwindSafe(|| call(quinn, scratch))) {
            Ok(answer) => Some(answer),
            Err(panic) if self.orphans() > self.orphans_max => resume_unwind(panic),
            Err(_) => {
                self.panicked_on.push(remote);
                None
            }
        }
    }

    /// The peers on whose bytes quinn's endpoint panicked since the last call: as many as there were
    /// calls, so ask after each few.
    pub(crate) fn take_panics(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.panicked_on)
    }

    fn orphans(&self) -> usize {
        self.quinn.open_connections().saturating_sub(self.count)
    }

    /// Takes so many orphans and no more.
    #[cfg(test)]
    pub(crate) fn limit_orphans(&mut self, max: usize) {
        self.orphans_max = max;
    }
}
