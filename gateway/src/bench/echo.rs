//! The datapath with nothing above it: every datagram goes back to where it came from.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use quinn_proto::Transmit;

use crate::runtime::launch::{LaunchConfig, LaunchError, Launched, Seat, Shard, launch};
use crate::runtime::{Datagram, Datapath, DatapathKind, Park, ParkKind, Sent};

/// Datagrams of one turn.
const TURN_MAX: usize = 1024;

/// A running echo on one io_uring shard: what the kernel costs a gateway at least.
pub struct Echo(Launched<()>);

impl Echo {
    /// Starts it on a loopback port of its own choice.
    ///
    /// # Errors
    /// As for a gateway.
    pub fn start(lock_file: PathBuf) -> Result<Self, LaunchError> {
        let config = LaunchConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            shards: 1,
            datapath: DatapathKind::Uring,
            park: ParkKind::Direct,
            pin_threads: true,
            lock_file,
            mailbox_capacity: 1,
        };
        launch(&config, |_| EchoShard, Arc::new(|| {})).map(Self)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }
}

struct EchoShard;

impl Shard for EchoShard {
    type Message = ();

    async fn run<D: Datapath + 'static, P: Park<D> + 'static>(
        self,
        mut seat: Seat<D, P, ()>,
    ) -> io::Result<()> {
        let mut arrived = Vec::with_capacity(TURN_MAX);
        while !seat.stop.is_set() {
            seat.park.park(&mut seat.datapath, None).await?;
            seat.datapath.receive(&mut arrived, TURN_MAX)?;
            for datagram in arrived.drain(..) {
                send_back(&mut seat.datapath, &datagram)?;
            }
            seat.datapath.flush()?;
        }
        Ok(())
    }
}

/// A datagram that finds no room is lost, as on any network.
fn send_back<D: Datapath>(datapath: &mut D, datagram: &Datagram) -> io::Result<Sent> {
    datapath.transmit(&mut |buffer| {
        buffer.extend_from_slice(&datagram.payload);
        Some(Transmit {
            destination: datagram.remote,
            ecn: datagram.ecn,
            size: datagram.payload.len(),
            segment_size: None,
            src_ip: datagram.local_ip,
        })
    })
}
