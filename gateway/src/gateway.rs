//! A running gateway, seen from outside its shards.
//!
//! ```text
//!   start ─▶ Gateway ── handle ─▶ Handle: send(Request), receive(Event), telemetry
//!               └─ stop ─▶ sessions closed, threads joined
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use protocol::ids::ShardId;
use protocol::limits::MAILBOX_MAX;
use protocol::link::{Event, Request, Route};

use crate::config::Config;
use crate::lease::Lease;
use crate::runtime::clock;
use crate::runtime::launch::{LaunchConfig, LaunchError, Launched, ShardFailure, StopFlag, launch};
use crate::runtime::mailbox::Sender;
use crate::runtime::steering::ConnectionIds;
use crate::shard::message::ShardMessage;
use crate::shard::{ShardConfig, ShardTask};
use crate::telemetry::{Hub, Measure, Measurement, Telemetry};
use crate::tls::{self, TlsError};
use crate::uplink::{Uplink, UplinkQueue, Wake};

/// Why a gateway did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TLS material.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address, the lock file, the kernel or a thread.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// No randomness.
    #[error("the system gave no random numbers: {0}")]
    Random(#[source] io::Error),
}

/// Why a request was not taken. Nothing happened, or, for a request to every shard, perhaps on some
/// of them: sending it again is right in either case.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A shard has too much to do; here is the request back.
    #[error("a shard's mailbox is full; send the request again in a few milliseconds")]
    Full(Box<Request>),
    /// The gateway has stopped, or was never to have such a shard.
    #[error("the gateway has stopped")]
    Stopped,
}

/// A running gateway. Dropping it does what [`stop`](Self::stop) does, without the answer.
pub struct Gateway {
    launched: Launched<ShardMessage>,
    handle: Handle,
}

/// The way to and from a gateway. Cheap to clone; every clone may be used from any thread.
#[derive(Clone)]
pub struct Handle {
    mailboxes: Arc<[Sender<ShardMessage>]>,
    uplinks: Arc<[Arc<UplinkQueue>]>,
    /// Where the next `receive` begins, so that no shard is always last.
    next: Arc<AtomicUsize>,
    hub: Hub,
    stop: StopFlag,
}

/// Starts a gateway. `wake_control` is called, from a shard's thread, whenever events wait in
/// [`Handle::receive`], and once when a shard dies (see [`Handle::is_stopped`]); it must not block.
///
/// # Errors
/// [`StartError`]; then nothing runs and nothing is bound.
pub fn start(config: Config, wake_control: Wake) -> Result<Gateway, StartError> {
    start_under(config, None, wake_control)
}

/// As [`start`], for a gateway that sends commands only while `lease` holds. What is on its way through it when the
/// lease runs out is told as [`NotOwner`](protocol::link::NotDelivered::NotOwner); what may have reached its agent, as
/// uncertain.
///
/// # Errors
/// As [`start`].
pub fn start_under(
    config: Config,
    lease: Option<Arc<dyn Lease>>,
    wake_control: Wake,
) -> Result<Gateway, StartError> {
    let server = Arc::new(tls::server_config(
        &config.tls,
        &config.secrets,
        config.domain.into(),
    )?);
    let generation = rand::random();
    let (hub, recorders) = Hub::new(config.shards, clock::now());
    let mut recorders = recorders.into_iter();
    let uplinks: Arc<[_]> = (0..config.shards)
        .map(|_| Arc::new(UplinkQueue::new()))
        .collect();
    let advertise = Arc::from(config.advertise);
    let sessions = Arc::new(AtomicU64::new(1));
    let afloat: Arc<[AtomicUsize]> = (0..config.shards).map(|_| AtomicUsize::new(0)).collect();
    let launch_config = LaunchConfig {
        listen: config.listen,
        shards: config.shards,
        datapath: config.datapath,
        park: config.park,
        pin_threads: config.pin_threads,
        lock_file: config.lock_file,
        mailbox_capacity: MAILBOX_MAX,
    };
    let make = |shard: ShardId| {
        let ids = connection_ids(
            &config.secrets.connection_ids,
            shard,
            config.shards,
            generation,
        );
        ShardTask {
            config: ShardConfig {
                endpoint: Arc::new(tls::endpoint_config(&config.secrets, move || ids.clone())),
                server: Arc::clone(&server),
                admission: config.admission,
                advertise: Arc::clone(&advertise),
                reconnect_spread: config.reconnect_spread,
                adaptive_limits: config.adaptive_limits,
                sessions: Arc::clone(&sessions),
                afloat: Arc::clone(&afloat),
                lease: lease.clone(),
            },
            uplink: Uplink::new(
                Arc::clone(&uplinks[usize::from(shard.0)]),
                Arc::clone(&wake_control),
            ),
            recorder: recorders
                .next()
                .expect("the hub made one recorder for each shard"),
        }
    };
    let launched = launch(&launch_config, make, Arc::clone(&wake_control))?;
    tracing::info!(address = %launched.local_addr(), shards = config.shards, gateway = %config.gateway, "gateway started");
    let handle = Handle {
        mailboxes: Arc::clone(launched.mailboxes()),
        uplinks: Arc::clone(&uplinks),
        next: Arc::default(),
        hub,
        stop: launched.stop_flag().clone(),
    };
    Ok(Gateway { launched, handle })
}

fn connection_ids(key: &[u8; 32], shard: ShardId, shards: u16, generation: u8) -> ConnectionIds {
    let mut half = [0; 16];
    half.copy_from_slice(&key[..16]);
    ConnectionIds::new(&half, shard, shards, generation)
}

impl Gateway {
    /// The way to and from it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where it listens, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.launched.local_addr()
    }

    /// Closes every session with `Draining`, stops the shards and waits for them. For an orderly
    /// end send [`Request::Drain`] first and wait for its deadline.
    ///
    /// # Errors
    /// The first failure of a shard, now or earlier. All threads have ended either way.
    pub fn stop(self) -> Result<(), ShardFailure> {
        self.launched.stop()
    }
}

impl Handle {
    /// Sends a request to the shard or shards that it is for. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Full`] gives the request back: send it again. Requests to every shard do no
    /// harm when some shards get them twice.
    pub fn send(&self, request: Request) -> Result<(), SendError> {
        if self.stop.is_set() {
            return Err(SendError::Stopped);
        }
        match request.route() {
            Route::Every => {
                let request = Box::new(request);
                for mailbox in &*self.mailboxes {
                    // A full mailbox gives back what it was given: that is `request` again.
                    deliver(mailbox, request.clone())?;
                }
                Ok(())
            }
            Route::Home(slot) => {
                let shards = u16::try_from(self.mailboxes.len()).unwrap_or(u16::MAX);
                self.deliver_to(slot.home(shards), Box::new(request))
            }
            Route::Shard(shard) => self.deliver_to(shard, Box::new(request)),
        }
    }

    /// Lets newcomers in where [`AdmissionConfig::shut_at_start`](crate::AdmissionConfig) keeps
    /// them out, once every request sent before has been taken. Whether every shard could be told;
    /// when not (a mailbox is full), call it again: repeating it does no harm.
    #[must_use]
    pub fn open(&self) -> bool {
        self.mailboxes
            .iter()
            .all(|mailbox| mailbox.try_send(ShardMessage::Open).is_ok())
    }

    /// Takes up to `max` events, in the order of each shard; answers how many.
    pub fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let before = out.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for place in 0..self.uplinks.len() {
            let uplink = &self.uplinks[first.wrapping_add(place) % self.uplinks.len()];
            while out.len() - before < max {
                match uplink.pop() {
                    Some(event) => out.push(event),
                    None => break,
                }
            }
        }
        out.len() - before
    }

    /// The figures of all shards, at most about a second old.
    pub fn telemetry(&self) -> Telemetry {
        self.hub.read()
    }

    /// The times of one kind of all shards together, at most about a second old.
    pub fn measurement(&self, measure: Measure) -> Measurement {
        self.hub.measurement(measure)
    }

    /// Whether the gateway has stopped: because it was told to, or because a shard died.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_set()
    }

    fn deliver_to(&self, shard: ShardId, request: Box<Request>) -> Result<(), SendError> {
        let mailbox = self
            .mailboxes
            .get(usize::from(shard.0))
            .ok_or(SendError::Stopped)?;
        deliver(mailbox, request)
    }
}

fn deliver(mailbox: &Sender<ShardMessage>, request: Box<Request>) -> Result<(), SendError> {
    // Nobody waits for a forget, and a shard has its turn once a second at the least.
    let idle = matches!(*request, Request::Forget { .. });
    let message = ShardMessage::Request(request, clock::now());
    let sent = match idle {
        true => mailbox.try_send_idly(message),
        false => mailbox.try_send(message),
    };
    sent.map_err(|full| match full.0 {
        ShardMessage::Request(request, _) => SendError::Full(request),
        _ => SendError::Stopped,
    })
}
