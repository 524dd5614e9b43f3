//! Memory for the payloads of arriving datagrams: few allocations, each shared by several.
//!
//! A chunk is used up front to back; once all payloads in it are gone the same chunk is used again,
//! so that a shard whose datagrams are all small and soon done allocates nothing at all. Chunks are
//! short, because a single kept byte keeps its whole chunk.

use bytes::BytesMut;

/// Bytes of a chunk: about eleven full datagrams.
const CHUNK_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// A copy of `payload`.
    pub(super) fn copy(&mut self, payload: &[u8]) -> BytesMut {
        if self.chunk.capacity() < payload.len() {
            self.chunk.reserve(CHUNK_BYTES.max(payload.len()));
        }
        self.chunk.extend_from_slice(payload);
        self.chunk.split()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_equal_to_the_originals_and_do_not_touch_each_other() {
        let mut arena = Arena::default();
        let mut copies: Vec<BytesMut> = (0..100u8).map(|n| arena.copy(&[n; 1000])).collect();
        copies[3].extend_from_slice(&[0; 2000]);
        for (n, copy) in copies.iter().enumerate().skip(4) {
            assert!(copy.len() == 1000 && copy.iter().all(|byte| usize::from(*byte) == n));
        }
    }

    #[test]
    fn a_chunk_whose_datagrams_are_gone_is_used_again() {
        let mut arena = Arena::default();
        let first = arena.copy(&[1; 1400]).as_ptr();
        let mut again = false;
        for _ in 0..100 {
            again |= arena.copy(&[2; 1400]).as_ptr() == first;
        }
        assert!(again);
    }
}
