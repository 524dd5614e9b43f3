//! A shard with real QUIC and a made-up network, clock and control plane: every run is the same.

use std::time::Duration;

use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::limits::{HANDSHAKE_DEADLINE, IDLE_TIMEOUT, KEEP_ALIVE, UPLINK_MAX};
use protocol::link::{DownReason, Event, Request, SecurityEvent};

use crate::session::fake::PANIC_HOSTNAME;
use crate::tls::PANIC_SERVER_NAME;

#[path = "../../tests/gateway/support/authority.rs"]
mod authority;
mod fencing;
mod network;

use network::{Network, hello};

fn panics(network: &mut Network) -> usize {
    let panicked = |event: &Event| {
        matches!(
            event,
            Event::Security {
                kind: SecurityEvent::HandlerPanicked,
                ..
            }
        )
    };
    let events = network.take_events();
    events.iter().filter(|event| panicked(event)).count()
}

#[test]
fn a_panic_in_a_handler_closes_that_session_alone() {
    let mut network = Network::new();
    let good = network.agent(1);
    network.welcome(good);
    let bad = network.agent(2);
    let mut words = hello(2);
    words.hostname = PANIC_HOSTNAME.to_owned();
    network.say(bad, &AgentMessage::Hello(Box::new(words)));
    network.run(Duration::from_millis(50));
    let code = u64::from(CloseCode::InternalError.to_wire());
    assert_eq!(network.close_code(bad), Some(code));
    assert_eq!(panics(&mut network), 1);
    network.say(good, &AgentMessage::Status { capacity: 1 });
    network.run(Duration::from_millis(50));
    assert_eq!(network.close_code(good), None);
    assert_eq!(network.worker.sessions, 1);
    let again = network.agent(2);
    network.welcome(again);
}

#[test]
fn a_panic_on_a_newcomers_first_bytes_drops_that_newcomer_alone() {
    let mut network = Network::new();
    let good = network.agent(1);
    network.welcome(good);
    network.agent_of(2, PANIC_SERVER_NAME);
    assert_eq!(panics(&mut network), 1);
    // It repeats its first packet, which leads nowhere.
    network.run(Duration::from_secs(3));
    assert_eq!(panics(&mut network), 0);
    assert_eq!(network.worker.endpoint.indices().count(), 1);
    assert_eq!(network.worker.endpoint.half_open(), 0);
    for n in [2, 3] {
        let newcomer = network.agent(n);
        network.welcome(newcomer);
    }
    assert_eq!(network.close_code(good), None);
    assert_eq!(network.worker.sessions, 3);
}

#[test]
#[should_panic(expected = "a test asked for this")]
fn a_shard_ends_when_panics_have_left_too_much_behind() {
    let mut network = Network::new();
    network.worker.endpoint.limit_orphans(2);
    for n in 1..=2 {
        network.agent_of(n, PANIC_SERVER_NAME);
    }
    assert_eq!(panics(&mut network), 2);
    network.agent_of(3, PANIC_SERVER_NAME);
}

#[test]
fn a_panic_on_a_datagram_drops_that_datagram_alone() {
    let mut network = Network::new();
    network.worker.endpoint.limit_orphans(0);
    let good = network.agent(1);
    network.welcome(good);
    for _ in 0..3 {
        network.trip();
        network.query(1);
        network.run(Duration::from_millis(20));
        assert_eq!(panics(&mut network), 1);
        assert!(matches!(
            network.heard(good)[..],
            [GatewayMessage::Query { .. }]
        ));
    }
    let newcomer = network.agent(2);
    network.welcome(newcomer);
}

#[test]
fn a_silent_agent_is_down_after_the_idle_time_and_its_memory_is_free() {
    let mut network = Network::new();
    let agent = network.agent(1);
    network.welcome(agent);
    assert_eq!(network.worker.endpoint.indices().count(), 1);
    network.cut(agent);
    // The first thing that is sent after the last that was heard begins the idle time anew (RFC 9000
    // §10.1): a PING, where nothing else was to be said.
    network.run(KEEP_ALIVE + IDLE_TIMEOUT + Duration::from_secs(1));
    let events = network.take_events();
    assert!(
        events.iter().any(|event| matches!(
            event,
            Event::SessionDown {
                reason: DownReason::TimedOut,
                ..
            }
        )),
        "{events:?}"
    );
    assert_eq!(network.worker.endpoint.indices().count(), 0);
}

#[test]
fn a_handshake_that_never_ends_is_dropped_without_lingering() {
    let mut network = Network::new();
    let agent = network.agent(1);
    assert_eq!(network.worker.endpoint.half_open(), 1);
    network.run(HANDSHAKE_DEADLINE + Duration::from_millis(20));
    assert_eq!(network.worker.endpoint.half_open(), 0);
    assert_eq!(network.worker.endpoint.indices().count(), 0);
    let code = u64::from(CloseCode::HelloTimeout.to_wire());
    assert_eq!(network.close_code(agent), Some(code));
}

#[test]
fn while_the_control_plane_is_full_no_frame_is_read_and_no_request_taken() {
    let mut network = Network::new();
    let agent = network.agent(1);
    network.welcome(agent);
    network.fill_uplink();
    for capacity in [1, 2, 3] {
        network.say(agent, &AgentMessage::Status { capacity });
    }
    network.request(Request::RevokeAgent {
        agent: network::agent_id(1),
    });
    network.run(Duration::from_millis(100));
    assert_eq!(network.close_code(agent), None, "the request waits");
    assert_eq!(network.take_events().len(), UPLINK_MAX);
    network.run(Duration::from_millis(100));
    let code = u64::from(CloseCode::Revoked.to_wire());
    assert_eq!(network.close_code(agent), Some(code));
    let events = network.take_events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::SessionDown { .. })),
        "{events:?}"
    );
}

#[test]
fn without_a_transmit_slot_sessions_wait_and_then_all_are_served() {
    let mut network = Network::new();
    let agents = [1, 2, 3].map(|n| {
        let agent = network.agent(n);
        network.welcome(agent);
        agent
    });
    network.datapath.room = false;
    for _ in 0..5 {
        for n in [1, 2, 3] {
            network.query(n);
        }
        network.run(Duration::from_millis(10));
        let waiting = network.worker.endpoint.blocked_len();
        assert_eq!(waiting, 3, "each waits once, however often it has work");
    }
    assert!(agents.iter().all(|agent| network.heard(*agent).is_empty()));
    network.datapath.room = true;
    network.run(Duration::from_millis(50));
    for agent in agents {
        let heard = network.heard(agent);
        assert_eq!(heard.len(), 5, "{heard:?}");
        assert!(
            heard
                .iter()
                .all(|word| matches!(word, GatewayMessage::Query { .. }))
        );
    }
}

#[test]
fn only_so_many_closed_connections_linger() {
    let mut network = Network::new();
    let agents: Vec<_> = (1..=3).map(|n| network.agent(n)).collect();
    agents.iter().for_each(|agent| network.welcome(*agent));
    network.worker.endpoint.fill_farewells();
    network.request(Request::RevokeAgent {
        agent: network::agent_id(2),
    });
    network.run(Duration::from_millis(2));
    assert_eq!(
        network.worker.endpoint.indices().count(),
        2,
        "gone with its last packet"
    );
    network.run(Duration::from_millis(5));
    let code = u64::from(CloseCode::Revoked.to_wire());
    assert_eq!(
        network.close_code(agents[1]),
        Some(code),
        "which has arrived"
    );
}

#[test]
fn damaged_and_made_up_datagrams_harm_nobody() {
    let mut network = Network::new();
    let good = network.agent(1);
    network.welcome(good);
    for seed in 0..400 {
        network.damage(seed);
        network.run(Duration::from_millis(1));
    }
    assert_eq!(network.close_code(good), None);
    network.query(1);
    network.run(Duration::from_millis(50));
    assert!(matches!(
        network.heard(good)[..],
        [GatewayMessage::Query { .. }]
    ));
    let newcomer = network.agent(2);
    network.welcome(newcomer);
}
