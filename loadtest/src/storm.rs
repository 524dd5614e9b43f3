//! An attack on a gateway's door: first flights that never become sessions.
//!
//! ```text
//!   silent    one Initial, then nothing, whatever comes back
//!   drip      the same, and a PING or a repeated ClientHello every half second
//! ```
//!
//! Every source socket counts what it sent and what it got: RFC 9000 §8.1 lets a server send at most
//! three times what it received before the address is validated. No reply is ever acknowledged or
//! answered, so no address here is ever validated.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{ClientConfig, Connection, Endpoint, EndpointConfig};
use serde::Serialize;

use crate::clock;

/// What to send.
#[derive(Clone, Debug)]
pub struct Storm {
    /// The gateway.
    pub target: SocketAddr,
    /// Attempts a second.
    pub rate: u32,
    /// How long.
    pub duration: Duration,
    /// Source addresses (sockets) to send from.
    pub sources: usize,
    /// Every n-th attempt drips; the others are silent.
    pub drip_every: u32,
}

/// What came back.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StormReport {
    /// Attempts begun.
    pub attempts: u64,
    /// Datagrams that could not be sent.
    pub unsent: u64,
    /// Bytes of UDP payload sent.
    pub bytes_sent: u64,
    /// Bytes of UDP payload received.
    pub bytes_received: u64,
    /// The highest ratio of received to sent at any source at any moment.
    pub worst_ratio: f64,
}

struct Source {
    socket: UdpSocket,
    sent: u64,
    received: u64,
}

struct Dripping {
    source: usize,
    connection: Connection,
    next: Instant,
    until: Instant,
}

const DRIP_INTERVAL: Duration = Duration::from_millis(500);
/// Looking at a thousand sockets takes longer than an attempt.
const COLLECT_INTERVAL: Duration = Duration::from_millis(50);
/// Twice the deadline that a half-open handshake has.
const DRIP_LIFE: Duration = Duration::from_secs(10);

impl Storm {
    /// Runs the storm on the calling thread. `config` is the client's TLS and transport.
    ///
    /// # Errors
    /// When the source sockets cannot be made.
    pub fn run(&self, config: &ClientConfig) -> io::Result<StormReport> {
        let mut sources = (0..self.sources.max(1))
            .map(|_| {
                let socket = UdpSocket::bind(("127.0.0.1", 0))?;
                socket.set_nonblocking(true)?;
                Ok(Source {
                    socket,
                    sent: 0,
                    received: 0,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let endpoint_config = Arc::new(EndpointConfig::default());
        let start = clock::now();
        let interval = Duration::from_secs(1) / self.rate.max(1);
        let mut report = StormReport::default();
        let mut dripping = VecDeque::new();
        let mut next_collection = start;
        loop {
            let now = clock::now();
            if now.duration_since(start) >= self.duration {
                break;
            }
            let due = u32::try_from(report.attempts).unwrap_or(u32::MAX);
            if now < start + interval * due {
                self.drip(&mut dripping, &mut sources, &mut report, now);
                if next_collection <= now {
                    collect(&mut sources, &mut report);
                    next_collection = now + COLLECT_INTERVAL;
                }
                std::thread::park_timeout(Duration::from_millis(1));
                continue;
            }
            let source = usize::try_from(report.attempts).unwrap_or(0) % sources.len();
            report.attempts += 1;
            let mut endpoint = Endpoint::new(Arc::clone(&endpoint_config), None, false, None);
            let Ok((_, mut connection)) = endpoint.connect(
                now,
                config.clone(),
                self.target,
                protocol::identity::GATEWAY_SERVER_NAME,
            ) else {
                continue;
            };
            self.send(&mut connection, &mut sources[source], &mut report, now);
            if report
                .attempts
                .is_multiple_of(u64::from(self.drip_every.max(1)))
            {
                dripping.push_back(Dripping {
                    source,
                    connection,
                    next: now + DRIP_INTERVAL,
                    until: now + DRIP_LIFE,
                });
            }
        }
        std::thread::park_timeout(Duration::from_millis(500));
        collect(&mut sources, &mut report);
        Ok(report)
    }

    fn drip(
        &self,
        dripping: &mut VecDeque<Dripping>,
        sources: &mut [Source],
        report: &mut StormReport,
        now: Instant,
    ) {
        dripping.retain(|drip| now < drip.until);
        for drip in dripping.iter_mut().filter(|drip| drip.next <= now) {
            drip.next = now + DRIP_INTERVAL;
            drip.connection.ping();
            drip.connection.handle_timeout(now);
            self.send(&mut drip.connection, &mut sources[drip.source], report, now);
        }
    }

    fn send(
        &self,
        connection: &mut Connection,
        source: &mut Source,
        report: &mut StormReport,
        now: Instant,
    ) {
        let mut buffer = Vec::with_capacity(1500);
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut buffer) {
            // Counted before it is sent: the reply may be there before `send_to` returns.
            source.sent += transmit.size as u64;
            report.bytes_sent += transmit.size as u64;
            if source
                .socket
                .send_to(&buffer[..transmit.size], self.target)
                .is_err()
            {
                report.unsent += 1;
            }
            buffer.clear();
        }
    }
}

fn collect(sources: &mut [Source], report: &mut StormReport) {
    let mut buffer = [0; 2048];
    for source in sources {
        while let Ok((bytes, _)) = source.socket.recv_from(&mut buffer) {
            source.received += bytes as u64;
            report.bytes_received += bytes as u64;
        }
        if source.sent > 0 {
            #[expect(clippy::cast_precision_loss, reason = "byte counts well below 2^53")]
            let ratio = source.received as f64 / source.sent as f64;
            report.worst_ratio = report.worst_ratio.max(ratio);
        }
    }
}
