//! A shard under a lease that runs out at the worst moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use protocol::link::{Event, NotDelivered};

use super::network::Network;
use crate::lease::Lease;

/// Holds for so many questions more.
#[derive(Default)]
struct Questions {
    left: AtomicU32,
    fenced: AtomicU32,
}

impl Questions {
    fn leave(&self, left: u32) {
        self.left.store(left, Ordering::Relaxed);
    }

    fn fenced(&self) -> u32 {
        self.fenced.load(Ordering::Relaxed)
    }
}

impl Lease for Questions {
    fn holds(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        let took = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        took.is_ok()
    }

    fn fenced(&self) {
        self.fenced.fetch_add(1, Ordering::Relaxed);
    }
}

/// An agent whose shard has a dispatch in its mailbox, under a lease that holds for `left` questions from now on.
fn dispatched(left: u32) -> (Network, usize, Arc<Questions>) {
    let lease = Arc::new(Questions::default());
    lease.leave(u32::MAX);
    let mut network = Network::under(Some(Arc::clone(&lease) as Arc<dyn Lease>));
    let agent = network.agent(1);
    network.welcome(agent);
    network.dispatch(1);
    lease.leave(left);
    (network, agent, lease)
}

/// What became of the command, and how many of it the agent has got.
fn fate(network: &mut Network, agent: usize) -> (Option<Event>, usize) {
    network.run(Duration::from_secs(3));
    let mut events = network.take_events().into_iter();
    let ended = events.find(|event| {
        matches!(
            event,
            Event::NotDelivered { .. } | Event::Uncertain { .. } | Event::SessionDown { .. }
        )
    });
    (ended, network.commands(agent))
}

fn not_owner(event: Option<&Event>) -> bool {
    let reason = NotDelivered::NotOwner;
    matches!(event, Some(Event::NotDelivered { reason: why, .. }) if *why == reason)
}

#[test]
fn while_the_lease_holds_a_command_reaches_its_agent() {
    let (mut network, agent, lease) = dispatched(u32::MAX);
    let (ended, got) = fate(&mut network, agent);
    assert_eq!((ended, got, lease.fenced()), (None, 1, 0));
}

#[test]
fn a_dispatch_that_is_handled_when_the_lease_has_run_out_does_not_reach_its_agent_and_comes_back() {
    let (mut network, agent, lease) = dispatched(0);
    let (ended, got) = fate(&mut network, agent);
    assert!(not_owner(ended.as_ref()), "{ended:?}");
    assert_eq!((got, lease.fenced()), (0, 1));
}

#[test]
fn the_lease_may_run_out_within_the_turn_that_takes_the_dispatch() {
    // It holds when the turn begins, and not when the command has been written to its stream.
    let (mut network, agent, lease) = dispatched(1);
    let (ended, got) = fate(&mut network, agent);
    assert!(not_owner(ended.as_ref()), "{ended:?}");
    assert_eq!((got, lease.fenced()), (0, 1));
}

#[test]
fn packets_that_are_made_and_not_submitted_when_the_lease_runs_out_do_not_leave_and_are_not_sent_again()
 {
    // It holds when the turn begins and when the packets are made, and not when they are submitted.
    let (mut network, agent, _) = dispatched(2);
    let (ended, got) = fate(&mut network, agent);
    assert!(matches!(ended, Some(Event::Uncertain { .. })), "{ended:?}");
    assert_eq!(got, 0);
}

#[test]
fn what_was_lost_in_the_network_before_the_lease_ran_out_is_not_sent_again_after_it() {
    let (mut network, agent, lease) = dispatched(3);
    network.cut(agent);
    network.run(Duration::from_millis(1));
    network.join(agent);
    let (ended, got) = fate(&mut network, agent);
    assert!(matches!(ended, Some(Event::Uncertain { .. })), "{ended:?}");
    assert_eq!((got, lease.fenced()), (0, 0));
}
