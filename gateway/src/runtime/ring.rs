//! The io_uring datapath: one ring per shard that does nothing but this shard's datagrams.
//!
//! ```text
//!            receive                                   transmit
//!   kernel ──▶ buffers (given by us) ──copy──▶ arena     slots ──▶ SQ ──▶ kernel
//!      │             ▲      │                              ▲               │
//!      │             └──────┘ given back at once           └── CQE frees ──┘
//!      └──▶ CQ ──▶ eventfd ──▶ MonoioPark        (DirectPark waits in io_uring_enter instead)
//! ```
//!
//! - `datapath`: the ring itself, its operations and completions.
//! - `buffers`: the provided buffer ring that multishot `recvmsg` fills.
//! - `slots`: what a `sendmsg` on its way needs kept in place.
//! - `message`: socket addresses and control messages, as bytes.
//! - `memory`: page-aligned memory that costs nothing until touched.
//! - `sockopt`: the socket options that no safe crate offers, for both datapaths.
//!
//! All `unsafe` code of this crate is in the files below this one.

mod buffers;
mod datapath;
mod memory;
mod message;
mod slots;
pub(super) mod sockopt;

#[cfg(test)]
pub(super) mod seccomp;

pub(super) use datapath::{UringDatapath, is_refusal};
