//! Several shards: sessions at home and elsewhere.

use std::time::Duration;

use protocol::agent::{AgentMessage, GatewayMessage};
use protocol::close::CloseCode;
use protocol::ids::{Fence, Slot};
use protocol::link::{DownReason, Event, Request};

use crate::support::agent::{Agent, hello};
use crate::support::operation;
use crate::support::world::{Setup, World};
use crate::{on_direct, on_every_runtime};

on_every_runtime! {
    the_slot_in_the_first_id_leads_home
    a_session_elsewhere_is_served_through_the_mailbox
    the_newest_session_wins_across_shards
    clients_without_the_hint_get_their_commands
    nothing_is_lost_on_the_way_through_the_mailbox
}

on_direct! {
    a_session_elsewhere_is_served_through_the_mailbox
}

fn the_slot_in_the_first_id_leads_home(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    for n in 1..=6 {
        let (_agent, up) = world.agent(n);
        assert!(up.at_home, "agent {n} is on shard {}", up.shard);
        assert_eq!(up.shard, Slot(n).home(2));
    }
}

fn a_session_elsewhere_is_served_through_the_mailbox(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let credentials = world.admit(1);
    let (mut agent, up) = world.agent_with(1, &credentials, Some(Slot(0)));
    assert!(!up.at_home);
    for round in 1..=20 {
        world.dispatch(1, operation(round), Fence(1));
        let (stream, ..) = agent.command();
        agent.accept(stream, operation(round), Fence(1));
        agent.complete(stream, operation(round), Fence(1));
        world.event(|event| matches!(event, Event::Finished { .. }).then_some(()));
    }
    world.dispatch(1, operation(99), Fence(1));
    let (stream, ..) = agent.command();
    agent.accept(stream, operation(99), Fence(1));
    world.event(|event| match event {
        Event::Accepted { operation: of, .. } if *of == operation(99) => Some(()),
        _ => None,
    });
    let target = world.target(1);
    world.send(Request::Cancel {
        target,
        operation: operation(99),
        fence: Fence(1),
    });
    assert!(matches!(
        agent.next(agent.control),
        GatewayMessage::Cancel { .. }
    ));
    world.send(Request::RevokeAgent { agent: agent.id });
    assert_eq!(
        agent.client.close_code(),
        u64::from(CloseCode::Revoked.to_wire())
    );
    assert_eq!(
        world.session_down(agent.id),
        DownReason::ClosedHere(CloseCode::Revoked)
    );
    world.event(|event| matches!(event, Event::Uncertain { .. }).then_some(()));
}

fn the_newest_session_wins_across_shards(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let credentials = world.admit(1);
    let (mut elsewhere, up) = world.agent_with(1, &credentials, Some(Slot(0)));
    assert!(!up.at_home);
    let (mut home, up) = world.agent_with(1, &credentials, Some(Slot(1)));
    assert!(up.at_home);
    assert_eq!(
        elsewhere.client.close_code(),
        u64::from(CloseCode::Superseded.to_wire())
    );
    let mut older = hello(home.id);
    older.session_count = 0;
    let mut old = Agent::connect(home.id, &world.options(&credentials));
    old.say(old.control, &AgentMessage::Hello(Box::new(older)));
    assert_eq!(
        old.client.close_code(),
        u64::from(CloseCode::Superseded.to_wire())
    );
    world.dispatch(1, operation(1), Fence(1));
    home.command();
}

fn clients_without_the_hint_get_their_commands(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    for n in 1..=8u8 {
        let credentials = world.admit(n);
        let mut agent = Agent::connect(world.target(n).agent, &world.options(&credentials));
        agent.welcome(hello(agent.id));
        world.session_up(agent.id);
        world.dispatch(n, operation(n.into()), Fence(1));
        let (stream, ..) = agent.command();
        agent.accept(stream, operation(n.into()), Fence(1));
        agent.complete(stream, operation(n.into()), Fence(1));
        world.event(|event| matches!(event, Event::Finished { .. }).then_some(()));
        agent.client.drive_for(Duration::from_millis(1));
    }
}

fn nothing_is_lost_on_the_way_through_the_mailbox(setup: Setup) {
    let mut world = World::start(setup.shards(2));
    let credentials = world.admit(1);
    let (agent, up) = world.agent_with(1, &credentials, Some(Slot(0)));
    assert!(!up.at_home);
    crate::commands::flood(&mut world, agent);
}
