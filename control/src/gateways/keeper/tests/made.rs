//! A group that people make: the process server's door, its switch and the keeper, with gateways that are played.

use protocol::link::Request;

use super::*;
use crate::dispatch;
use crate::downlink::{Link as _, Wake};
use crate::gateways::Switch;
use crate::gateways::switch::tests::{Fake, addresses, run};

/// What a gateway believes of a group: its epoch, and where the owner is if it is not itself. As
/// `gateway/src/group/directory.rs` takes it.
#[derive(PartialEq, Eq, Debug)]
struct Belief(Epoch, Option<Vec<String>>);

fn belief(requests: &[Request], of: GroupId) -> Belief {
    let mut belief = Belief(Epoch(0), Some(Vec::new()));
    for request in requests {
        match request {
            Request::AssignGroup { group, epoch, .. } if *group == of && *epoch > belief.0 => {
                belief = Belief(*epoch, None);
            }
            Request::ReleaseGroup {
                group,
                epoch,
                addresses,
            } if *group == of && *epoch >= belief.0 => {
                belief = Belief(*epoch, Some(addresses.clone()));
            }
            _ => {}
        }
    }
    belief
}

/// Whatever was handed to the process server before has gone to its link.
async fn has_spoken(engine: &Engine) {
    // It speaks between two turns.
    for _ in 0..2 {
        engine.agents(Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_that_is_made_has_one_owner_whoever_has_come_since_the_server_began() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open("sqlite:", folder.path()).await.unwrap();
    let gateways = Gateways::new();
    let (first, later) = (Fake::new(2), Fake::new(1));
    let switch = Switch::new(&gateways, vec![first.way()], Wake::new());
    let started = dispatch::start(store.clone(), switch.end()).await.unwrap();
    let engine = started.engine.clone();
    let mut keeper = Keeper::new(store.clone(), engine.clone(), gateways, None);
    look(&mut keeper, clock::monotonic()).await;
    switch.add(later.way(), &store).await.unwrap();
    look(&mut keeper, clock::monotonic()).await;
    assert_eq!(switch.gateway(), run(1), "it is the first now");

    let group = store.create_group("east", UnixMs(1)).await.unwrap();
    engine.adopt_group(group.clone()).await.unwrap();
    has_spoken(&engine).await;
    look(&mut keeper, clock::monotonic()).await;
    has_spoken(&engine).await;
    let placed = store.placed_groups(clock::now()).await.unwrap();
    let placed = placed.iter().find(|one| one.group.id == group.id).unwrap();
    assert_eq!((placed.owner, placed.group.epoch), (Some(run(2)), Epoch(1)));
    let believed = [first, later].map(|fake| belief(&fake.sent(), group.id));
    let owned = Belief(Epoch(1), None);
    let elsewhere = Belief(Epoch(1), Some(addresses(2)));
    assert_eq!(believed, [owned, elsewhere]);
    started.stop.cancel();
}
