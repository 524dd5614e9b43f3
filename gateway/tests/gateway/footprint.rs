//! What an idle session holds on the heap, allocation by allocation. `docs/MEMORY.md` has the table.
//!
//! The table comes from
//! `cargo test --release -p drover-gateway --test gateway footprint -- --nocapture --test-threads 1`.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway::{AdmissionConfig, DatapathKind, ParkKind};
use protocol::flow::Demand;
use protocol::ids::{Fence, GrantId, GroupId, ServerId, Slot};
use protocol::link::{Event, Request, Target};
use protocol::operation::Command;
use serde_json::Value;

use crate::support::agent::{Agent, hello};
use crate::support::world::{EPOCH, Setup, World};
use crate::support::{agent_id, operation};

/// Sessions that are up before counting begins: what a shard allocates once is there by then.
const WARM_UP: u8 = 20;
const SESSIONS: u8 = 100;
/// Live heap bytes of one idle session, all of the gateway included.
const IDLE_BYTES_MAX: u64 = 12_500;
/// What traffic that is over may leave behind.
const AFTER_BYTES_MAX: u64 = 13_100;

#[test]
fn an_idle_session_holds_little_memory() {
    let held = measure("idle", |_, _| {});
    assert!(held <= IDLE_BYTES_MAX, "{held} bytes a session");
}

#[test]
fn a_session_is_as_small_after_its_commands() {
    let held = measure("idle after four commands", |world, agent| {
        for n in 0..4 {
            run_command(world, agent, n);
        }
    });
    assert!(held <= AFTER_BYTES_MAX, "{held} bytes a session");
}

/// The live heap bytes of a session; prints the table.
fn measure(title: &str, mut traffic: impl FnMut(&mut World, &mut Agent)) -> u64 {
    let setup = Setup::new(DatapathKind::Poll, ParkKind::Monoio).admission(AdmissionConfig {
        handshake_burst: 1000,
        ..AdmissionConfig::default()
    });
    let mut world = World::start(setup);
    let mut agents = Vec::new();
    for n in 0..WARM_UP {
        agents.push(connect(&mut world, n, &mut traffic));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("heap.json");
    let profiler = dhat::Profiler::builder()
        .file_name(&file)
        .trim_backtraces(None)
        .build();
    for n in 0..SESSIONS {
        agents.push(connect(&mut world, WARM_UP + n, &mut traffic));
    }
    // Acknowledgements and connection ids are on their way for a while.
    for _ in 0..3 {
        for agent in &mut agents {
            agent.client.drive_for(Duration::from_millis(5));
        }
    }
    drop(profiler);
    let text = std::fs::read_to_string(file).unwrap();
    report(title, &serde_json::from_str(&text).unwrap())
}

/// A fleet has few groups: all agents are of one.
fn target(n: u8) -> Target {
    Target {
        agent: agent_id(n.into()),
        group: GroupId::from_bytes([1; 16]),
        slot: Slot(1),
    }
}

fn connect(world: &mut World, n: u8, traffic: &mut impl FnMut(&mut World, &mut Agent)) -> Agent {
    let target = target(n);
    let credentials = world.authority.agent(target.agent);
    world.admit_with(target, &credentials);
    let mut agent = Agent::connect(target.agent, &world.options(&credentials));
    agent.welcome(hello(target.agent));
    world.session_up(target.agent);
    traffic(world, &mut agent);
    agent
}

fn run_command(world: &mut World, agent: &mut Agent, n: u128) {
    let target = Target {
        agent: agent.id,
        ..target(0)
    };
    world.send(Request::Demand {
        target,
        server: ServerId(1),
        lines: vec![Demand::of("exec", 1)],
    });
    let grant: GrantId = world.event(|event| match event {
        Event::Granted {
            target: of, grant, ..
        } if *of == target => Some(*grant),
        _ => None,
    });
    let operation = operation(u128::from_be_bytes(agent.id.to_bytes()) << 8 | n);
    let command = Command {
        operation,
        fence: Fence(1),
        kind: "exec".to_owned(),
        input: bytes::Bytes::from_static(&[b' '; 256]),
        deadline_ms: 4_000_000_000_000,
    };
    world.send(Request::Dispatch {
        target,
        grant,
        epoch: EPOCH,
        command: Box::new(command),
    });
    let (stream, ..) = agent.command();
    agent.accept(stream, operation, Fence(1));
    agent.complete(stream, operation, Fence(1));
    world.event(|event| {
        matches!(event, Event::Finished { operation: of, .. } if *of == operation).then_some(())
    });
    world.send(Request::Forget {
        target,
        operations: vec![operation],
    });
    // The agent hears of it with its next command, or later: the last one is part of what is held.
}

/// Sums what the shard's thread allocated and still holds, by the place that asked for it.
fn report(title: &str, profile: &Value) -> u64 {
    let frames: Vec<&str> = profile["ftbl"]
        .as_array()
        .unwrap()
        .iter()
        .map(|frame| frame.as_str().unwrap())
        .collect();
    let mut places: BTreeMap<(u64, String), u64> = BTreeMap::new();
    for point in profile["pps"].as_array().unwrap() {
        let (bytes, blocks) = (count(&point["eb"]), count(&point["ebk"]));
        let trace: Vec<&str> = point["fs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|index| frames.get(usize::try_from(count(index)).unwrap()).copied())
            .collect();
        let has = |word| trace.iter().any(|frame| frame.contains(word));
        // Figures and receive buffers belong to the shard, not to its sessions.
        let shared = has("gateway::telemetry::") || has("arena::Arena::");
        if blocks > 0 && has("gateway::shard::") && !shared {
            let key = (bytes / blocks, place(&trace));
            *places.entry(key).or_default() += blocks;
        }
    }
    let mut rows: Vec<_> = places.into_iter().collect();
    rows.sort_by_key(|((size, _), blocks)| std::cmp::Reverse(size * blocks));
    println!("{title}: bytes a session, blocks a session, bytes a block, asked for by");
    let sessions = u64::from(SESSIONS);
    for ((size, place), blocks) in &rows {
        let tenths = blocks * 10 / sessions;
        println!(
            "{:>7} {:>4}.{} {size:>7}  {place}",
            size * blocks / sessions,
            tenths / 10,
            tenths % 10
        );
    }
    let total: u64 = rows.iter().map(|((size, _), blocks)| size * blocks).sum();
    println!("{:>7} in all", total / sessions);
    total / sessions
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// The innermost functions that are somebody's own, not a container's.
fn place(trace: &[&str]) -> String {
    const OWNERS: [&str; 3] = ["quinn_proto::", "gateway::", "rustls::"];
    let names = trace.iter().filter_map(|frame| {
        let name = frame.split_once(": ")?.1.split(" (").next()?;
        let own = OWNERS.iter().any(|owner| name.contains(owner));
        (own && !name.contains("alloc::")).then_some(name)
    });
    names.take(3).collect::<Vec<_>>().join(" < ")
}
