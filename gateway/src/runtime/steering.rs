//! Which shard a packet reaches, before anything of ours has looked at it.
//!
//! ```text
//!   packet ──▶ kernel: b = pkt[0] & 0x80 ? pkt[6] : pkt[1]   (byte 0 of the destination id,
//!                      socket = b mod N                       long or short header)
//!
//!   connection id of ours:  │ shard + N·random │ version, generation │ 6 random │ 4 of a MAC │
//!   an agent's first one:   │ slot of its group│ 11 random                                  │
//! ```
//!
//! The program is classic BPF, attached once to the reuseport group after all its sockets are
//! bound; the group's index is the order of binding, and a closed socket would renumber the others,
//! so none is closed while the gateway runs. A packet too short to have the byte reaches shard 0.
//!
//! The MAC lets a shard tell an id of a forgotten session (worth a stateless reset) from noise (worth
//! nothing). It covers ids of earlier runs too, as long as the caller keeps the key: an agent that
//! speaks to a restarted gateway then learns it at once. First destination ids are the client's
//! choice and are never checked.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use protocol::ids::ShardId;
use protocol::steering::CONNECTION_ID_BYTES;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::RngCore;
use siphasher::sip::SipHasher24;

use super::ring::sockopt::{Instruction, attach_reuseport_filter};

/// The layout of our connection ids, in the high half of byte 1.
const FORMAT: u8 = 1;
const MAC_AT: usize = 8;

/// The steering program for `shards` sockets.
fn program(shards: u16) -> [Instruction; 7] {
    let load_byte = |at| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    [
        load_byte(0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 2, 0, 0x80),
        load_byte(1),
        op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        load_byte(6),
        op(
            libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K,
            0,
            0,
            u32::from(shards.max(1)),
        ),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ]
}

fn op(code: u32, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
    let code = u16::try_from(code).unwrap_or_default();
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

/// Steers the reuseport group of `sockets`, which must be all of it, in the order of binding.
///
/// # Errors
/// Where the kernel knows no `SO_ATTACH_REUSEPORT_CBPF` (before 4.5) or forbids it.
pub(super) fn attach(sockets: &[impl AsRef<UdpSocket>]) -> io::Result<()> {
    // One socket is no group: there is nothing to choose, and nothing to attach to.
    let [first, _, ..] = sockets else {
        return Ok(());
    };
    let shards = u16::try_from(sockets.len()).map_err(io::Error::other)?;
    attach_reuseport_filter(first.as_ref(), &program(shards))
}

/// Makes and recognises the connection ids of one shard.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionIds {
    shard: u8,
    shards: u8,
    generation: u8,
    mac: SipHasher24,
}

impl ConnectionIds {
    /// Ids for `shard` of `shards` (at most [`protocol::limits::SHARDS_MAX`]). `generation` tells
    /// runs apart (its low four bits); `key` is the same for all shards and all runs.
    pub(crate) fn new(key: &[u8; 16], shard: ShardId, shards: u16, generation: u8) -> Self {
        let shards = u8::try_from(shards).unwrap_or(u8::MAX).max(1);
        let shard = u8::try_from(shard.0 % u16::from(shards)).unwrap_or_default();
        Self {
            shard,
            shards,
            generation: generation & 0x0f,
            mac: SipHasher24::new_with_key(key),
        }
    }

    fn mac(&self, id: &[u8]) -> [u8; 4] {
        let [a, b, c, d, ..] = self.mac.hash(id).to_le_bytes();
        [a, b, c, d]
    }

    fn make(&self, random: [u8; 7]) -> [u8; CONNECTION_ID_BYTES] {
        // The numbers of [0, 255] that are `shard` modulo `shards`, each as likely as another.
        let choices = u16::from((u8::MAX - self.shard) / self.shards) + 1;
        let choice = u8::try_from((u16::from(random[0]) * choices) >> 8).unwrap_or_default();
        let mut id = [0; CONNECTION_ID_BYTES];
        id[0] = self.shard + self.shards * choice;
        id[1] = (FORMAT << 4) | self.generation;
        id[2..MAC_AT].copy_from_slice(&random[1..]);
        let mac = self.mac(&id[..MAC_AT]);
        id[MAC_AT..].copy_from_slice(&mac);
        id
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; 7];
        rand::rng().fill_bytes(&mut random);
        ConnectionId::new(&self.make(random))
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let Some((body, mac)) = id.split_at_checked(MAC_AT) else {
            return Err(InvalidCid);
        };
        let ours =
            body[0] % self.shards == self.shard && body[1] >> 4 == FORMAT && mac == self.mac(body);
        if ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 16] = [7; 16];

    proptest! {
        #[test]
        fn every_id_leads_back_to_its_shard_and_is_recognised_by_it_alone(
            (shards, shard) in (1..=64u16).prop_flat_map(|n| (Just(n), 0..n)),
            generation in any::<u8>(),
            random in any::<[u8; 7]>(),
        ) {
            let ids = ConnectionIds::new(&KEY, ShardId(shard), shards, generation);
            let id = ids.make(random);
            prop_assert_eq!(u16::from(id[0]) % shards, shard);
            let id = ConnectionId::new(&id);
            prop_assert!(ids.validate(&id).is_ok());
            let next_run = ConnectionIds::new(&KEY, ShardId(shard), shards, generation ^ 1);
            prop_assert!(next_run.validate(&id).is_ok());
            let other_key = ConnectionIds::new(&[8; 16], ShardId(shard), shards, generation);
            prop_assert!(other_key.validate(&id).is_err());
            if shards > 1 {
                let other = ConnectionIds::new(&KEY, ShardId((shard + 1) % shards), shards, 0);
                prop_assert!(other.validate(&id).is_err());
            }
        }

        #[test]
        fn a_changed_or_shortened_id_is_refused(
            random in any::<[u8; 7]>(), at in 0..12usize, flip in 1..=255u8
        ) {
            let ids = ConnectionIds::new(&KEY, ShardId(0), 1, 0);
            let mut id = ids.make(random);
            id[at] ^= flip;
            // The generation alone may differ; but then the MAC does not fit.
            prop_assert!(ids.validate(&ConnectionId::new(&id)).is_err());
            prop_assert!(ids.validate(&ConnectionId::new(&id[..at])).is_err());
        }
    }

    #[test]
    fn byte_zero_uses_the_whole_range_that_the_shard_has() {
        let ids = ConnectionIds::new(&KEY, ShardId(1), 3, 0);
        let firsts: std::collections::BTreeSet<u8> = (0..=255)
            .map(|first| ids.make([first, 0, 0, 0, 0, 0, 0])[0])
            .collect();
        assert_eq!(firsts.len(), 85);
        assert!(firsts.contains(&1) && firsts.contains(&253));
    }
}
