//! A shard that does what a test tells it through the mailbox, and says what it saw.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use protocol::ids::ShardId;
use quinn_proto::{EcnCodepoint, Transmit};
use tempfile::TempDir;

use super::super::launch::{LaunchConfig, LaunchError, Launched, Seat, Shard, launch};
use super::super::mailbox::Sender;
use super::super::{Datagram, Datapath, DatapathKind, DatapathStats, Park, ParkKind, Sent, clock};

/// How long a test waits for what must come: long, so that only a loss fails it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Something to send.
#[derive(Debug, Clone)]
pub(super) struct Train {
    pub to: SocketAddr,
    pub from: Option<std::net::IpAddr>,
    pub ecn: Option<EcnCodepoint>,
    pub payload: Vec<u8>,
    pub segment: Option<usize>,
}

impl Train {
    pub(super) fn one(to: SocketAddr, payload: Vec<u8>) -> Self {
        Self {
            to,
            from: None,
            ecn: None,
            payload,
            segment: None,
        }
    }
}

/// What a test tells a shard.
pub(super) enum Word {
    /// Answer with `Event::Pong`.
    Ping(u64),
    /// Send this, as soon as there is room.
    Send(Train),
    /// Send so many datagrams of four bytes, numbered, as fast as there is room.
    Burst(SocketAddr, u32),
    /// Park no longer than until then; answer with `Event::Woke` when it is past.
    Deadline(Instant),
    /// So many times: hand in four bytes and discard them before they are submitted.
    Discard(SocketAddr, u32),
    /// Enter the kernel again and again without receiving, until the other end hangs up.
    Stall(Receiver<()>),
    /// Answer with `Event::Stats`.
    Stats,
    /// Send yourself this `Ping`, and let the datapath look before you park.
    PingYourself(u64),
    /// Panic.
    Die,
    /// Return before being told to.
    Leave,
}

/// What a shard says.
#[derive(Debug)]
pub(super) enum Event {
    Seen(ShardId, Datagram),
    Pong(u64, ShardId),
    Woke(Instant),
    Stats(Counters),
}

/// What a shard has counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    pub datapath: DatapathStats,
    pub max_segments: usize,
    pub turns: u64,
    /// Times that a train had to wait for a slot.
    pub no_room: u64,
    /// Datagrams that the test had not asked for yet.
    pub seen: u64,
}

/// The shard of the tests.
struct Puppet {
    echo: bool,
    events: mpsc::Sender<Event>,
}

/// What the puppet remembers between turns.
#[derive(Default)]
struct State {
    outbox: VecDeque<Train>,
    deadline: Option<Instant>,
    turns: u64,
    no_room: u64,
    /// The puppet's own mailbox.
    own: Option<Sender<Word>>,
}

impl Puppet {
    fn hear<D: Datapath>(
        &self,
        word: Word,
        shard: ShardId,
        datapath: &mut D,
        state: &mut State,
    ) -> io::Result<()> {
        let said = match word {
            Word::Ping(number) => Some(Event::Pong(number, shard)),
            Word::Stats => Some(Event::Stats(Counters {
                datapath: datapath.stats(),
                max_segments: datapath.max_segments(),
                turns: state.turns,
                no_room: state.no_room,
                seen: 0,
            })),
            Word::Send(train) => {
                state.outbox.push_back(train);
                None
            }
            Word::Burst(to, count) => {
                let one = |number: u32| Train::one(to, number.to_be_bytes().to_vec());
                state.outbox.extend((0..count).map(one));
                None
            }
            Word::Deadline(deadline) => {
                state.deadline = Some(deadline);
                None
            }
            Word::Discard(to, count) => {
                for _ in 0..count {
                    let sent = datapath.transmit(&mut |buffer| {
                        buffer.extend_from_slice(b"late");
                        Some(Transmit {
                            destination: to,
                            ecn: None,
                            size: 4,
                            segment_size: None,
                            src_ip: None,
                        })
                    })?;
                    assert_eq!(sent, Sent::Done);
                    datapath.discard();
                    datapath.flush()?;
                }
                None
            }
            Word::Stall(end) => {
                while end.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    datapath.flush()?;
                }
                None
            }
            Word::PingYourself(number) => {
                let own = state.own.as_ref().expect("set at the start");
                own.try_send(Word::Ping(number))
                    .ok()
                    .expect("there is room");
                datapath.flush()?;
                let early = datapath.receive(&mut Vec::new(), 64)?;
                assert_eq!(early, 0, "no packets in this test");
                datapath.flush()?;
                None
            }
            Word::Die => panic!("a shard dies on purpose"),
            Word::Leave => return Err(io::Error::other("a shard leaves on purpose")),
        };
        if let Some(said) = said {
            self.events.send(said).ok();
        }
        Ok(())
    }

    fn send<D: Datapath>(datapath: &mut D, state: &mut State) -> io::Result<()> {
        while let Some(train) = state.outbox.pop_front() {
            let sent = datapath.transmit(&mut |buffer| {
                buffer.extend_from_slice(&train.payload);
                Some(Transmit {
                    destination: train.to,
                    ecn: train.ecn,
                    size: train.payload.len(),
                    segment_size: train.segment,
                    src_ip: train.from,
                })
            })?;
            if sent == Sent::NoRoom {
                assert!(!datapath.has_room());
                state.no_room += 1;
                state.outbox.push_front(train);
                break;
            }
        }
        datapath.flush()
    }
}

impl Shard for Puppet {
    type Message = Word;

    async fn run<D: Datapath + 'static, P: Park<D> + 'static>(
        self,
        mut seat: Seat<D, P, Word>,
    ) -> io::Result<()> {
        assert_eq!(seat.mailboxes.len(), usize::from(seat.shards));
        let (mut state, mut arrived, mut words) = (State::default(), Vec::new(), Vec::new());
        state.own = Some(seat.mailboxes[usize::from(seat.shard.0)].clone());
        while !seat.stop.is_set() {
            seat.park.park(&mut seat.datapath, state.deadline).await?;
            state.turns += 1;
            // Few at a time, so that a turn often ends with work left over.
            assert!(seat.datapath.receive(&mut arrived, 64)? <= 64);
            for datagram in arrived.drain(..) {
                if self.echo {
                    state.outbox.push_back(Train {
                        to: datagram.remote,
                        from: datagram.local_ip,
                        ecn: datagram.ecn,
                        payload: datagram.payload.to_vec(),
                        segment: None,
                    });
                }
                self.events.send(Event::Seen(seat.shard, datagram)).ok();
            }
            words.extend(seat.mailbox.drain(16));
            for word in words.drain(..) {
                self.hear(word, seat.shard, &mut seat.datapath, &mut state)?;
            }
            let now = clock::now();
            if state
                .deadline
                .take_if(|deadline| *deadline <= now)
                .is_some()
            {
                self.events.send(Event::Woke(now)).ok();
            }
            Self::send(&mut seat.datapath, &mut state)?;
        }
        Ok(())
    }
}

/// Running puppets.
pub(super) struct Stage {
    pub launched: Launched<Word>,
    pub events: Receiver<Event>,
    /// Hears when a shard ended by itself.
    pub failures: Receiver<()>,
    _directory: TempDir,
}

/// What to put on the stage.
pub(super) struct Play {
    pub listen: &'static str,
    pub shards: u16,
    pub datapath: DatapathKind,
    pub park: ParkKind,
    pub echo: bool,
}

impl Play {
    pub(super) fn new(datapath: DatapathKind, park: ParkKind) -> Self {
        Self {
            listen: "127.0.0.1:0",
            shards: 1,
            datapath,
            park,
            echo: false,
        }
    }

    pub(super) fn start(&self) -> Result<Stage, LaunchError> {
        let directory = tempfile::tempdir().unwrap();
        let config = LaunchConfig {
            listen: self.listen.parse().unwrap(),
            shards: self.shards,
            datapath: self.datapath,
            park: self.park,
            pin_threads: true,
            lock_file: directory.path().join("lock"),
            mailbox_capacity: 64,
        };
        let (say, events) = mpsc::channel();
        let (fail, failures) = mpsc::channel();
        let launched = launch(
            &config,
            |_| Puppet {
                echo: self.echo,
                events: say.clone(),
            },
            Arc::new(move || fail.send(()).unwrap_or_default()),
        )?;
        Ok(Stage {
            launched,
            events,
            failures,
            _directory: directory,
        })
    }
}

impl Stage {
    pub(super) fn port(&self) -> u16 {
        self.launched.local_addr().port()
    }

    pub(super) fn shard(&self, shard: usize) -> &Sender<Word> {
        &self.launched.mailboxes()[shard]
    }

    /// Tells shard 0 something, waiting for room as no shard may.
    pub(super) fn tell(&self, word: Word) {
        let mut word = word;
        while let Err(full) = self.shard(0).try_send(word) {
            word = full.0;
            std::thread::yield_now();
        }
    }

    pub(super) fn next(&self) -> Event {
        self.events
            .recv_timeout(PATIENCE)
            .expect("a shard should have said something by now")
    }

    /// The next datagram that a shard saw.
    pub(super) fn seen(&self) -> (ShardId, Datagram) {
        match self.next() {
            Event::Seen(shard, datagram) => (shard, datagram),
            other => panic!("a datagram was expected, not {other:?}"),
        }
    }

    /// Shard 0's counters so far.
    pub(super) fn stats(&self) -> Counters {
        self.tell(Word::Stats);
        let mut seen = 0;
        loop {
            match self.next() {
                Event::Stats(counters) => return Counters { seen, ..counters },
                Event::Seen(..) => seen += 1,
                other => panic!("counters were expected, not {other:?}"),
            }
        }
    }

    pub(super) fn end(self) {
        self.launched.stop().unwrap();
        assert!(self.failures.try_recv().is_err());
    }
}

/// A client's socket, with large buffers, that talks to `server`.
pub(super) fn client(server: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if server.is_ipv4() {
        "127.0.0.1:0".parse().unwrap()
    } else {
        "[::1]:0".parse().unwrap()
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket2::SockRef::from(&socket)
        .set_recv_buffer_size(8 << 20)
        .unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The next datagram of a client's socket.
pub(super) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let len = socket
        .recv(&mut buffer)
        .expect("a datagram should have come by now");
    buffer.truncate(len);
    buffer
}
