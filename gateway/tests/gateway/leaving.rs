//! Enrolment, drain and stop.

use std::time::Duration;

use gateway::{AdmissionConfig, SendError};
use protocol::agent::{ALPN_ENROL, GatewayMessage};
use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment};
use protocol::frame::{FrameBuffer, decode_enrol_reply, encode_enrol_request};
use protocol::ids::{Fence, GroupId, ShardId, Slot};
use protocol::limits::ENROL_FRAME_BYTES_MAX;
use protocol::link::{DownReason, Event, Request};
use quinn_proto::{ConnectionError, Dir, StreamId};

use crate::support::client::{Client, ClientOptions};
use crate::support::world::{Setup, World};
use crate::support::{agent_id, operation};
use crate::{on_direct, on_every_runtime};

on_every_runtime! {
    an_enrolment_is_asked_and_answered
    enrolments_beyond_the_limit_are_told_to_come_again
    garbage_instead_of_an_enrolment_is_refused
    a_drain_sends_agents_on_and_newcomers_away
    a_drain_without_another_address_keeps_agents_until_its_deadline
    a_stopped_gateway_says_so
}

on_direct! {
    an_enrolment_is_asked_and_answered
    a_stopped_gateway_says_so
}

fn newcomer(world: &World) -> (Client, StreamId) {
    let own = world.authority.agent(agent_id(1));
    let options = ClientOptions {
        alpn: ALPN_ENROL.to_vec(),
        credentials: None,
        ..world.options(&own)
    };
    let mut client = Client::connect(&options);
    client.drive(|client| client.connected.then_some(()));
    let stream = client.connection.streams().open(Dir::Bi).unwrap();
    (client, stream)
}

fn request() -> EnrolRequest {
    EnrolRequest {
        secret: [5; 32],
        csr: vec![0x30; 200],
        hostname: "host".to_owned(),
        software: "test".to_owned(),
    }
}

fn send_request(client: &mut Client, stream: StreamId) {
    let mut frame = Vec::new();
    encode_enrol_request(&request(), &mut frame).unwrap();
    assert_eq!(
        client.connection.send_stream(stream).write(&frame).unwrap(),
        frame.len()
    );
    client.connection.send_stream(stream).finish().unwrap();
    client.send_what_there_is();
}

fn reply(client: &mut Client, stream: StreamId) -> EnrolReply {
    let mut input = FrameBuffer::default();
    client.drive(|client| {
        let mut stream = client.connection.recv_stream(stream);
        if let Ok(mut chunks) = stream.read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                input.push(&chunk.bytes);
            }
            let _more = chunks.finalize().should_transmit();
        }
        let frame = input.next_frame(ENROL_FRAME_BYTES_MAX).unwrap()?;
        Some(decode_enrol_reply(&frame).unwrap())
    })
}

fn asked(world: &mut World) -> (ShardId, u64, EnrolRequest) {
    world.event(|event| match event {
        Event::Enrol {
            shard,
            ticket,
            request,
            ..
        } => Some((*shard, *ticket, (**request).clone())),
        _ => None,
    })
}

fn an_enrolment_is_asked_and_answered(setup: Setup) {
    let mut world = World::start(setup);
    let enrolled = EnrolReply::Enrolled(Box::new(Enrolment {
        agent: agent_id(7),
        group: GroupId::from_bytes([7; 16]),
        slot: Slot(7),
        domain: "cloud.test".to_owned(),
        chain: vec![vec![1; 800], vec![2; 800]],
        roots: vec![vec![3; 800]],
        addresses: Vec::new(),
    }));
    for answer in [enrolled, EnrolReply::Refused(EnrolRefusal::UsedToken)] {
        let (mut client, stream) = newcomer(&world);
        send_request(&mut client, stream);
        let (shard, ticket, asked) = asked(&mut world);
        assert_eq!(asked, request());
        world.send(Request::EnrolReply {
            shard,
            ticket,
            reply: answer.clone(),
        });
        assert_eq!(reply(&mut client, stream), answer);
        assert_eq!(
            client.close_code(),
            u64::from(CloseCode::EnrolmentDone.to_wire())
        );
    }
}

fn enrolments_beyond_the_limit_are_told_to_come_again(setup: Setup) {
    let admission = AdmissionConfig {
        enrolments_pending_max: 1,
        ..AdmissionConfig::default()
    };
    let mut world = World::start(setup.admission(admission));
    let (mut first, first_stream) = newcomer(&world);
    send_request(&mut first, first_stream);
    let (shard, ticket, _) = asked(&mut world);
    let (mut second, second_stream) = newcomer(&world);
    send_request(&mut second, second_stream);
    let busy = EnrolReply::Refused(EnrolRefusal::Busy);
    assert_eq!(reply(&mut second, second_stream), busy);
    let refused = EnrolReply::Refused(EnrolRefusal::UnknownToken);
    world.send(Request::EnrolReply {
        shard,
        ticket,
        reply: refused.clone(),
    });
    assert_eq!(reply(&mut first, first_stream), refused);
    for mut client in [first, second] {
        assert_eq!(
            client.close_code(),
            u64::from(CloseCode::EnrolmentDone.to_wire())
        );
    }
    let (mut third, third_stream) = newcomer(&world);
    send_request(&mut third, third_stream);
    asked(&mut world);
}

fn garbage_instead_of_an_enrolment_is_refused(setup: Setup) {
    let world = World::start(setup);
    let too_large = u32::try_from(ENROL_FRAME_BYTES_MAX + 1)
        .unwrap()
        .to_le_bytes();
    for bytes in [&[8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8][..], &too_large] {
        let (mut client, stream) = newcomer(&world);
        client.connection.send_stream(stream).write(bytes).unwrap();
        assert_eq!(
            client.close_code(),
            u64::from(CloseCode::BadFrame.to_wire())
        );
    }
    let (mut client, stream) = newcomer(&world);
    client.connection.send_stream(stream).finish().unwrap();
    assert_eq!(
        client.close_code(),
        u64::from(CloseCode::UnexpectedFrame.to_wire())
    );
}

fn a_drain_sends_agents_on_and_newcomers_away(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let mut agents: Vec<_> = (1..=4).map(|n| world.agent(n).0).collect();
    let credentials = world.admit(9);
    let addresses = vec!["next.test:7444".to_owned()];
    let deadline = Duration::from_secs(2);
    let drain = Request::Drain {
        addresses: addresses.clone(),
        spread: Duration::from_secs(10),
        deadline,
    };
    world.send(drain.clone());
    world.send(drain);
    for agent in &mut agents {
        match agent.next(agent.control) {
            GatewayMessage::GoAway {
                addresses: to,
                delay,
                ..
            } => {
                assert_eq!(to, addresses);
                assert!(delay <= Duration::from_secs(10));
            }
            other => panic!("{other:?}"),
        }
    }
    let end = Client::connect(&world.options(&credentials)).end();
    assert!(
        matches!(end, ConnectionError::ConnectionClosed(_)),
        "refused: {end:?}"
    );
    for agent in &mut agents {
        assert_eq!(
            agent.client.close_code(),
            u64::from(CloseCode::Draining.to_wire())
        );
        let reason = DownReason::ClosedHere(CloseCode::Draining);
        assert_eq!(world.session_down(agent.id), reason);
    }
}

fn a_drain_without_another_address_keeps_agents_until_its_deadline(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let (mut agent, _) = world.agent(1);
    world.send(Request::Drain {
        addresses: Vec::new(),
        spread: Duration::ZERO,
        deadline: Duration::from_secs(1),
    });
    // What is asked after the drain is the first that the agent hears.
    let operations = vec![(operation(1), Fence(1))];
    world.send(Request::Query {
        target: world.target(1),
        operations: operations.clone(),
    });
    let heard = agent.next(agent.control);
    assert_eq!(heard, GatewayMessage::Query { operations });
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::Draining.to_wire())
    );
    let reason = DownReason::ClosedHere(CloseCode::Draining);
    assert_eq!(world.session_down(agent.id), reason);
}

fn a_stopped_gateway_says_so(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let (mut agent, _) = world.agent(1);
    let handle = world.handle.clone();
    world.stop();
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::Draining.to_wire())
    );
    assert!(handle.is_stopped());
    let request = Request::RevokeAgent { agent: agent.id };
    assert!(matches!(handle.send(request), Err(SendError::Stopped)));
}
