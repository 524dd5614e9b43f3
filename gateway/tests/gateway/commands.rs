//! The way of commands through a session.

use std::time::Duration;

use bytes::Bytes;
use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::flow::Demand;
use protocol::ids::{Fence, ServerId};
use protocol::limits::{
    COMMAND_INPUT_BYTES_MAX, COMMAND_REPLY_BYTES_MAX, OUTPUT_BYTES_MAX, UPLINK_MAX,
};
use protocol::link::{Event, Request, SecurityEvent};
use protocol::operation::{Channel, OperationState, Progress, Refusal};

use crate::support::agent::{Agent, outcome};
use crate::support::operation;
use crate::support::world::{EPOCH, Setup, World};
use crate::{on_direct, on_every_runtime};

on_every_runtime! {
    a_command_goes_to_its_agent_and_its_result_comes_back
    commands_go_on_offered_permits_without_any_demand
    progress_comes_in_order_and_at_its_full_size
    a_cancel_of_a_running_command_goes_by_control_stream
    a_cancel_of_an_operation_without_a_stream_goes_by_control_stream
    a_command_of_the_greatest_size_arrives
    a_refusal_ends_the_command
    a_finish_before_accepted_closes_the_session
    an_answer_about_another_operation_closes_the_session
    a_lost_session_leaves_its_commands_uncertain
    a_query_is_answered_and_a_foreign_report_closes_the_session
    nothing_is_lost_when_the_control_plane_does_not_read
    a_new_epoch_is_told_to_the_agent
    an_answer_that_is_too_large_closes_the_session
}

on_direct! {
    a_command_goes_to_its_agent_and_its_result_comes_back
    progress_comes_in_order_and_at_its_full_size
    nothing_is_lost_when_the_control_plane_does_not_read
}

fn a_command_goes_to_its_agent_and_its_result_comes_back(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, up) = world.agent(1);
    assert!(up.at_home);
    assert_eq!(up.capacity, 4);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, epoch, command) = agent.command();
    assert_eq!((epoch, command.operation), (EPOCH, operation(1)));
    agent.accept(stream, operation(1), Fence(1));
    world.event(|event| matches!(event, Event::Accepted { .. }).then_some(()));
    agent.complete(stream, operation(1), Fence(1));
    let finished = world.event(|event| match event {
        Event::Finished {
            operation: of,
            outcome,
            ..
        } if *of == operation(1) => Some(outcome.clone()),
        _ => None,
    });
    assert_eq!(finished, outcome());
    world.send(Request::Forget {
        target: world.target(1),
        operations: vec![operation(1)],
    });
    let forget = GatewayMessage::Forget {
        operations: vec![operation(1)],
    };
    assert_eq!(agent.next(agent.control), forget);
}

fn commands_go_on_offered_permits_without_any_demand(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    for number in 1..=6 {
        let grant = world.offer(1);
        world.dispatch_on(1, grant, operation(number), Fence(1), Bytes::new());
        let (stream, _, command) = agent.command();
        assert_eq!(command.operation, operation(number));
        agent.accept(stream, operation(number), Fence(1));
        agent.complete(stream, operation(number), Fence(1));
        world.event(|event| matches!(event, Event::Finished { .. }).then_some(()));
    }
}

fn progress(sequence: u32, bytes: usize) -> Progress {
    Progress {
        sequence,
        percent: Some(50),
        message: String::new(),
        channel: Channel::Stdout,
        output: Bytes::from(vec![b'x'; bytes]),
    }
}

fn progress_comes_in_order_and_at_its_full_size(setup: Setup) {
    const REPORTS: u32 = 30;
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(1), Fence(1));
    for sequence in 0..REPORTS {
        let progress = progress(sequence, OUTPUT_BYTES_MAX);
        let (operation, fence) = (operation(1), Fence(1));
        agent.say(
            stream,
            &AgentMessage::Progress {
                operation,
                fence,
                progress,
            },
        );
    }
    agent.client.drive_for(Duration::from_millis(100));
    for sequence in 0..REPORTS {
        let seen = world.event(|event| match event {
            Event::Progress { progress, .. } => Some(progress.clone()),
            _ => None,
        });
        assert_eq!(
            (seen.sequence, seen.output.len()),
            (sequence, OUTPUT_BYTES_MAX)
        );
    }
}

fn a_cancel_of_a_running_command_goes_by_control_stream(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(1), Fence(1));
    world.event(|event| matches!(event, Event::Accepted { .. }).then_some(()));
    let target = world.target(1);
    world.send(Request::Cancel {
        target,
        operation: operation(1),
        fence: Fence(1),
    });
    assert!(matches!(
        agent.next(agent.control),
        GatewayMessage::Cancel { .. }
    ));
    agent.complete(stream, operation(1), Fence(1));
    world.event(|event| matches!(event, Event::Finished { .. }).then_some(()));
}

fn a_cancel_of_an_operation_without_a_stream_goes_by_control_stream(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    let target = world.target(1);
    world.send(Request::Cancel {
        target,
        operation: operation(5),
        fence: Fence(3),
    });
    let cancel = GatewayMessage::Cancel {
        operation: operation(5),
        fence: Fence(3),
        epoch: EPOCH,
    };
    assert_eq!(agent.next(agent.control), cancel);
}

fn a_command_of_the_greatest_size_arrives(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    let input = Bytes::from(format!("\"{}\"", "y".repeat(COMMAND_INPUT_BYTES_MAX - 2)));
    world.dispatch_input(1, operation(1), Fence(1), input.clone());
    let (_, _, command) = agent.command();
    assert_eq!(command.input, input);
}

fn a_refusal_ends_the_command(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    for round in 1..40 {
        world.dispatch(1, operation(round), Fence(1));
        let (stream, ..) = agent.command();
        let refusal = Refusal::JournalFull;
        let (operation, fence) = (operation(round), Fence(1));
        agent.say(
            stream,
            &AgentMessage::Refused {
                operation,
                fence,
                refusal,
            },
        );
        agent.finish(stream);
        world.event(|event| matches!(event, Event::Refused { .. }).then_some(()));
    }
}

fn a_finish_before_accepted_closes_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    let (operation, fence) = (operation(1), Fence(1));
    agent.say(
        stream,
        &AgentMessage::Finished {
            operation,
            fence,
            outcome: outcome(),
        },
    );
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::UnexpectedFrame.to_wire())
    );
    assert_eq!(
        world.security(),
        (SecurityEvent::ProtocolViolation, Some(agent.id))
    );
    world.event(|event| matches!(event, Event::Uncertain { .. }).then_some(()));
}

fn an_answer_about_another_operation_closes_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(2), Fence(1));
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::ForeignOperation.to_wire())
    );
    assert_eq!(
        world.security(),
        (SecurityEvent::ForeignOperation, Some(agent.id))
    );
}

fn a_lost_session_leaves_its_commands_uncertain(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(1), Fence(1));
    world.event(|event| matches!(event, Event::Accepted { .. }).then_some(()));
    agent.close(0x100);
    let lost = world.event(|event| match event {
        Event::Uncertain { operation, .. } => Some(*operation),
        _ => None,
    });
    assert_eq!(lost, operation(1));
    world.send(Request::Demand {
        target: world.target(1),
        server: ServerId(1),
        lines: vec![Demand::of("exec", 1)],
    });
    let late = world.events();
    assert!(
        !late
            .iter()
            .any(|event| matches!(event, Event::Granted { .. })),
        "{late:?}"
    );
}

fn a_query_is_answered_and_a_foreign_report_closes_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    let operations = vec![(operation(1), Fence(2))];
    world.send(Request::Query {
        target: world.target(1),
        operations: operations.clone(),
    });
    assert_eq!(
        agent.next(agent.control),
        GatewayMessage::Query { operations }
    );
    let report = |operation| AgentMessage::Report {
        operation,
        fence: Fence(2),
        state: OperationState::NeverSeen,
    };
    agent.say(agent.control, &report(operation(1)));
    world.event(|event| matches!(event, Event::Report { .. }).then_some(()));
    agent.say(agent.control, &report(operation(9)));
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::ForeignOperation.to_wire())
    );
    assert_eq!(
        world.security(),
        (SecurityEvent::ForeignOperation, Some(agent.id))
    );
}

fn nothing_is_lost_when_the_control_plane_does_not_read(setup: Setup) {
    let mut world = World::start(setup);
    let (agent, _) = world.agent(1);
    flood(&mut world, agent);
}

/// Sends more reports than every queue on the way holds while nobody reads: the agent is slowed
/// down, and nothing goes missing.
pub(crate) fn flood(world: &mut World, mut agent: Agent) {
    let reports = u32::try_from(UPLINK_MAX + UPLINK_MAX / 2).unwrap();
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(1), Fence(1));
    world.event(|event| matches!(event, Event::Accepted { .. }).then_some(()));
    let mut frames = Vec::new();
    for sequence in 0..reports {
        // Every hundredth is large, so that bytes run out as well as places.
        let bytes = if sequence % 100 == 0 {
            OUTPUT_BYTES_MAX
        } else {
            8
        };
        let progress = progress(sequence, bytes);
        let (operation, fence) = (operation(1), Fence(1));
        let message = AgentMessage::Progress {
            operation,
            fence,
            progress,
        };
        protocol::frame::encode_agent_message(&message, &mut frames).unwrap();
    }
    let sender = std::thread::spawn(move || {
        agent.send(stream, &frames);
        agent.client.drive_for(Duration::from_secs(1));
    });
    std::thread::park_timeout(Duration::from_millis(300));
    for sequence in 0..reports {
        let seen = world.event(|event| match event {
            Event::Progress { progress, .. } => Some(progress.sequence),
            _ => None,
        });
        assert_eq!(seen, sequence);
    }
    sender.join().unwrap();
}

fn an_answer_that_is_too_large_closes_the_session(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    world.dispatch(1, operation(1), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(1), Fence(1));
    let prefix = u32::try_from(COMMAND_REPLY_BYTES_MAX + 1).unwrap();
    agent.send(stream, &prefix.to_le_bytes());
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::BadFrame.to_wire())
    );
    world.event(|event| matches!(event, Event::Uncertain { .. }).then_some(()));
}

fn a_new_epoch_is_told_to_the_agent(setup: Setup) {
    let mut world = World::start(setup);
    let (mut agent, _) = world.agent(1);
    let target = world.target(1);
    let epoch = protocol::ids::Epoch(EPOCH.0 + 1);
    world.send(Request::AssignGroup {
        group: target.group,
        slot: target.slot,
        epoch,
    });
    assert_eq!(
        agent.next(agent.control),
        GatewayMessage::NewEpoch { epoch }
    );
}
