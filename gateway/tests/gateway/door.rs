//! Before a session: handshakes that never end, floods, address proofs.

use std::time::Duration;

use gateway::AdmissionConfig;
use gateway::telemetry::{Counter, Level};
use protocol::close::CloseCode;
use protocol::limits::HANDSHAKE_DEADLINE;
use protocol::link::Event;

use crate::on_every_runtime;
use crate::support::agent::{Agent, hello};
use crate::support::agent_id;
use crate::support::client::Client;
use crate::support::world::{Setup, World};

on_every_runtime! {
    a_half_open_handshake_is_gone_by_its_deadline_whatever_it_drips
    an_unproved_address_gets_at_most_three_times_what_it_sent
    newcomers_prove_their_address_while_handshakes_hang
    beyond_the_half_open_limit_there_is_silence_and_then_room_again
    a_flood_of_first_packets_leaves_room_for_honest_newcomers
}

const A_LITTLE: Duration = Duration::from_millis(1500);

fn a_half_open_handshake_is_gone_by_its_deadline_whatever_it_drips(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut dripping = Client::connect(&world.options(&credentials));
    dripping.ignore_for(Duration::from_millis(10));
    let mut pinging = Agent::connect(agent_id(1), &world.options(&credentials));
    world.figures(|figures| figures.level(Level::HalfOpen) == 2);
    let dripped = dripping.bytes_sent;
    let other = std::thread::spawn(move || {
        dripping.ignore_for(HANDSHAKE_DEADLINE + A_LITTLE);
        dripping
    });
    // Pings, and half a frame: no Hello.
    pinging.send(pinging.control, &[20, 0, 0, 0, 1]);
    pinging.client.connection.ping();
    pinging.client.drive_for(Duration::from_secs(2));
    pinging.send(pinging.control, &[2]);
    assert_eq!(
        pinging.client.close_code(),
        u64::from(CloseCode::HelloTimeout.to_wire())
    );
    let dripping = other.join().unwrap();
    assert!(dripping.bytes_sent > dripped, "it did drip");
    world.figures(|figures| {
        figures.counter(Counter::HandshakesTimedOut) == 2 && figures.level(Level::HalfOpen) == 0
    });
    let events = world.events();
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, Event::SessionUp(_))),
        "{events:?}"
    );
}

fn an_unproved_address_gets_at_most_three_times_what_it_sent(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let mut silent = Client::connect(&world.options(&credentials));
    silent.send_what_there_is();
    let mut repeating = Client::connect(&world.options(&credentials));
    let listener = std::thread::spawn(move || {
        silent.listen_for(HANDSHAKE_DEADLINE + A_LITTLE);
        silent
    });
    repeating.ignore_for(HANDSHAKE_DEADLINE + A_LITTLE);
    for client in [listener.join().unwrap(), repeating] {
        let (sent, received) = (client.bytes_sent, client.bytes_received);
        assert!(
            received > 1200,
            "the gateway answered: {received} for {sent}"
        );
        assert!(received <= 3 * sent, "{received} bytes for {sent}");
    }
}

fn newcomers_prove_their_address_while_handshakes_hang(setup: Setup) {
    let admission = AdmissionConfig {
        half_open_retry: 0,
        ..AdmissionConfig::default()
    };
    let mut world = World::start(setup.admission(admission));
    let credentials = world.admit(1);
    let mut hanging = Client::connect(&world.options(&credentials));
    hanging.ignore_for(Duration::from_millis(10));
    world.figures(|figures| figures.level(Level::HalfOpen) == 1);
    let mut agent = Agent::connect(agent_id(1), &world.options(&credentials));
    agent.welcome(hello(agent.id));
    assert!(agent.client.retried);
    world.figures(|figures| figures.counter(Counter::RetriesSent) == 1);
}

fn beyond_the_half_open_limit_there_is_silence_and_then_room_again(setup: Setup) {
    let admission = AdmissionConfig {
        half_open_max: 2,
        ..AdmissionConfig::default()
    };
    let mut world = World::start(setup.admission(admission));
    let credentials = world.admit(1);
    let mut hanging = [0, 1].map(|_| Client::connect(&world.options(&credentials)));
    hanging
        .iter_mut()
        .for_each(|client| client.ignore_for(Duration::from_millis(10)));
    world.figures(|figures| figures.level(Level::HalfOpen) == 2);
    let mut late = Client::connect(&world.options(&credentials));
    late.drive_for(Duration::from_millis(500));
    assert_eq!(late.bytes_received, 0);
    assert!(!late.connected && late.lost.is_none());
    late.drive(|client| client.connected.then_some(()));
    world.figures(|figures| figures.counter(Counter::DroppedByHalfOpen) >= 1);
}

/// First packets from many addresses that never answer: enough to press the door, for as long as a
/// test may take.
fn a_flood_of_first_packets_leaves_room_for_honest_newcomers(setup: Setup) {
    let mut world = World::start(setup);
    let credentials = world.admit(1);
    let options = world.options(&credentials);
    for _ in 0..400 {
        Client::connect(&options).send_what_there_is();
    }
    let mut agent = Agent::connect(agent_id(1), &options);
    agent.welcome(hello(agent.id));
    world.figures(|figures| {
        let half_open = figures.level(Level::HalfOpen);
        figures.counter(Counter::RetriesSent) > 0 && half_open <= 2 * 128
    });
}
