//! Transmit slots: everything that a `sendmsg` on its way needs kept in place until its completion.
//!
//! Two sizes. A datagram alone (≤ 1.5 KiB, nearly all of them) is copied into the slot's own piece
//! of one region, of which only as many are ever touched as were in use at once, because the free
//! list is last-in first-out. A longer train keeps the buffer it was written into, and the shard
//! goes on with another one.

#![expect(unsafe_code, reason = "builds the structures that the kernel reads")]

use std::io;
use std::net::SocketAddr;

use super::memory::Region;
use super::message::{CONTROL_BYTES, Departure, NAME_BYTES, encode_control, encode_name};

/// Sends on their way at once, of both sizes. A pool of 64 cost another gateway 400 ms of latency.
pub(super) const SLOTS: u16 = 1024;
/// Trains on their way at once.
pub(super) const TRAINS_MAX: usize = 128;

const SMALL_BYTES: usize = 1536;
const TRAIN_BYTES: usize = 16 << 10;
/// Empty train buffers kept for the next trains; more are given back to the allocator.
const SPARE_TRAINS: usize = 8;

#[derive(Debug)]
struct Slot {
    header: libc::msghdr,
    vector: libc::iovec,
    name: [u8; NAME_BYTES],
    control: [u8; CONTROL_BYTES],
    to: SocketAddr,
    departure: Departure,
    /// The payload, when it is longer than the slot's own piece.
    train: Option<Vec<u8>>,
    len: usize,
    /// Bytes that are done with, when the train goes one by one.
    done: usize,
    /// Segmentation offload failed for this train: its datagrams go one by one.
    one_by_one: bool,
    /// It must not leave any more.
    given_up: bool,
}

/// What a completion means for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// The slot is free again; so many datagrams and bytes went out.
    Sent { datagrams: u64, bytes: u64 },
    /// The slot is free again; so many datagrams were refused for good, after `sent` had gone out.
    Refused { datagrams: u64, sent: u64 },
    /// Submit the slot once more.
    Again,
    /// As `Again`, and segmentation offload is to blame: the first datagram went out alone.
    AgainWithoutOffload,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    small: Region,
    trains: usize,
    spare: Vec<Vec<u8>>,
    /// Where the next train is written.
    scratch: Vec<u8>,
}

impl Slots {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            slots: (0..SLOTS).map(|_| Slot::new()).collect(),
            free: (0..SLOTS).rev().collect(),
            small: Region::new(usize::from(SLOTS) * SMALL_BYTES)?,
            trains: 0,
            spare: Vec::with_capacity(SPARE_TRAINS),
            scratch: Vec::with_capacity(TRAIN_BYTES),
        })
    }

    /// Whether a train of any length would find room.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.trains < TRAINS_MAX
    }

    /// Has `fill` write a train and keeps it in a slot, ready to be submitted; `None` if there was
    /// nothing to send, or no room (ask [`has_room`](Self::has_room) first).
    pub(super) fn fill(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<quinn_proto::Transmit>,
    ) -> Option<u16> {
        if !self.has_room() {
            return None;
        }
        self.scratch.clear();
        let transmit = fill(&mut self.scratch)?;
        let len = transmit.size.min(self.scratch.len());
        let id = self.free.pop()?;
        let slot = &mut self.slots[usize::from(id)];
        slot.to = transmit.destination;
        slot.departure = Departure {
            source: transmit.src_ip,
            ecn: transmit.ecn,
            segment: transmit
                .segment_size
                .filter(|segment| *segment < len)
                .and_then(|segment| u16::try_from(segment).ok()),
        };
        slot.len = len;
        slot.done = 0;
        (slot.one_by_one, slot.given_up) = (false, false);
        if len <= SMALL_BYTES {
            let piece = self.small.at(usize::from(id) * SMALL_BYTES, SMALL_BYTES);
            // SAFETY: the piece belongs to this slot, which is free, so that the kernel does not
            // read it; it holds SMALL_BYTES bytes, and `scratch` at least `len`.
            unsafe {
                piece
                    .as_ptr()
                    .copy_from_nonoverlapping(self.scratch.as_ptr(), len)
            };
        } else {
            let next = self
                .spare
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(TRAIN_BYTES));
            slot.train = Some(std::mem::replace(&mut self.scratch, next));
            self.trains += 1;
        }
        Some(id)
    }

    /// Builds the message of slot `id` and answers where it is. It stays there, with all it points
    /// to, until [`settle`](Self::settle) frees the slot.
    pub(super) fn message(&mut self, id: u16) -> *const libc::msghdr {
        let slot = &mut self.slots[usize::from(id)];
        let mut departure = slot.departure;
        let mut end = slot.len;
        if let (true, Some(segment)) = (slot.one_by_one, departure.segment.take()) {
            end = end.min(slot.done + usize::from(segment));
        } else {
            departure.segment = slot.departure.segment;
        }
        let start = match &slot.train {
            Some(train) => train.as_ptr().cast_mut(),
            None => self
                .small
                .at(usize::from(id) * SMALL_BYTES, SMALL_BYTES)
                .as_ptr(),
        };
        slot.vector.iov_base = start.wrapping_add(slot.done).cast();
        slot.vector.iov_len = end - slot.done;
        slot.header.msg_namelen = encode_name(slot.to, &mut slot.name);
        slot.header.msg_name = slot.name.as_mut_ptr().cast();
        let control = encode_control(slot.to, departure, &mut slot.control);
        slot.header.msg_controllen = control;
        slot.header.msg_control = if control == 0 {
            std::ptr::null_mut()
        } else {
            slot.control.as_mut_ptr().cast()
        };
        slot.header.msg_iov = &raw mut slot.vector;
        slot.header.msg_iovlen = 1;
        &raw const slot.header
    }

    /// Takes the address off every message: the kernel refuses those that it has not read yet, and the completion frees
    /// the slot. Those that it has read keep theirs; of a train that leaves
    /// datagram by datagram no more follow.
    pub(super) fn address_nobody(&mut self) {
        for slot in &mut self.slots {
            slot.given_up = true;
            slot.header.msg_name = std::ptr::null_mut();
            slot.header.msg_namelen = 0;
        }
    }

    /// Decides what follows from the completion of slot `id` with `result`.
    pub(super) fn settle(&mut self, id: u16, result: i32) -> Settled {
        let Some(slot) = self.slots.get_mut(usize::from(id)) else {
            return Settled::Sent {
                datagrams: 0,
                bytes: 0,
            };
        };
        let segment = slot.departure.segment.map_or(slot.len, usize::from).max(1);
        let offloaded = slot.departure.segment.is_some() && !slot.one_by_one;
        let total = slot.len.div_ceil(segment) as u64;
        let gone = (slot.done / segment) as u64;
        if result < 0 {
            if offloaded && (result == -libc::EIO || result == -libc::EINVAL) {
                // Offload or the destination? The first datagram alone will tell.
                if !slot.given_up {
                    slot.one_by_one = true;
                    return Settled::Again;
                }
            }
            self.release(id);
            return Settled::Refused {
                datagrams: total - gone,
                sent: gone,
            };
        }
        if slot.one_by_one {
            let first = slot.done == 0;
            slot.done += segment;
            if slot.done < slot.len && slot.given_up {
                self.release(id);
                return Settled::Refused {
                    datagrams: total - gone - 1,
                    sent: gone + 1,
                };
            }
            if slot.done < slot.len {
                return if first {
                    Settled::AgainWithoutOffload
                } else {
                    Settled::Again
                };
            }
        }
        let bytes = slot.len as u64;
        self.release(id);
        Settled::Sent {
            datagrams: total,
            bytes,
        }
    }

    /// Gives slot `id` up without having sent it.
    pub(super) fn release(&mut self, id: u16) {
        if let Some(train) = self.slots[usize::from(id)].train.take() {
            self.trains -= 1;
            if self.spare.len() < SPARE_TRAINS {
                self.spare.push(train);
            }
        }
        self.free.push(id);
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            // SAFETY: a `msghdr` of zeroes is valid: null pointers and zero lengths.
            header: unsafe { std::mem::zeroed() },
            vector: libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            },
            name: [0; NAME_BYTES],
            control: [0; CONTROL_BYTES],
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            departure: Departure::default(),
            train: None,
            len: 0,
            done: 0,
            one_by_one: false,
            given_up: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(len: usize, segment: Option<usize>) -> quinn_proto::Transmit {
        quinn_proto::Transmit {
            destination: "127.0.0.1:9".parse().unwrap(),
            ecn: None,
            size: len,
            segment_size: segment,
            src_ip: None,
        }
    }

    fn put(slots: &mut Slots, len: usize, segment: Option<usize>) -> u16 {
        slots
            .fill(&mut |buffer| {
                buffer.resize(len, 7);
                Some(train(len, segment))
            })
            .unwrap()
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let mut slots = Slots::new().unwrap();
        let ids: Vec<u16> = (0..SLOTS).map(|_| put(&mut slots, 100, None)).collect();
        assert!(!slots.has_room());
        for id in ids {
            assert_eq!(
                slots.settle(id, 100),
                Settled::Sent {
                    datagrams: 1,
                    bytes: 100
                }
            );
        }
        assert!(slots.has_room());
    }

    #[test]
    fn long_trains_have_their_own_limit_and_keep_their_buffer() {
        let mut slots = Slots::new().unwrap();
        let ids: Vec<u16> = (0..TRAINS_MAX)
            .map(|_| put(&mut slots, 12_000, Some(1200)))
            .collect();
        assert!(!slots.has_room());
        for id in ids {
            assert_eq!(
                slots.settle(id, 12_000),
                Settled::Sent {
                    datagrams: 10,
                    bytes: 12_000
                }
            );
        }
        assert!(slots.has_room());
        assert!(slots.spare.len() <= SPARE_TRAINS);
    }

    #[test]
    fn a_train_refused_with_eio_goes_one_by_one_and_blames_offload_once_one_got_out() {
        let mut slots = Slots::new().unwrap();
        let id = put(&mut slots, 2500, Some(1200));
        assert_eq!(slots.settle(id, -libc::EIO), Settled::Again);
        slots.message(id);
        assert_eq!(slots.slots[usize::from(id)].vector.iov_len, 1200);
        assert_eq!(slots.settle(id, 1200), Settled::AgainWithoutOffload);
        assert_eq!(slots.settle(id, 1200), Settled::Again);
        slots.message(id);
        assert_eq!(slots.slots[usize::from(id)].vector.iov_len, 100);
        assert_eq!(
            slots.settle(id, 100),
            Settled::Sent {
                datagrams: 3,
                bytes: 2500
            }
        );
    }

    #[test]
    fn a_destination_that_is_refused_does_not_blame_offload() {
        let mut slots = Slots::new().unwrap();
        let id = put(&mut slots, 2500, Some(1200));
        assert_eq!(slots.settle(id, -libc::EINVAL), Settled::Again);
        assert_eq!(
            slots.settle(id, -libc::EINVAL),
            Settled::Refused {
                datagrams: 3,
                sent: 0
            }
        );
        assert!(slots.has_room());
    }
}
