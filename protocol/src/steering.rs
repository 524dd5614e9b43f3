//! How a connection id says where a packet belongs.

use crate::ids::Slot;

/// Bytes in a connection id that a gateway gives out, and in an agent's first destination id.
pub const CONNECTION_ID_BYTES: usize = 12;

/// The first destination connection id of an agent: its group's slot in byte 0, so that the
/// kernel's steering program sends the very first packet to the group's home shard; the rest is
/// random (RFC 9000 §7.2 asks for at least 8 unpredictable bytes in all).
pub fn initial_destination_id(slot: Slot, random: [u8; 11]) -> [u8; CONNECTION_ID_BYTES] {
    let mut id = [0; CONNECTION_ID_BYTES];
    id[0] = slot.0;
    id[1..].copy_from_slice(&random);
    id
}
