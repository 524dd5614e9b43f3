//! What this machine would give a gateway: the sockets, the steering and the rings of a real start, made
//! on the loopback address by the same code and let go again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn_udp::UdpSocketState;
use socket2::SockRef;

use super::super::mailbox::Waker;
use super::super::ring::is_refusal;
use super::super::{DatapathKind, ParkKind};
use super::{LaunchError, executor, group};

/// What became of the rings of io_uring, one for each shard, all at the same time.
#[derive(Debug)]
pub enum Rings {
    /// The datapath [`DatapathKind::Poll`] asks for none.
    NotAsked,
    /// The kernel gives them.
    Given,
    /// This machine has none for us: [`DatapathKind::Auto`] falls back, [`DatapathKind::Uring`] does not start.
    Refused(io::Error),
    /// Something else is in the way: no gateway starts that asks for rings.
    Failed(io::Error),
}

/// What a gateway would find on this machine.
#[derive(Debug)]
pub struct Machine {
    /// The rings.
    pub rings: Rings,
    /// Datagrams that the kernel takes in one send; 1: it does not split them (no segmentation offload).
    pub send_segments: usize,
    /// Bytes of packets not read yet that a shard's socket may hold.
    pub receive_buffer_bytes: usize,
    /// Bytes of packets not sent yet that a shard's socket may hold.
    pub send_buffer_bytes: usize,
    /// What a shard asks for, of either.
    pub wanted_buffer_bytes: usize,
    /// CPUs that this process may use.
    pub cpus: usize,
}

/// Tries what a gateway with as many `shards` on `listen` would need. The address itself is not touched:
/// a gateway may be running on it. Nothing of it is left when this returns.
///
/// # Errors
/// [`LaunchError`]: the kernel gives no sockets of this family, or does not steer packets to shards.
pub fn probe(
    listen: SocketAddr,
    shards: u16,
    datapath: DatapathKind,
    park: ParkKind,
) -> Result<Machine, LaunchError> {
    let address = loopback(listen);
    let (sockets, _) = group::bind(address, shards)?;
    let failed = |source| LaunchError::Bind { address, source };
    let first = sockets.first().ok_or(LaunchError::Shards(shards))?;
    let state = UdpSocketState::new((&**first).into()).map_err(failed)?;
    let options = SockRef::from(&**first);
    // The kernel answers with twice what it gave: the other half is for its own books.
    let receive_buffer_bytes = options.recv_buffer_size().map_err(failed)? / 2;
    let send_buffer_bytes = options.send_buffer_size().map_err(failed)? / 2;
    Ok(Machine {
        send_segments: state.max_gso_segments(),
        receive_buffer_bytes,
        send_buffer_bytes,
        wanted_buffer_bytes: group::SOCKET_BUFFER_BYTES,
        cpus: group::cpus(true).len(),
        rings: match datapath {
            DatapathKind::Poll => Rings::NotAsked,
            DatapathKind::Auto | DatapathKind::Uring => rings(&sockets, park),
        },
    })
}

/// All rings at once: what one shard gets may be refused to the next.
fn rings(sockets: &[Arc<UdpSocket>], park: ParkKind) -> Rings {
    let ring = |socket: &Arc<_>| executor::rings(Arc::clone(socket), Waker::new()?, park);
    match sockets.iter().map(ring).collect::<io::Result<Vec<_>>>() {
        Ok(_held) => Rings::Given,
        Err(error) if is_refusal(&error) => Rings::Refused(error),
        Err(error) => Rings::Failed(error),
    }
}

/// Any port of this machine alone, of the same family.
fn loopback(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, 0)
}

#[cfg(test)]
mod tests {
    use super::super::super::ring::seccomp::refuse_io_uring;
    use super::*;

    #[test]
    fn the_machine_is_told_and_the_address_left_alone() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let machine = probe(address, 2, DatapathKind::Poll, ParkKind::Direct).unwrap();
        assert!(matches!(machine.rings, Rings::NotAsked));
        assert!(machine.cpus >= 1 && machine.send_segments >= 1);
        assert!(machine.receive_buffer_bytes > 0 && machine.send_buffer_bytes > 0);
        assert!(machine.receive_buffer_bytes <= machine.wanted_buffer_bytes);
    }

    #[test]
    fn a_machine_that_refuses_io_uring_is_told_from_one_that_fails() {
        let ask = || {
            let listen = "0.0.0.0:7443".parse().unwrap();
            let machine = probe(listen, 2, DatapathKind::Auto, ParkKind::Monoio);
            machine.unwrap().rings
        };
        let before = ask();
        assert!(
            matches!(before, Rings::Given | Rings::Refused(_)),
            "{before:?}"
        );
        // On a thread of its own: what is taken away stays away.
        let after = std::thread::spawn(move || {
            refuse_io_uring().unwrap();
            ask()
        });
        assert!(matches!(after.join().unwrap(), Rings::Refused(_)));
    }
}
