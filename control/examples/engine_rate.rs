//! How many processes a second the process server and its store carry, and at what price in CPU.
//!
//! ```sh
//! cargo run --release -p drover-control --example engine_rate -- RATE SECONDS [AGENTS]
//! ```
//!
//! The gateway and the agents answer at once and cost next to nothing, so what is measured is the
//! control plane: creation with an idempotency key, claim, dispatch, accepted, finished, forget,
//! every step durable (`synchronous=FULL`) in a store in the current folder. RATE 0: as fast as 256
//! callers can.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a terminal"
)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use control::clock;
use control::dispatch::{self, Engine};
use control::downlink::{End, Link, LinkFull, Wake};
use control::store::processes::{Creation, IdempotencyKey, NewProcess};
use control::store::{Store, StoreError, sql};
use protocol::ids::{AgentId, Epoch, GatewayId, GrantId, ServerId, SessionId, ShardId};
use protocol::limits::GRANT_TTL;
use protocol::link::{Event, Request, SessionUp, Target};
use protocol::operation::{Outcome, OutcomeStatus};
use uuid::Uuid;

/// Answers everything at once.
struct Mirror {
    events: Mutex<VecDeque<Event>>,
    /// Permits granted and not used yet.
    granted: Mutex<HashMap<AgentId, u32>>,
    grants: AtomicU64,
    wake: Wake,
}

impl Mirror {
    /// Changes the count of an agent's unused permits, and says what it is then.
    fn granted(&self, agent: AgentId, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut granted = self.granted.lock().unwrap();
        let count = granted.entry(agent).or_default();
        *count = change(*count);
        *count
    }
}

impl Link for Mirror {
    fn gateway(&self) -> GatewayId {
        GatewayId(Uuid::from_u128(1))
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        let mut events = self.events.lock().unwrap();
        match request {
            Request::Demand {
                target,
                server,
                lines,
            } => {
                // All processes here wait in one line of their agent.
                let Some(demand) = lines.first() else {
                    return Ok(());
                };
                let ready = demand.ready;
                let granted = self.granted(target.agent, |count| count);
                let permits = ready.saturating_sub(granted);
                if permits == 0 {
                    return Ok(());
                }
                self.granted(target.agent, |count| count + permits);
                events.push_back(Event::Granted {
                    target,
                    server,
                    line: demand.number,
                    grant: GrantId(self.grants.fetch_add(1, Ordering::Relaxed)),
                    epoch: Epoch(1),
                    permits,
                    ttl: GRANT_TTL,
                });
            }
            Request::ReturnPermits { target, unused, .. } => {
                self.granted(target.agent, |count| count.saturating_sub(unused));
            }
            Request::Dispatch {
                target, command, ..
            } => {
                self.granted(target.agent, |count| count.saturating_sub(1));
                let (operation, fence) = (command.operation, command.fence);
                events.push_back(Event::Accepted {
                    target,
                    operation,
                    fence,
                });
                events.push_back(Event::Finished {
                    target,
                    operation,
                    fence,
                    outcome: Outcome {
                        status: OutcomeStatus::Succeeded,
                        exit_code: Some(0),
                        message: String::new(),
                        output: Bytes::from_static(b"done"),
                        service_time: Duration::from_millis(1),
                    },
                });
            }
            _ => return Ok(()),
        }
        self.wake.ring();
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let mut events = self.events.lock().unwrap();
        let count = max.min(events.len());
        out.extend(events.drain(..count));
        count
    }
}

#[tokio::main]
async fn main() {
    let argument = |at: usize, default: u64| {
        let text = std::env::args().nth(at);
        text.map_or(default, |text| text.parse().unwrap())
    };
    let (rate, seconds, agents) = (argument(1, 500), argument(2, 10), argument(3, 1000));
    let directory = tempfile::tempdir_in(".").unwrap();
    let store = Store::open("sqlite:", directory.path()).await.unwrap();
    let targets = enrol(&store, agents).await;
    let wake = Wake::new();
    let mirror = Arc::new(Mirror {
        events: Mutex::new(targets.iter().map(session_up).collect()),
        granted: Mutex::default(),
        grants: AtomicU64::new(1),
        wake: wake.clone(),
    });
    wake.ring();
    let link = Arc::clone(&mirror) as Arc<dyn Link>;
    let started = {
        let end = End {
            server: ServerId(1),
            link,
            wake,
        };
        dispatch::start(store.clone(), end).await.unwrap()
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (begun, cpu) = (clock::monotonic(), cpu_seconds());
    let made = drive(&started.engine, &targets, rate, seconds).await;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if started.engine.stats().succeeded >= made {
            break;
        }
    }
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let stats = started.engine.stats();
    let store_stats = store.stats();
    println!(
        "{made} processes in {took:.1} s, {:.0}/s",
        made as f64 / took
    );
    println!(
        "CPU {cpu:.2} s: {:.1} % of a core, {:.0} µs a process",
        100.0 * cpu / took,
        1e6 * cpu / made as f64
    );
    println!(
        "{} commits, {:.1} inputs a batch",
        store_stats.commits,
        stats.batch_size.mean()
    );
    for (name, times) in [
        ("commit", &store_stats.commit),
        ("batch", &stats.batch),
        ("created to claimed", &stats.start),
        ("created to ended", &stats.total),
    ] {
        let histogram = times.histogram();
        println!(
            "{name} µs: p50 {} p99 {} max {}",
            histogram.value_at_quantile(0.5),
            histogram.value_at_quantile(0.99),
            histogram.max()
        );
    }
}

/// Creates processes, each with a key of its own, and says how many.
async fn drive(engine: &Engine, targets: &[Target], rate: u64, seconds: u64) -> u64 {
    let made = Arc::new(AtomicU64::new(0));
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let callers = (0..256_u64).map(|caller| {
        let (engine, targets, made) = (engine.clone(), targets.to_vec(), Arc::clone(&made));
        tokio::spawn(async move {
            let mut at = tokio::time::Instant::now();
            let pause = Duration::from_secs_f64(256.0 / rate.max(1) as f64);
            if rate > 0 {
                at += pause.mul_f64(caller as f64 / 256.0);
            }
            for n in 0_u64.. {
                if rate > 0 {
                    tokio::time::sleep_until(at).await;
                    at += pause;
                }
                if tokio::time::Instant::now() >= end {
                    return;
                }
                let target = &targets[usize::try_from(caller * 7919 + n).unwrap() % targets.len()];
                let created = engine.create(vec![process(target, caller, n)]).await;
                if matches!(created.as_deref(), Ok([Creation::Created(_)])) {
                    made.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    made.load(Ordering::Relaxed)
}

fn process(target: &Target, caller: u64, n: u64) -> NewProcess {
    let deadline = clock::now().plus(Duration::from_secs(900));
    let input = r#"{"service_ms":5}"#;
    NewProcess {
        idempotency: Some(IdempotencyKey {
            scope: "rate".to_owned(),
            key: format!("{caller}-{n}"),
            fingerprint: [1; 32],
        }),
        ..NewProcess::of_driver(target.agent, "simulated", input, deadline)
    }
}

async fn enrol(store: &Store, agents: u64) -> Vec<Target> {
    store.ensure_automatic_groups(clock::now()).await.unwrap();
    let groups = store.groups().await.unwrap();
    let targets: Vec<Target> = (0..agents)
        .map(|n| {
            let group = &groups[usize::try_from(n).unwrap() % groups.len()];
            Target {
                agent: AgentId(Uuid::new_v4()),
                group: group.id,
                slot: group.slot,
            }
        })
        .collect();
    let rows = targets.clone();
    let enrolled = store.write(move |db| {
        Box::pin(async move {
            for target in rows {
                let agent = target.agent.to_bytes();
                sql::query(
                    "INSERT INTO agent (id, group_id, hostname, software, created_at)
                     VALUES ($1, $2, 'host', '', 0)",
                )
                .bind(agent.to_vec())
                .bind(target.group.to_bytes().to_vec())
                .execute(&mut *db)
                .await?;
                sql::query(
                    "INSERT INTO agent_key (agent_id, key_hash, pinned_at) VALUES ($1, $2, 0)",
                )
                .bind(agent.to_vec())
                .bind([agent, agent].concat())
                .execute(&mut *db)
                .await?;
            }
            Ok::<_, StoreError>(())
        })
    });
    enrolled.await.unwrap();
    targets
}

fn session_up(target: &Target) -> Event {
    Event::SessionUp(Box::new(SessionUp {
        target: *target,
        session: SessionId(1),
        shard: ShardId(0),
        at_home: true,
        remote: ([127, 0, 0, 1], 1).into(),
        capacity: 16,
        kinds: vec!["simulated".to_owned()],
        open: Vec::new(),
        hostname: "host".to_owned(),
        software: String::new(),
        labels: Vec::new(),
    }))
}

/// User and system time of this process so far (proc(5), fields 14 and 15, in 1/100 s).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}
