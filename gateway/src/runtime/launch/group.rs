//! The sockets of a gateway: one reuseport group, bound in the order of the shards.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::steering;
use super::LaunchError;

/// What a socket asks to hold of packets not read or sent yet; the kernel gives what
/// `net.core.rmem_max` and `wmem_max` allow. It costs memory only while a shard is behind.
pub(super) const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// An address in use is tried again this often, [`BUSY_PAUSE`] apart: 3 s in all.
///
/// A process that was killed leaves its sockets behind for a moment: its io_uring, which refers to
/// them, is taken down by a worker of the kernel after the process has been reaped. Whoever starts
/// the server again at once, as systemd does, must not fail by that.
const BUSY_TRIES: u32 = 60;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Binds `shards` sockets to `listen` and has them steered.
///
/// The first socket is bound *without* `SO_REUSEPORT`, so that it fails where anyone else is bound
/// already, also a gateway with another lock file: two groups of one user would merge silently.
/// May sleep for 3 s while the address is in use.
pub(super) fn bind(
    listen: SocketAddr,
    shards: u16,
) -> Result<(Vec<Arc<UdpSocket>>, SocketAddr), LaunchError> {
    let failed = |source| LaunchError::Bind {
        address: listen,
        source,
    };
    let first = open(listen).map_err(failed)?;
    bind_patiently(&first, listen, BUSY_TRIES).map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    let first = Arc::new(UdpSocket::from(first));
    let local_addr = first.local_addr().map_err(failed)?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        let socket = open(listen).map_err(failed)?;
        socket.set_reuse_port(true).map_err(failed)?;
        socket.bind(&local_addr.into()).map_err(failed)?;
        sockets.push(Arc::new(UdpSocket::from(socket)));
    }
    steering::attach(&sockets).map_err(LaunchError::Steering)?;
    Ok((sockets, local_addr))
}

#[expect(
    clippy::disallowed_methods,
    reason = "no shard runs yet, and the caller waits for the start anyway"
)]
fn bind_patiently(socket: &Socket, listen: SocketAddr, tries: u32) -> io::Result<()> {
    for tried in 0..tries {
        match socket.bind(&listen.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if tried == 0 {
                    tracing::info!(address = %listen, "the address is in use: trying again for 3 s");
                }
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
    socket.bind(&listen.into())
}

fn open(listen: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if listen.is_ipv6() {
        // `[::]` serves both families, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}

/// The CPUs to pin shards to: those that this process may use, or none.
pub(super) fn cpus(pin: bool) -> Vec<usize> {
    let Some(allowed) = pin.then(|| sched_getaffinity(None)) else {
        return Vec::new();
    };
    match allowed {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot learn which CPUs there are: shards are not pinned");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_group_on_the_same_address_is_refused() {
        let (_sockets, address) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let error = bind(address, 2).unwrap_err();
        assert!(matches!(error, LaunchError::Bind { .. }));
        assert!(error.to_string().contains("stop who uses it"));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "somebody leaves the address later"
    )]
    fn an_address_that_is_left_in_time_is_taken() {
        let (sockets, address) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let leaving = thread::spawn(move || {
            thread::sleep(BUSY_PAUSE * 2);
            drop(sockets);
        });
        let (_sockets, again) = bind(address, 2).unwrap();
        assert_eq!(again, address);
        leaving.join().unwrap();
    }
}
