//! What people are told of lines and of limits.

use protocol::flow::{Demand, Limit, LimitKey, LimitUse, Line};
use protocol::ids::{GroupId, ServerId};
use protocol::link::{Event, Request};

use super::super::tests::{SHARD, assign, location, outputs, target, up};
use super::super::{Home, HomeConfig, HomeOutput};
use crate::runtime::clock;

fn line(work: &str) -> Line {
    Line {
        tenant: "acme".to_owned(),
        kind: "exec".to_owned(),
        work: work.to_owned(),
        ..Line::default()
    }
}

fn limit(key: LimitKey, max: u32) -> Limit {
    Limit {
        key,
        min: 1,
        max,
        pin: None,
    }
}

/// A home with two agents of four places, each of which wants three builds and three of anything else.
fn home(limits: Vec<Limit>) -> Home {
    let now = clock::now();
    let config = HomeConfig {
        offers: false,
        adaptive: false,
        ..HomeConfig::default()
    };
    let mut home = Home::new(now, SHARD, 2, config);
    home.handle_request(now, assign(1));
    home.handle_request(now, Request::SetLimits { limits });
    for agent in [0, 1] {
        let session = u64::from(agent) + 1;
        home.handle_session_up(
            now,
            location(session),
            up(agent, session, 4, Vec::new()),
            session,
        );
        let of = |number, work| Demand {
            number,
            line: line(work),
            ..Demand::of("exec", 3)
        };
        let lines = vec![of(7, "build"), of(9, "")];
        home.handle_request(
            now,
            Request::Demand {
                target: target(agent),
                server: ServerId(5),
                lines,
            },
        );
    }
    outputs(&mut home);
    home
}

fn told(home: &mut Home) -> Event {
    let events: Vec<Event> = outputs(home)
        .into_iter()
        .filter_map(|output| match output {
            HomeOutput::Event(event) => Some(event),
            _ => None,
        })
        .collect();
    let [event] = <[Event; 1]>::try_from(events).unwrap();
    event
}

fn used(home: &mut Home, key: LimitKey) -> LimitUse {
    home.handle_request(clock::now(), Request::AskLimit { key, ticket: 3 });
    match told(home) {
        Event::LimitTold {
            ticket: 3,
            shard: SHARD,
            shards: 2,
            used,
        } => used,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_line_that_waits_is_told_with_its_names_and_what_it_is_parked_on() {
    let mut home = home(vec![limit(LimitKey::Work("build".to_owned()), 1)]);
    let (target, ticket) = (target(0), 1);
    home.handle_request(clock::now(), Request::AskFlow { target, ticket });
    let Event::FlowTold {
        flow: Some(flow), ..
    } = told(&mut home)
    else {
        panic!("nothing was told");
    };
    assert_eq!((flow.limit, flow.granted, flow.running), (4, 4, 0));
    let [waits] = &flow.lines[..] else {
        panic!("{:?}", flow.lines);
    };
    assert_eq!((waits.number, waits.waiting), (7, 2));
    assert_eq!(waits.line, line("build"));
    let parked = waits.parked.as_ref().unwrap();
    assert_eq!(parked.key, LimitKey::Work("build".to_owned()));
    assert_eq!((parked.limit, parked.in_use, parked.before), (1, 1, 0));
}

#[test]
fn what_is_in_use_of_a_shared_limit_is_told() {
    let group = LimitKey::Group(target(0).group);
    let build = LimitKey::Work("build".to_owned());
    let mut home = home(vec![limit(group.clone(), 3), limit(build.clone(), 1)]);
    let of_group = used(&mut home, group);
    assert_eq!((of_group.limit, of_group.in_use), (Some(3), 3));
    assert!(of_group.waiting > 0, "the second agent has too little");
    let of_build = used(&mut home, build);
    assert_eq!((of_build.limit, of_build.in_use), (Some(1), 1));
    let nothing = LimitUse {
        limit: None,
        in_use: 0,
        waiting: 0,
    };
    for key in [
        LimitKey::Work("migrate".to_owned()),
        LimitKey::Group(GroupId::from_bytes([9; 16])),
        LimitKey::Tenant("acme".to_owned()),
        LimitKey::Global,
    ] {
        assert_eq!(used(&mut home, key), nothing);
    }
}
