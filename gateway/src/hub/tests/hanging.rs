//! Servers that hang: who is cut off, and what the others have of it.

use super::*;

fn at(seconds: u64) -> Instant {
    static START: std::sync::LazyLock<Instant> =
        std::sync::LazyLock::new(crate::runtime::clock::now);
    *START + Duration::from_secs(seconds)
}

/// Time passes second by second while these come; who was cut off, and after how many seconds.
fn pass(hub: &mut Hub, from: u64, seconds: u64, coming: &[ServerId]) -> Vec<(u64, ServerId)> {
    let mut cut = Vec::new();
    hub.handle_tick(at(from));
    for second in from + 1..=from + seconds {
        for server in coming {
            hub.handle_come(*server);
        }
        let hanging = hub.handle_tick(at(second));
        cut.extend(hanging.into_iter().map(|server| (second - from, server)));
    }
    cut
}

#[test]
fn whoever_hangs_is_cut_off_and_the_others_have_what_was_its_own() {
    let mut hub = hub(&[A, B]);
    hub.handle_event(up(1, 1));
    heard(&mut hub, B);
    send(&mut hub, A, dispatch(5));
    send(&mut hub, A, demand(A, 4));
    said(&mut hub);
    hub.handle_event(offered(2, 8));
    hub.handle_event(finished(5));
    hub.handle_event(granted(A));
    hub.handle_tick(at(0));
    assert_eq!(pass(&mut hub, 1, 20, &[B]), [(10, A)]);
    assert_eq!(hub.leader(), Some(B));
    assert_eq!(heard(&mut hub, B), [finished(5)]);
    let back = |target, grant, unused| Request::ReturnPermits {
        target,
        grant: GrantId(grant),
        unused,
    };
    let sent = said(&mut hub);
    let expected = [demand(A, 0), back(target(2), 8, 1), back(target(1), 70, 3)];
    assert_eq!(sent, expected);
    // It comes to itself, and neither hears nor says anything.
    hub.handle_event(accepted(6));
    assert!(heard(&mut hub, A).is_empty());
    send(&mut hub, A, dispatch(6));
    send(&mut hub, A, demand(A, 1));
    assert!(said(&mut hub).is_empty());
    hub.handle_leave(A);
    assert_eq!(heard(&mut hub, B), [accepted(6)], "and once");
}

#[test]
fn one_that_hangs_holds_the_gateway_up_until_it_is_cut_off_and_no_longer() {
    let mut hub = hub(&[A, B]);
    while hub.room() > 0 {
        hub.handle_event(accepted(1));
    }
    heard(&mut hub, B);
    assert_eq!(hub.room(), 0);
    assert_eq!(pass(&mut hub, 0, 10, &[B]), [(10, A)]);
    assert_eq!(hub.room(), EVENTS_MAX, "B had all of it already");
}

#[test]
fn what_stops_all_alike_cuts_nobody_off() {
    let mut hub = hub(&[A, B]);
    hub.handle_event(accepted(1));
    assert!(pass(&mut hub, 0, 60, &[]).is_empty(), "nobody comes");
    // They come again, one after the other: that B was first says nothing about A.
    assert!(pass(&mut hub, 60, 1, &[B]).is_empty());
    assert!(pass(&mut hub, 61, 30, &[A, B]).is_empty());
    // The program stood still for a minute.
    hub.handle_come(B);
    assert!(hub.handle_tick(at(151)).is_empty());
    assert!(pass(&mut hub, 151, 7, &[B]).is_empty());
    assert_eq!(pass(&mut hub, 158, 1, &[B]), [(1, A)]);
    assert!(
        pass(&mut hub, 159, 30, &[]).is_empty(),
        "it is the last one"
    );
}

#[test]
fn whoever_has_not_begun_or_drains_is_not_waited_for() {
    let mut hub = hub(&[A, B]);
    hub.handle_join(C).unwrap();
    hub.handle_drain(B);
    assert!(pass(&mut hub, 0, 60, &[A]).is_empty());
    hub.handle_event(up(1, 1));
    assert_eq!(heard(&mut hub, C).len(), 1);
}

#[test]
fn what_many_leave_unread_is_not_doubled_from_one_to_the_next() {
    let servers: Vec<ServerId> = (1..=16).map(ServerId).collect();
    let mut hub = hub(&servers);
    for n in 0..50 {
        hub.handle_event(accepted(n));
        send(&mut hub, servers[usize::from(n) % 15], dispatch(n));
        hub.handle_event(accepted(n));
    }
    let cut = pass(&mut hub, 0, 10, &servers[15..]);
    assert_eq!(cut.len(), 15, "all but the one that comes");
    let words = heard(&mut hub, servers[15]);
    assert_eq!(words.len(), 100);
}

#[test]
fn an_answer_to_somebody_that_has_left_is_no_answer_to_another() {
    let mut hub = hub(&[A, B]);
    let ask = |ticket| Request::AskFlow {
        target: target(1),
        ticket,
    };
    let told = |ticket| Event::FlowTold {
        target: target(1),
        ticket,
        flow: None,
    };
    send(&mut hub, A, ask(1));
    send(&mut hub, B, ask(7));
    hub.handle_event(told(0));
    hub.handle_leave(A);
    assert!(
        heard(&mut hub, B).is_empty(),
        "its own ticket is 1 here, as A's"
    );
    hub.handle_event(told(1));
    assert_eq!(heard(&mut hub, B), [told(7)]);
}

#[test]
fn limits_that_the_leader_did_not_come_to_saying_are_told_by_the_next() {
    let mut hub = Hub::default();
    let limits = |max| Request::SetLimits {
        limits: vec![Limit {
            key: protocol::flow::LimitKey::Global,
            min: 0,
            max,
            pin: None,
        }],
    };
    // Before anybody hears, as servers start.
    for server in [A, B] {
        hub.handle_join(server).unwrap();
        send(&mut hub, server, limits(1));
        hub.handle_come(server);
    }
    send(&mut hub, B, limits(2));
    assert_eq!(said(&mut hub), [limits(1)]);
    hub.handle_leave(A);
    assert!(pass(&mut hub, 0, 4, &[B]).is_empty());
    assert!(said(&mut hub).is_empty(), "it may know less than A knew");
    assert!(pass(&mut hub, 4, 4, &[B]).is_empty());
    assert_eq!(said(&mut hub), [limits(2)]);
    assert!(pass(&mut hub, 8, 20, &[B]).is_empty());
    assert!(said(&mut hub).is_empty(), "once");
}

/// What may happen to servers of which some hang.
#[derive(Clone, Debug)]
enum Hap {
    Come(u32),
    Leave(u32),
    /// It dispatches this one.
    Dispatch(u32, u8),
    /// A word about this one.
    Word(u8),
    Up(u8),
    /// Seconds.
    Pass(u64),
}

fn hap() -> impl Strategy<Value = Hap> {
    let (server, thing) = (1..5_u32, 0..3_u8);
    prop_oneof![
        6 => server.clone().prop_map(Hap::Come),
        1 => server.clone().prop_map(Hap::Leave),
        3 => (server, thing.clone()).prop_map(|(s, n)| Hap::Dispatch(s, n)),
        4 => thing.clone().prop_map(Hap::Word),
        2 => thing.prop_map(Hap::Up),
        8 => (1..4_u64).prop_map(Hap::Pass),
    ]
}

/// The `n`th word of all.
fn word(operation_number: u8, n: u64) -> Event {
    Event::Accepted {
        target: target(1),
        operation: operation(operation_number),
        fence: Fence(n),
    }
}

/// What all servers together have read, and what each knows.
#[derive(Default)]
struct Readers {
    views: BTreeMap<u32, View>,
    read: BTreeSet<u64>,
}

impl Readers {
    fn come(&mut self, hub: &mut Hub, server: u32) {
        let view = self.views.entry(server).or_default();
        let events = heard(hub, ServerId(server));
        self.read
            .extend(events.iter().filter_map(|event| match event {
                Event::Accepted { fence, .. } => Some(fence.0),
                _ => None,
            }));
        view.read(events);
    }
}

proptest! {
    /// Whoever hangs, and however many: a word is read by somebody as long as somebody is there, those that
    /// come are never cut off, those that do not are in time, and those that are left agree on the sessions.
    #[test]
    fn nothing_is_lost_when_servers_hang_and_whoever_comes_stays(haps in prop::collection::vec(hap(), 1..120)) {
        let mut hub = Hub::default();
        let mut readers = Readers::default();
        let (mut sent, mut sessions) = (BTreeSet::new(), BTreeMap::new());
        // Seconds in which each did not come while another did; and who has come since the last tick.
        let mut silent: BTreeMap<u32, u64> = BTreeMap::new();
        let mut came = BTreeSet::new();
        let (mut now, mut next) = (0, 0);
        hub.handle_tick(at(0));
        for hap in haps {
            next += 1;
            match hap {
                Hap::Come(s) => {
                    // Whoever is not there comes anew, as in the place of one that was cut off.
                    let fresh = hub.handle_join(ServerId(s)).is_ok();
                    prop_assert_eq!(fresh, !readers.views.contains_key(&s));
                    readers.come(&mut hub, s);
                    silent.entry(s).or_default();
                    came.insert(s);
                }
                Hap::Leave(s) => {
                    hub.handle_leave(ServerId(s));
                    readers.views.remove(&s);
                    silent.remove(&s);
                    came.remove(&s);
                }
                Hap::Dispatch(s, n) => send(&mut hub, ServerId(s), dispatch(n)),
                Hap::Word(n) if hub.room() > 0 => {
                    hub.handle_event(word(n, next));
                    sent.insert(next);
                }
                Hap::Up(n) if hub.room() > 0 => {
                    hub.handle_event(up(n, next));
                    sessions.insert(agent(n), SessionId(next));
                }
                Hap::Word(_) | Hap::Up(_) => {}
                Hap::Pass(seconds) => {
                    now += seconds;
                    let mut expected = Vec::new();
                    for (s, silent) in &mut silent {
                        if came.contains(s) {
                            *silent = 0;
                        } else if !came.is_empty() {
                            *silent += seconds.min(2);
                        }
                        if *silent >= 10 {
                            expected.push(ServerId(*s));
                        }
                    }
                    came.clear();
                    let cut = hub.handle_tick(at(now));
                    prop_assert_eq!(&cut, &expected);
                    for ServerId(s) in cut {
                        readers.views.remove(&s);
                        silent.remove(&s);
                    }
                }
            }
            said(&mut hub);
            if hub.leader().is_none() {
                // The last one has left with what it had not read: agents say it again.
                sent.clear();
            }
        }
        let left: Vec<u32> = readers.views.keys().copied().collect();
        for s in &left {
            readers.come(&mut hub, *s);
        }
        for view in readers.views.values() {
            prop_assert_eq!(&view.sessions, &sessions);
        }
        prop_assert!(sent.is_subset(&readers.read), "{sent:?} {:?}", readers.read);
    }
}
