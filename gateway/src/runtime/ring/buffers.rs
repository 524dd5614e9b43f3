//! The provided buffer ring: memory that the kernel takes for each datagram, in a ring of its own.
//!
//! A buffer is either the kernel's (its entry lies between the kernel's head and our tail) or ours
//! (a completion named it and [`Buffers::give_back`] has not been called). Giving back is one store;
//! [`Buffers::publish`] makes a batch of them visible with one more.

#![expect(unsafe_code, reason = "shares memory with the kernel")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::memory::Region;

/// Buffers of one shard. A power of two. When a burst takes them all, receiving pauses and the
/// socket's own buffer holds what comes, so this need not cover bursts.
pub(super) const BUFFERS: u16 = 1024;
/// Bytes of one: header, name, control messages and the longest payload, with room to spare.
pub(super) const BUFFER_BYTES: usize = 2048;
/// The only buffer group of the ring.
pub(super) const GROUP: u16 = 0;

const ENTRY_BYTES: usize = size_of::<BufRingEntry>();
const MASK: u16 = BUFFERS - 1;
const _: () = assert!(BUFFERS.is_power_of_two());

/// See the module.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: Region,
    data: Region,
    tail: u16,
}

impl Buffers {
    /// All buffers, all of them the kernel's once [`register`](Self::register)ed.
    pub(super) fn new() -> io::Result<Self> {
        let mut buffers = Self {
            entries: Region::new(usize::from(BUFFERS) * ENTRY_BYTES)?,
            data: Region::new(usize::from(BUFFERS) * BUFFER_BYTES)?,
            tail: 0,
        };
        for id in 0..BUFFERS {
            buffers.give_back(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Tells the kernel of them.
    ///
    /// # Safety
    /// `self` must outlive the ring of `submitter`.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let base = self.entries.at(0, usize::from(BUFFERS) * ENTRY_BYTES);
        let address = base.as_ptr().expose_provenance() as u64;
        // SAFETY: the region holds BUFFERS entries, is page-aligned and, by the contract above,
        // stays mapped as long as the ring can use it.
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS, GROUP, 0) }
    }

    /// The first `len` bytes of buffer `id`.
    ///
    /// # Safety
    /// The buffer must be ours: named by a completion, and not yet given back.
    pub(super) unsafe fn filled(&self, id: u16, len: usize) -> &[u8] {
        let start = self
            .data
            .at(usize::from(id & MASK) * BUFFER_BYTES, BUFFER_BYTES);
        // SAFETY: the bytes are mapped and initialised (zeroed at first), and the kernel does not
        // write to a buffer that is ours.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len.min(BUFFER_BYTES)) }
    }

    /// Returns buffer `id` to the kernel at the next [`publish`](Self::publish). A second return of
    /// the same buffer would have the kernel fill it twice: callers do it once per completion.
    pub(super) fn give_back(&mut self, id: u16) {
        let data = self
            .data
            .at(usize::from(id & MASK) * BUFFER_BYTES, BUFFER_BYTES);
        let place = usize::from(self.tail & MASK) * ENTRY_BYTES;
        let entry = self
            .entries
            .at(place, ENTRY_BYTES)
            .cast::<BufRingEntry>()
            .as_ptr();
        // SAFETY: the entry lies in the mapping, is aligned (the base is page-aligned, the offset a
        // multiple of its size), holds plain integers for which any bytes are valid, and the kernel
        // does not read past the published tail. The setters leave the field alone which, in entry
        // 0, is the ring's tail.
        let entry = unsafe { &mut *entry };
        entry.set_addr(data.as_ptr().expose_provenance() as u64);
        entry.set_len(u32::try_from(BUFFER_BYTES).unwrap_or(0));
        entry.set_bid(id & MASK);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the buffers given back so far visible to the kernel.
    pub(super) fn publish(&mut self) {
        let base = self
            .entries
            .at(0, ENTRY_BYTES)
            .cast::<BufRingEntry>()
            .as_ptr();
        // SAFETY: `base` is the first entry of the ring, whose last field is the tail: two aligned
        // bytes that only this thread writes, atomically. Release: the entries come first.
        unsafe {
            let tail = BufRingEntry::tail(base).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
