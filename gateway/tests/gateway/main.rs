//! A whole gateway on real sockets, spoken to by agents made of quinn-proto. Every test runs on the
//! io_uring datapath under monoio and on the fallback datapath; some also without monoio.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod commands;
mod door;
mod footprint;
mod leaving;
mod sessions;
mod shards;
mod support;

/// Counts only while a profiler runs (see `footprint`); otherwise it is the system's allocator.
#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

/// Makes one test of each function and runtime.
macro_rules! on_every_runtime {
    ($($name:ident)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name($crate::setup(gateway::DatapathKind::Uring, gateway::ParkKind::Monoio)); })*
        }
        mod poll {
            $(#[test] fn $name() { super::$name($crate::setup(gateway::DatapathKind::Poll, gateway::ParkKind::Monoio)); })*
        }
    };
}

/// Makes one test of each function on io_uring without monoio.
macro_rules! on_direct {
    ($($name:ident)*) => {
        mod direct {
            $(#[test] fn $name() { super::$name($crate::setup(gateway::DatapathKind::Uring, gateway::ParkKind::Direct)); })*
        }
    };
}

use {on_direct, on_every_runtime};

fn setup(datapath: gateway::DatapathKind, park: gateway::ParkKind) -> support::world::Setup {
    support::world::Setup::new(datapath, park)
}
