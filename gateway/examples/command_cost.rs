//! What a command costs a gateway's shard: CPU, turns and datagrams, at a rate that leaves it idle
//! most of the time, as a fleet does.
//!
//! ```sh
//! cargo run --release -p drover-gateway --example command_cost -- SESSIONS RATE SECONDS [monoio|direct] [SPLIT_MS]
//! ```
//!
//! One real gateway with one shard on the first CPU; the control plane and a client with all
//! sessions (quinn-proto on one socket, answering like agents) on the last. RATE 0: an idle fleet.
//! SPLIT_MS: the time between an agent's Accepted and its Finished; 0 sends them together.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for a terminal"
)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::telemetry::{Counter, Figures, Measure};
use gateway::{
    AdmissionConfig, Config, DatapathKind, Gateway, Handle, ParkKind, Secrets, TlsMaterial,
};
use protocol::flow::Demand;
use protocol::ids::{
    AgentId, Epoch, Fence, GatewayId, GroupId, OperationId, ProcessId, ServerId, Slot,
};
use protocol::link::{Event, Request, Target};
use protocol::operation::Command;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[path = "../tests/gateway/support/authority.rs"]
mod authority;
#[path = "command_cost/fleet.rs"]
mod fleet;

use authority::{Authority, DOMAIN};

const EPOCH: Epoch = Epoch(1);
const INPUT: [u8; 256] = [b'x'; 256];

struct Arguments {
    sessions: u32,
    rate: u32,
    seconds: u64,
    park: ParkKind,
    split: Duration,
}

fn arguments() -> Arguments {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u32| {
        words
            .get(place)
            .map_or(default, |word| word.parse().unwrap())
    };
    Arguments {
        sessions: number(0, 1000),
        rate: number(1, 1000),
        seconds: number(2, 5).into(),
        park: match words.get(3).map(String::as_str) {
            Some("direct") => ParkKind::Direct,
            _ => ParkKind::Monoio,
        },
        split: Duration::from_millis(number(4, 0).into()),
    }
}

fn pin_to_last_cpu() {
    let all = sched_getaffinity(None).unwrap();
    let last = (0..CpuSet::MAX_CPU).rfind(|cpu| all.is_set(*cpu)).unwrap();
    let mut set = CpuSet::new();
    set.set(last);
    sched_setaffinity(None, &set).unwrap();
}

fn target(n: u32) -> Target {
    let slot = u8::try_from(n % 256).unwrap();
    Target {
        agent: agent_id(n),
        group: GroupId::from_bytes([slot; 16]),
        slot: Slot(slot),
    }
}

fn agent_id(n: u32) -> AgentId {
    AgentId::from_bytes(u128::from(n).to_be_bytes())
}

struct Control {
    handle: Handle,
    wakes: Receiver<()>,
    events: Vec<Event>,
    operations: u128,
    up: u32,
    /// Operations that were asked for, by their agent, and when.
    wanted: std::collections::HashMap<AgentId, (u32, std::collections::VecDeque<Instant>)>,
    running: std::collections::HashMap<OperationId, (Instant, u32)>,
    times: hdrhistogram::Histogram<u64>,
}

impl Control {
    fn send(&self, request: Request) {
        self.handle.send(request).unwrap();
    }

    fn ask(&mut self, n: u32) {
        let target = target(n);
        let (_, wanted) = self
            .wanted
            .entry(target.agent)
            .or_insert((n, Default::default()));
        wanted.push_back(Instant::now());
        let ready = u32::try_from(wanted.len()).unwrap();
        self.send(Request::Demand {
            target,
            server: ServerId(1),
            lines: vec![Demand::of("exec", ready)],
        });
    }

    /// Handles what has come; waits for it until `until`.
    fn hear(&mut self, until: Instant) {
        let mut events = std::mem::take(&mut self.events);
        while self.handle.receive(&mut events, 1000) == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wakes.recv_timeout(left).is_err() {
                break;
            }
        }
        for event in events.drain(..) {
            match event {
                Event::SessionUp(_) => self.up += 1,
                Event::SessionDown { reason, .. } => panic!("a session is down: {reason:?}"),
                Event::Granted {
                    target,
                    grant,
                    permits,
                    ..
                } => {
                    for _ in 0..permits {
                        let (n, wanted) = self.wanted.get_mut(&target.agent).unwrap();
                        let Some(begin) = wanted.pop_front() else {
                            break;
                        };
                        let n = *n;
                        self.operations += 1;
                        let process = ProcessId::from_bytes(self.operations.to_be_bytes());
                        let operation = OperationId::new(process, 0);
                        self.running.insert(operation, (begin, n));
                        self.send(Request::Dispatch {
                            target,
                            grant,
                            epoch: EPOCH,
                            command: Box::new(Command {
                                operation,
                                fence: Fence(1),
                                kind: "exec".to_owned(),
                                input: Bytes::from_static(&INPUT),
                                deadline_ms: 4_000_000_000_000,
                            }),
                        });
                    }
                }
                Event::Finished {
                    target, operation, ..
                } => {
                    let (begin, _) = self.running.remove(&operation).unwrap();
                    let time = u64::try_from(begin.elapsed().as_micros()).unwrap();
                    self.times.record(time).unwrap();
                    self.send(Request::Forget {
                        target,
                        operations: vec![operation],
                    });
                }
                Event::Accepted { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.events = events;
    }
}

fn start(
    arguments: &Arguments,
    authority: &Authority,
) -> (Gateway, Receiver<()>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let own = authority.gateway();
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        shards: 1,
        datapath: DatapathKind::Auto,
        park: arguments.park,
        pin_threads: true,
        tls: TlsMaterial {
            chain: own.chain,
            key: own.key,
            agent_roots: vec![authority.agent_root()],
        },
        secrets: Secrets {
            connection_ids: [1; 32],
            stateless_reset: [2; 32],
            tokens: [3; 32],
        },
        domain: DOMAIN.to_owned(),
        gateway: GatewayId::from_bytes([9; 16]),
        lock_file: directory.path().join("gateway.lock"),
        admission: AdmissionConfig {
            handshakes_per_second: 100_000,
            handshake_burst: 100_000,
            half_open_max: 4096,
            half_open_retry: 4096,
            ..AdmissionConfig::default()
        },
        advertise: Vec::new(),
        reconnect_spread: Some(Duration::from_secs(5)),
        adaptive_limits: true,
    };
    let (wake, wakes): (SyncSender<()>, _) = sync_channel(1);
    let wake = move || {
        // Full: a wake waits already.
        wake.try_send(()).ok();
    };
    let gateway = gateway::start(config, Arc::new(wake)).unwrap();
    (gateway, wakes, directory)
}

/// CPU time of the shard's thread, and how often it was taken off its CPU to wait.
struct Usage {
    cpu: Duration,
    sleeps: u64,
}

fn shard_thread() -> std::path::PathBuf {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .find(|task| {
            let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            name.starts_with("shard")
        })
        .expect("the gateway has a thread for its shard")
}

fn usage(thread: &std::path::Path) -> Usage {
    let schedstat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
    let nanos = schedstat.split(' ').next().unwrap().parse().unwrap();
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let sleeps = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .map_or(0, |count| count.trim().parse().unwrap());
    Usage {
        cpu: Duration::from_nanos(nanos),
        sleeps,
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print(arguments: &Arguments, seconds: f64, usage: (Usage, Usage), figures: (Figures, Figures)) {
    let (before, after) = usage;
    let (from, to) = figures;
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    let commands = to.counter(Counter::CommandsFinished) - from.counter(Counter::CommandsFinished);
    let per = if arguments.rate == 0 {
        seconds
    } else {
        commands as f64
    };
    let turns = to.measurement(Measure::Turn).histogram().len()
        - from.measurement(Measure::Turn).histogram().len();
    let (was, is) = (from.datapath(), to.datapath());
    println!(
        "{} sessions, {:.0}/s: {:.1} us, {:.2} turns, {:.2} sleeps, {:.2} in, {:.2} out each{}; {:.2} % of a core",
        arguments.sessions,
        commands as f64 / seconds,
        cpu * 1e6 / per,
        turns as f64 / per,
        (after.sleeps - before.sleeps) as f64 / per,
        (is.datagrams_in - was.datagrams_in) as f64 / per,
        (is.datagrams_out - was.datagrams_out) as f64 / per,
        if arguments.rate == 0 { " second" } else { "" },
        cpu * 100.0 / seconds,
    );
}

fn main() {
    let arguments = arguments();
    let authority = Authority::new();
    let (gateway, wakes, _directory) = start(&arguments, &authority);
    pin_to_last_cpu();
    let handle = gateway.handle();
    let mut control = Control {
        handle: handle.clone(),
        wakes,
        events: Vec::new(),
        operations: 0,
        up: 0,
        wanted: Default::default(),
        running: Default::default(),
        times: hdrhistogram::Histogram::new(3).unwrap(),
    };
    for slot in 0..256 {
        let Target { group, slot, .. } = target(slot);
        control.send(Request::AssignGroup {
            group,
            slot,
            epoch: EPOCH,
        });
    }
    let own: Vec<_> = (0..arguments.sessions)
        .map(|n| (agent_id(n), authority.agent(agent_id(n))))
        .collect();
    for (n, (_, credentials)) in (0..).zip(&own) {
        let keys = vec![credentials.key_hash];
        let mut request = Request::AdmitAgent {
            target: target(n),
            keys,
        };
        while let Err(gateway::SendError::Full(back)) = control.handle.send(request) {
            request = *back;
            std::thread::yield_now();
        }
    }
    let (server, root, split) = (
        gateway.local_addr(),
        authority.gateway_root(),
        arguments.split,
    );
    std::thread::spawn(move || fleet::run(server, &root, own, split));
    while control.up < arguments.sessions {
        control.hear(Instant::now() + Duration::from_secs(1));
    }
    let thread = shard_thread();
    println!("thread {}", thread.file_name().unwrap().display());
    measure(&arguments, &mut control, &thread);
    gateway.stop().unwrap();
}

fn measure(arguments: &Arguments, control: &mut Control, thread: &std::path::Path) {
    let mut rng = SmallRng::seed_from_u64(1);
    let warm = Instant::now();
    let warmth = Duration::from_millis(2500);
    let end = warm + warmth + Duration::from_secs(arguments.seconds);
    let step = Duration::from_secs(1) / arguments.rate.max(1);
    let mut next = warm;
    let mut from = None;
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        if from.is_none() && now >= warm + warmth {
            control.times.clear();
            from = Some((now, usage(thread), control.handle.telemetry().total()));
        }
        if arguments.rate > 0 && now >= next {
            next += step;
            control.ask(rng.random_range(0..arguments.sessions));
            continue;
        }
        let idle = now + Duration::from_millis(100);
        let until = if arguments.rate > 0 {
            next.min(idle)
        } else {
            idle
        };
        control.hear(until.min(end));
    }
    let (begin, before, figures) = from.unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    let after = usage(thread);
    let to = control.handle.telemetry().total();
    print(arguments, seconds, (before, after), (figures, to));
    let at = |quantile| control.times.value_at_quantile(quantile);
    println!(
        "demand to finished, us: p50 {}, p99 {}, p99.9 {}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}
