use protocol::ids::{Epoch, Slot};

use super::*;
use crate::clock::UnixMs;
use crate::gateways::Pin;

fn run(number: u8) -> GatewayId {
    GatewayId::from_bytes([number; 16])
}

fn placed(number: u8, owner: Option<u8>, agents: u64) -> Placed {
    Placed {
        group: Group {
            id: GroupId::from_bytes([number; 16]),
            name: format!("g{number}"),
            slot: Slot(number),
            automatic: true,
            epoch: Epoch(1),
            created_at: UnixMs(1),
        },
        owner: owner.map(run),
        agents,
        pin: None,
    }
}

fn server(number: u8) -> (GatewayId, Taker) {
    let taker = Taker {
        link: format!("{number}.example:7444"),
        capacity: 10_000,
    };
    (run(number), taker)
}

fn field(numbers: &[u8]) -> Field {
    Field {
        servers: numbers.iter().copied().map(server).collect(),
        alive: numbers.iter().copied().map(run).collect(),
        leaving: Vec::new(),
        hurried: Vec::new(),
    }
}

/// So many moves, whatever they are for.
fn moving(moves: usize) -> Pace {
    Pace {
        asked: moves,
        all: moves,
        hurried: 0,
    }
}

/// Slots and owners: short to compare.
fn brief(gifts: &[Gift]) -> Vec<(u8, GatewayId)> {
    let brief = gifts.iter().map(|(group, to)| (group.slot.0, *to));
    brief.collect()
}

/// The plan where all that are alive may own groups.
fn planned(numbers: &[u8], groups: &[Placed], moves: usize) -> Vec<Gift> {
    plan(&field(numbers), groups, moving(moves))
}

/// To that server: for good, or for a time.
fn pin(number: u8, until: Option<UnixMs>) -> Pin {
    let link = server(number).1.link;
    Pin { link, until }
}

/// Carries a plan out; says how many changed hands.
fn follow(groups: &mut [Placed], servers: &[u8], moves: usize) -> usize {
    let gifts = planned(servers, groups, moves);
    for (group, owner) in &gifts {
        let placed = groups.iter_mut().find(|placed| placed.group.id == group.id);
        placed.unwrap().owner = Some(*owner);
    }
    gifts.len()
}

fn agents_of(groups: &[Placed], server: u8) -> u64 {
    let of_it = groups
        .iter()
        .filter(|placed| placed.owner == Some(run(server)));
    of_it.map(|placed| placed.agents).sum()
}

#[test]
fn groups_without_a_living_owner_go_to_the_least_loaded() {
    let groups = [
        placed(1, Some(1), 100),
        placed(2, Some(9), 60),
        placed(3, None, 50),
        placed(4, None, 0),
    ];
    let gifts = brief(&planned(&[1, 2], &groups, 0));
    assert_eq!(gifts, [(2, run(2)), (3, run(2)), (4, run(1))]);
    assert_eq!(planned(&[], &groups, 9), []);
}

/// Acceptance 8 of the several agent servers: sessions within 10 % of even, and no more moves than needed
/// and a tenth.
#[test]
fn sixty_four_groups_follow_servers_that_come_and_go_with_few_moves() {
    let mut groups: Vec<_> = (0..64)
        .map(|n| placed(n, None, 150 + u64::from(n) % 7))
        .collect();
    let all: u64 = groups.iter().map(|placed| placed.agents).sum();
    for (servers, needed) in [
        (&[1][..], 64),
        (&[1, 2], 32),
        (&[1, 2, 3], 22),
        (&[1, 3], 22),
    ] {
        let mut moved = 0;
        while let now @ 1.. = follow(&mut groups, servers, 2) {
            moved += now;
            assert!(moved <= needed * 11 / 10, "{servers:?}: {moved}");
        }
        let even = all / servers.len() as u64;
        for server in servers {
            let own = agents_of(&groups, *server);
            assert!(
                own.abs_diff(even) * 10 <= even,
                "{server} of {servers:?}: {own}"
            );
        }
    }
}

#[test]
fn who_is_alive_and_may_own_no_more_keeps_what_it_has() {
    let groups = [
        placed(1, Some(1), 50),
        placed(2, Some(2), 50),
        placed(3, Some(3), 50),
    ];
    let mut field = Field {
        servers: BTreeMap::from([server(1)]),
        alive: vec![run(1), run(2)],
        ..Field::default()
    };
    let gifts = brief(&plan(&field, &groups, moving(9)));
    assert_eq!(gifts, [(3, run(1))]);
    // Whoever drains gives its own away, at the pace of moves.
    field.leaving = vec![run(2)];
    let given = |moves| plan(&field, &groups, moving(moves)).len();
    assert_eq!((given(0), given(1)), (1, 2));
    // One that is about to stop does not wait for those.
    field.hurried = vec![run(2)];
    let hurried = Pace {
        hurried: 1,
        ..Pace::default()
    };
    assert_eq!(plan(&field, &groups, hurried).len(), 2);
}

#[test]
fn few_agents_in_many_groups_are_spread_as_agents_and_not_as_groups() {
    let mut groups: Vec<_> = (0..64)
        .map(|n| placed(n, Some(1), u64::from(n < 24)))
        .collect();
    while follow(&mut groups, &[1, 2], 2) > 0 {}
    assert_eq!((agents_of(&groups, 1), agents_of(&groups, 2)), (12, 12));
}

#[test]
fn a_pinned_group_goes_where_it_is_pinned_and_stays_there_while_that_is_there() {
    let pin = |placed: &mut Placed| placed.pin = Some(pin(2, None));
    let mut groups = vec![placed(1, Some(1), 100), placed(2, Some(1), 100)];
    groups.iter_mut().for_each(pin);
    assert_eq!(planned(&[1, 2], &groups, 0), [], "at the pace of moves");
    assert_eq!(follow(&mut groups, &[1, 2], 9), 2);
    assert_eq!(agents_of(&groups, 2), 200);
    assert_eq!(follow(&mut groups, &[1, 2], 9), 0, "however uneven that is");
    assert_eq!(follow(&mut groups, &[1, 3], 0), 2, "it is gone");
    assert_eq!(agents_of(&groups, 1), 100);
    assert_eq!(follow(&mut groups, &[1, 2, 3], 9), 2);
    assert_eq!(agents_of(&groups, 2), 200);
}

#[test]
fn what_is_nearly_even_stays_where_it_is() {
    let groups = [
        placed(1, Some(1), 104),
        placed(2, Some(1), 0),
        placed(3, Some(2), 100),
    ];
    assert_eq!(planned(&[1, 2], &groups, 9), []);
    // One group that is heavier than all others is nobody's gain elsewhere.
    let heavy = [placed(1, Some(1), 1000), placed(2, Some(2), 10)];
    assert_eq!(planned(&[1, 2], &heavy, 9), []);
}

#[test]
fn what_somebody_has_asked_for_now_does_not_wait_until_servers_have_settled() {
    let mut groups = vec![placed(1, Some(1), 100), placed(2, Some(1), 100)];
    groups[0].pin = Some(pin(2, Some(UnixMs(9))));
    groups[1].pin = Some(pin(2, None));
    let pace = Pace {
        asked: 2,
        ..Pace::default()
    };
    assert_eq!(brief(&plan(&field(&[1, 2]), &groups, pace)), [(1, run(2))]);
}

#[test]
fn nobody_is_filled_above_its_capacity_while_another_has_room() {
    let mut field = field(&[1, 2]);
    let taker = field.servers.get_mut(&run(1));
    taker.unwrap().capacity = 100;
    let orphan = [
        placed(1, Some(1), 90),
        placed(2, Some(2), 150),
        placed(3, None, 20),
    ];
    assert_eq!(brief(&plan(&field, &orphan, moving(0))), [(3, run(2))]);
    // Loads that are nearly even are made more so where one is too full for itself alone.
    let mut full = vec![
        placed(1, Some(1), 95),
        placed(2, Some(1), 10),
        placed(3, Some(2), 100),
    ];
    assert_eq!(brief(&plan(&field, &full, moving(9))), []);
    full[2].agents = 99;
    full[1].agents = 5;
    full.push(placed(4, Some(1), 4));
    assert_eq!(brief(&plan(&field, &full, moving(9))), [(4, run(2))]);
    // When all are full, all are evenly so.
    let all = [placed(1, None, 20_000), placed(2, None, 20_000)];
    let gifts = brief(&plan(&field, &all, moving(0)));
    assert_eq!(gifts, [(1, run(1)), (2, run(2))]);
}

#[test]
fn groups_that_were_asked_to_be_even_are_as_even_as_whole_groups_can_be() {
    let mut groups = vec![
        placed(1, Some(1), 52),
        placed(2, Some(1), 2),
        placed(3, Some(1), 0),
        placed(4, Some(2), 50),
    ];
    assert_eq!(planned(&[1, 2], &groups, 9), [], "it is within the tenth");
    assert_eq!(brief(&even(&field(&[1, 2]), &groups)), [(2, run(2))]);
    groups[1].pin = Some(pin(1, None));
    assert_eq!(even(&field(&[1, 2]), &groups), [], "what is pinned stays");
    let empty: Vec<_> = (0..8).map(|n| placed(n, Some(1), 0)).collect();
    assert_eq!(even(&field(&[1, 2]), &empty).len(), 4);
}

#[test]
fn a_group_that_is_to_leave_goes_to_the_best_of_the_others() {
    let groups = [
        placed(1, Some(1), 10),
        placed(2, Some(2), 30),
        placed(3, Some(3), 20),
    ];
    let goes = |servers: &[u8]| elsewhere(&field(servers), &groups, &groups[0]);
    assert_eq!(goes(&[1, 2, 3]), Some(run(3)));
    assert_eq!(goes(&[1, 2]), Some(run(2)));
    assert_eq!(goes(&[1]), None);
}
