//! How sessions begin and end.

use std::time::Duration;

use protocol::agent::{ALPN_SESSION, AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::frame::encode_agent_message;
use protocol::ids::{AgentId, Epoch, Fence};
use protocol::limits::CONTROL_FRAME_BYTES_MAX;
use protocol::link::{DownReason, Event, Request, SecurityEvent};
use protocol::operation::OperationState;
use protocol::version::VersionRange;
use quinn_proto::{ConnectionError, Dir};

use crate::support::agent::{Agent, hello};
use crate::support::authority::{Authority, Credentials};
use crate::support::client::{Client, ClientOptions};
use crate::support::world::{EPOCH, Setup, World};
use crate::support::{agent_id, operation};
use crate::{on_direct, on_every_runtime};

on_every_runtime! {
    hello_is_answered_with_welcome
    the_newest_session_of_an_agent_wins
    keys_change_from_either_side
    another_agents_name_in_hello_closes_the_session
    a_session_without_a_certificate_is_closed
    certificates_of_others_fail_in_tls
    certificates_that_name_no_agent_are_refused
    a_key_that_is_not_pinned_is_refused
    a_revoked_agent_is_closed_and_stays_out
    a_session_on_a_key_that_is_no_longer_pinned_is_closed
    a_session_ends_with_its_certificate
    a_released_groups_agents_are_sent_on
    bad_frames_close_the_session
    frames_at_the_wrong_time_close_the_session
    an_agent_has_one_stream_and_its_end_is_the_sessions
    an_agent_that_leaves_is_down_with_its_own_code
    no_common_version_is_said
}

on_direct! {
    hello_is_answered_with_welcome
    the_newest_session_of_an_agent_wins
    a_revoked_agent_is_closed_and_stays_out
}

fn wire(code: CloseCode) -> u64 {
    u64::from(code.to_wire())
}

fn hello_is_answered_with_welcome(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut agent = Agent::connect(agent_id(1), &world.options(&credentials));
    let welcome = agent.welcome(hello(agent.id));
    assert_eq!(
        (welcome.group, welcome.epoch),
        (world.target(1).group, EPOCH)
    );
    assert_eq!(welcome.addresses, ["gateway.test:7443"]);
    let up = world.session_up(agent.id);
    assert_eq!(
        (up.session, up.remote),
        (welcome.session, agent.client.local_addr())
    );
    world.stop();
    assert_eq!(agent.client.close_code(), wire(CloseCode::Draining));
}

/// The agent changes the keys in every round. The gateway does so by itself at the latest after its
/// first thousand packets; each word here is one.
fn keys_change_from_either_side(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    let say = |world: &World, agent: &mut Agent, n| {
        let (operation, fence) = (operation(n), Fence(1));
        world.send(Request::Cancel {
            target: world.target(1),
            operation,
            fence,
        });
        let cancel = GatewayMessage::Cancel {
            operation,
            fence,
            epoch: EPOCH,
        };
        assert_eq!(agent.next(agent.control), cancel);
    };
    for round in 0..5 {
        agent.client.connection.force_key_update();
        say(&world, &mut agent, round);
        // Three probe timeouts must pass between two changes (RFC 9001 §6.5).
        agent.client.drive_for(Duration::from_millis(200));
    }
    for n in 0..1100 {
        say(&world, &mut agent, n);
    }
    assert!(agent.client.lost.is_none());
}

fn the_newest_session_of_an_agent_wins(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let (mut first, first_up) = world.agent_with(1, &credentials, None);
    let mut second = Agent::connect(first.id, &world.options(&credentials));
    let mut newer = hello(first.id);
    newer.session_count = 2;
    second.welcome(newer);
    assert_eq!(first.client.close_code(), wire(CloseCode::Superseded));
    let second_up = world.session_up(first.id);
    assert!(second_up.session > first_up.session);
    let mut old = Agent::connect(first.id, &world.options(&credentials));
    old.say(old.control, &AgentMessage::Hello(Box::new(hello(first.id))));
    assert_eq!(
        old.client.close_code(),
        wire(CloseCode::Superseded),
        "an older count loses"
    );
    world.dispatch(1, operation(1), Fence(1));
    second.command();
}

fn another_agents_name_in_hello_closes_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    world.admit(2);
    let mut agent = Agent::connect(agent_id(1), &world.options(&credentials));
    agent.say(
        agent.control,
        &AgentMessage::Hello(Box::new(hello(agent_id(2)))),
    );
    assert_eq!(agent.client.close_code(), wire(CloseCode::IdentityMismatch));
    assert_eq!(
        world.security(),
        (SecurityEvent::IdentityMismatch, Some(agent_id(1)))
    );
}

fn a_session_without_a_certificate_is_closed(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut options = world.options(&credentials);
    options.credentials = None;
    let mut client = Client::connect(&options);
    assert_eq!(client.close_code(), wire(CloseCode::CertificateRequired));
    assert_eq!(world.security(), (SecurityEvent::NoCertificate, None));
}

fn certificates_of_others_fail_in_tls(setup: Setup) {
    let mut world = World::start(setup);
    world.admit(1);
    let expired = {
        let credentials = world.authority.agent_until(agent_id(1), 1);
        std::thread::park_timeout(Duration::from_millis(2100));
        credentials
    };
    let others = [
        Authority::new().agent(agent_id(1)),
        world.authority.agent_from_gateways(agent_id(1)),
        world.authority.gateway(),
        expired,
    ];
    for credentials in others {
        let mut client = Client::connect(&world.options(&credentials));
        let end = client.end();
        let ConnectionError::ConnectionClosed(close) = end else {
            panic!("not refused by TLS: {end:?}");
        };
        assert_eq!(
            u64::from(close.error_code) >> 8,
            1,
            "a TLS alert: {close:?}"
        );
        assert_eq!(world.security(), (SecurityEvent::ForeignCertificate, None));
    }
}

fn certificates_that_name_no_agent_are_refused(setup: Setup) {
    let mut world = World::start(setup);
    for uri in [
        "spiffe://elsewhere.test/agent/00000000-0000-0000-0000-000000000001",
        "spiffe://cloud.test/gateway/00000000-0000-0000-0000-000000000001",
        "https://cloud.test/agent",
    ] {
        let credentials = world.authority.agent_named(uri);
        let mut client = Client::connect(&world.options(&credentials));
        assert_eq!(client.close_code(), wire(CloseCode::BadIdentity), "{uri}");
        assert_eq!(world.security(), (SecurityEvent::ForeignCertificate, None));
    }
}

fn a_key_that_is_not_pinned_is_refused(setup: Setup) {
    let mut world = World::start(setup);
    world.admit(1);
    let other_key = world.authority.agent(agent_id(1));
    let unknown = world.authority.agent(agent_id(99));
    for (credentials, id) in [(other_key, agent_id(1)), (unknown, agent_id(99))] {
        let mut client = Client::connect(&world.options(&credentials));
        assert_eq!(client.close_code(), wire(CloseCode::KeyNotPinned));
        assert_eq!(world.security(), (SecurityEvent::KeyNotPinned, Some(id)));
    }
}

fn a_revoked_agent_is_closed_and_stays_out(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let (mut agent, _) = world.agent_with(1, &credentials, None);
    let mut silent = Agent::connect(agent.id, &world.options(&credentials));
    world.send(Request::RevokeAgent { agent: agent.id });
    assert_eq!(agent.client.close_code(), wire(CloseCode::Revoked));
    assert_eq!(
        silent.client.close_code(),
        wire(CloseCode::Revoked),
        "before its Hello, too"
    );
    assert_eq!(
        world.session_down(agent.id),
        DownReason::ClosedHere(CloseCode::Revoked)
    );
    let mut again = Client::connect(&world.options(&credentials));
    assert_eq!(again.close_code(), wire(CloseCode::Revoked));
    // The session, the silent one, and the one that came again.
    for _ in 0..3 {
        let told = world.security();
        assert_eq!(told, (SecurityEvent::RevokedAgent, Some(agent.id)));
    }
}

fn a_session_on_a_key_that_is_no_longer_pinned_is_closed(setup: Setup) {
    let mut world = World::start(setup);
    let (old, target) = (world.admit(1), world.target(1));
    let (mut agent, _) = world.agent_with(1, &old, None);
    let new = world.authority.agent(agent.id);
    world.send(Request::AdmitAgent {
        target,
        keys: vec![new.key_hash, old.key_hash],
    });
    let operations = vec![(operation(1), Fence(1))];
    world.send(Request::Query {
        target,
        operations: operations.clone(),
    });
    let heard = agent.next(agent.control);
    assert_eq!(heard, GatewayMessage::Query { operations }, "both are good");
    let mut other = Agent::connect(agent.id, &world.options(&new));
    world.send(Request::AdmitAgent {
        target,
        keys: vec![new.key_hash],
    });
    assert_eq!(agent.client.close_code(), wire(CloseCode::KeyNotPinned));
    let reason = DownReason::ClosedHere(CloseCode::KeyNotPinned);
    assert_eq!(world.session_down(agent.id), reason);
    let told = world.security();
    assert_eq!(told, (SecurityEvent::KeyNotPinned, Some(agent.id)));
    other.welcome(hello(agent.id));
}

fn a_session_ends_with_its_certificate(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.authority.agent_until(agent_id(1), 3);
    world.admit_with(world.target(1), &credentials);
    let (mut agent, _) = world.agent_with(1, &credentials, None);
    assert_eq!(
        agent.client.close_code(),
        wire(CloseCode::CertificateExpired)
    );
    let reason = DownReason::ClosedHere(CloseCode::CertificateExpired);
    assert_eq!(world.session_down(agent.id), reason);
}

fn a_released_groups_agents_are_sent_on(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let (mut agent, _) = world.agent_with(1, &credentials, None);
    let addresses = vec!["other.test:7443".to_owned()];
    world.send(Request::ReleaseGroup {
        group: world.target(1).group,
        epoch: Epoch(EPOCH.0 + 1),
        addresses: addresses.clone(),
    });
    match agent.next(agent.control) {
        GatewayMessage::GoAway { addresses: to, .. } => assert_eq!(to, addresses),
        other => panic!("{other:?}"),
    }
    let mut again = Agent::connect(agent.id, &world.options(&credentials));
    again.say(
        again.control,
        &AgentMessage::Hello(Box::new(hello(agent.id))),
    );
    match again.next(again.control) {
        GatewayMessage::Redirect { addresses: to, .. } => assert_eq!(to, addresses),
        other => panic!("{other:?}"),
    }
    assert_eq!(again.client.close_code(), wire(CloseCode::Redirected));
}

fn fresh(world: &World, credentials: &Credentials, id: AgentId) -> Agent {
    Agent::connect(id, &world.options(credentials))
}

fn bad_frames_close_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut wrong_identifier = Vec::new();
    encode_agent_message(&AgentMessage::Status { capacity: 1 }, &mut wrong_identifier).unwrap();
    wrong_identifier[8..12].copy_from_slice(b"NOPE");
    let too_large = u32::try_from(CONTROL_FRAME_BYTES_MAX + 1)
        .unwrap()
        .to_le_bytes();
    let garbage = [&32u32.to_le_bytes()[..], &[0xa5; 32]].concat();
    let empty = 0u32.to_le_bytes();
    for bytes in [&wrong_identifier[..], &too_large, &garbage, &empty] {
        let mut agent = fresh(&world, &credentials, agent_id(1));
        agent.send(agent.control, bytes);
        assert_eq!(agent.client.close_code(), wire(CloseCode::BadFrame));
        assert_eq!(
            world.security(),
            (SecurityEvent::ProtocolViolation, Some(agent.id))
        );
    }
}

fn frames_at_the_wrong_time_close_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let status = AgentMessage::Status { capacity: 1 };
    let accepted = AgentMessage::Accepted {
        operation: operation(1),
        fence: Fence(1),
    };
    let report = AgentMessage::Report {
        operation: operation(1),
        fence: Fence(1),
        state: OperationState::Accepted,
    };
    for early in [&status, &accepted, &report] {
        let mut agent = fresh(&world, &credentials, agent_id(1));
        agent.say(agent.control, early);
        assert_eq!(agent.client.close_code(), wire(CloseCode::UnexpectedFrame));
    }
    for late in [
        &AgentMessage::Hello(Box::new(hello(agent_id(1)))),
        &accepted,
    ] {
        let mut agent = fresh(&world, &credentials, agent_id(1));
        agent.welcome(hello(agent.id));
        agent.say(agent.control, late);
        assert_eq!(agent.client.close_code(), wire(CloseCode::UnexpectedFrame));
    }
}

fn an_agent_has_one_stream_and_its_end_is_the_sessions(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    assert!(agent.client.connection.streams().open(Dir::Bi).is_none());
    assert!(agent.client.connection.streams().open(Dir::Uni).is_none());
    // Ending the one that there is does not make room for another, it ends the session.
    agent.finish(agent.control);
    assert_eq!(agent.client.close_code(), wire(CloseCode::Normal));
}

fn an_agent_that_leaves_is_down_with_its_own_code(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    agent.say(agent.control, &AgentMessage::Status { capacity: 2 });
    agent.client.drive_for(Duration::from_millis(50));
    agent.close(CloseCode::Normal.to_wire());
    let reason = DownReason::ClosedByAgent(wire(CloseCode::Normal));
    assert_eq!(world.session_down(agent.id), reason);
    let rest = world.events();
    assert!(
        !rest
            .iter()
            .any(|event| matches!(event, Event::Security { .. })),
        "{rest:?}"
    );
}

fn no_common_version_is_said(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut agent = fresh(&world, &credentials, agent_id(1));
    let mut future = hello(agent.id);
    future.versions = VersionRange {
        oldest: 900,
        newest: 901,
    };
    agent.say(agent.control, &AgentMessage::Hello(Box::new(future)));
    assert_eq!(agent.client.close_code(), wire(CloseCode::VersionMismatch));
    let options = ClientOptions {
        alpn: b"h3".to_vec(),
        ..world.options(&credentials)
    };
    assert_ne!(options.alpn, ALPN_SESSION);
    let end = Client::connect(&options).end();
    assert!(
        matches!(end, ConnectionError::ConnectionClosed(_)),
        "{end:?}"
    );
}
