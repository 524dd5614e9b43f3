use futures_util::FutureExt as _;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest};
use protocol::ids::{Epoch, Fence, GrantId, OperationId, ProcessId, Slot};
use protocol::link::SessionUp;
use protocol::operation::Command;

use super::*;
use crate::clock::UnixMs;
use crate::gateways::Placed;
use crate::store::groups::Group;

/// A gateway's queues.
#[derive(Default)]
pub(in crate::gateways) struct Fake {
    run: u8,
    sent: Mutex<Vec<Request>>,
    events: Mutex<Vec<Event>>,
    full: Mutex<bool>,
    gone: CancellationToken,
}

impl Fake {
    pub(in crate::gateways) fn new(run: u8) -> Arc<Self> {
        Arc::new(Self {
            run,
            ..Self::default()
        })
    }

    pub(in crate::gateways) fn sent(&self) -> Vec<Request> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    fn says(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    pub(in crate::gateways) fn way(self: &Arc<Self>) -> Way {
        Way {
            server: AgentServer {
                run: run(self.run),
                link: format!("{}.example:7444", self.run),
                addresses: addresses(self.run),
                shards: 2,
                capacity: 10_000,
            },
            number: ServerId(70 + u32::from(self.run)),
            link: Arc::<Self>::clone(self),
        }
    }
}

impl Link for Fake {
    fn gateway(&self) -> GatewayId {
        run(self.run)
    }

    fn cut_off(&self) -> CancellationToken {
        self.gone.clone()
    }

    fn send(&self, request: Request) -> Result<(), LinkFull> {
        if *self.full.lock().unwrap() {
            return Err(LinkFull(Box::new(request)));
        }
        self.sent.lock().unwrap().push(request);
        Ok(())
    }

    fn receive(&self, out: &mut Vec<Event>, max: usize) -> usize {
        let mut events = self.events.lock().unwrap();
        let count = events.len().min(max);
        out.extend(events.drain(..count));
        count
    }
}

pub(in crate::gateways) fn run(number: u8) -> GatewayId {
    GatewayId::from_bytes([number; 16])
}

pub(in crate::gateways) fn addresses(number: u8) -> Vec<String> {
    vec![format!("{number}.example:7443")]
}

/// An agent of the group of that number.
fn target(group: u8) -> Target {
    Target {
        agent: AgentId::from_bytes([100 + group; 16]),
        group: GroupId::from_bytes([group; 16]),
        slot: Slot(group),
    }
}

fn forget(group: u8) -> Request {
    Request::Forget {
        target: target(group),
        operations: Vec::new(),
    }
}

fn up(group: u8, session: u64) -> Event {
    Event::SessionUp(Box::new(SessionUp {
        target: target(group),
        session: SessionId(session),
        shard: ShardId(1),
        at_home: true,
        remote: ([127, 0, 0, 1], 1).into(),
        capacity: 1,
        kinds: Vec::new(),
        open: Vec::new(),
        hostname: String::new(),
        software: String::new(),
        labels: Vec::new(),
    }))
}

fn received(switch: &Switch) -> Vec<Event> {
    let mut events = Vec::new();
    switch.receive(&mut events, 100);
    events
}

/// A group that this one owns, as the store says it.
fn placed(group: u8, owner: u8, epoch: u64) -> Placed {
    Placed {
        group: Group {
            id: target(group).group,
            name: format!("g{group}"),
            slot: Slot(group),
            automatic: true,
            epoch: Epoch(epoch),
            created_at: UnixMs(1),
        },
        owner: Some(run(owner)),
        agents: 1,
        pin: None,
    }
}

fn assign(group: u8, epoch: u64) -> Request {
    Request::AssignGroup {
        group: target(group).group,
        slot: Slot(group),
        epoch: Epoch(epoch),
    }
}

fn release(group: u8, epoch: u64, owner: u8) -> Request {
    Request::ReleaseGroup {
        group: target(group).group,
        epoch: Epoch(epoch),
        addresses: addresses(owner),
    }
}

/// Two gateways, the first of which owns group 1, the second group 2.
fn two() -> (Arc<Gateways>, Arc<Switch>, [Arc<Fake>; 2]) {
    let gateways = Gateways::new();
    for (group, owner) in [(1, 1), (2, 2), (3, 1)] {
        let placed = placed(group, owner, 4);
        gateways.know(Vec::new(), &[placed]);
    }
    let fakes = [Fake::new(1), Fake::new(2)];
    // In whatever order they were joined.
    let ways = vec![fakes[1].way(), fakes[0].way()];
    let switch = Switch::new(&gateways, ways, Wake::new());
    (gateways, switch, fakes)
}

#[test]
fn requests_about_an_agent_go_to_the_owner_of_its_group_and_others_to_all() {
    let (_gateways, switch, [first, second]) = two();
    switch.send(forget(1)).unwrap();
    switch.send(forget(2)).unwrap();
    assert_eq!(
        (first.sent(), second.sent()),
        (vec![forget(1)], vec![forget(2)])
    );
    let revoke = Request::RevokeAgent {
        agent: target(1).agent,
    };
    switch.send(revoke.clone()).unwrap();
    assert_eq!(
        (first.sent(), second.sent()),
        (vec![revoke.clone()], vec![revoke])
    );
    *second.full.lock().unwrap() = true;
    let LinkFull(back) = switch.send(forget(2)).unwrap_err();
    assert_eq!(*back, forget(2));
}

#[test]
fn one_is_told_that_it_owns_a_group_and_the_others_who_does() {
    let (_gateways, switch, [first, second]) = two();
    switch.send(assign(2, 4)).unwrap();
    assert_eq!(first.sent(), [release(2, 4, 2)]);
    assert_eq!(second.sent(), [assign(2, 4)]);
}

#[test]
fn nobody_guesses_whose_a_group_is_before_the_store_has_said_it() {
    let (gateways, switch, [first, second]) = two();
    let woken = || gateways.changed.notified().now_or_never().is_some();
    woken();
    // One that was just made, and one whose epoch somebody else has raised.
    for (group, epoch) in [(4, 1), (2, 5)] {
        switch.send(assign(group, epoch)).unwrap();
        assert_eq!((first.sent(), second.sent()), (Vec::new(), Vec::new()));
        assert!(woken(), "it is read soon");
        gateways.know(Vec::new(), &[placed(group, 2, epoch)]);
        switch.send(assign(group, epoch)).unwrap();
        assert_eq!(first.sent(), [release(group, epoch, 2)]);
        assert_eq!(second.sent(), [assign(group, epoch)]);
        assert!(!woken());
    }
    // What is asked of an agent of such a group is asked of nobody.
    switch.send(forget(5)).unwrap();
    assert_eq!((first.sent(), second.sent()), (Vec::new(), Vec::new()));
}

#[test]
fn what_was_read_before_undoes_nothing_of_what_was_read_since() {
    let (gateways, switch, [first, second]) = two();
    gateways.know(Vec::new(), &[placed(2, 1, 5)]);
    // A process server that begins had asked the store before.
    gateways.know(Vec::new(), &[placed(2, 2, 4)]);
    assert_eq!(gateways.owner(target(2).group), Some(run(1)));
    switch.send(assign(2, 4)).unwrap();
    assert_eq!(first.sent(), [assign(2, 5)]);
    assert_eq!(second.sent(), [release(2, 5, 1)]);
}

#[test]
fn shards_are_numbered_through_and_answers_find_their_way_back() {
    let (_gateways, switch, [first, second]) = two();
    second.says(Event::Reported {
        shard: ShardId(1),
        shards: 2,
        reports: Vec::new(),
    });
    let reported = Event::Reported {
        shard: ShardId(3),
        shards: 4,
        reports: Vec::new(),
    };
    assert_eq!(received(&switch), [reported]);
    let lend = |shard: u16| Request::Lend {
        shard: ShardId(shard),
        leases: Vec::new(),
    };
    switch.send(lend(3)).unwrap();
    switch.send(lend(9)).unwrap();
    assert_eq!((first.sent(), second.sent()), (Vec::new(), vec![lend(1)]));

    let request = EnrolRequest {
        secret: [1; 32],
        csr: vec![1],
        hostname: String::new(),
        software: String::new(),
    };
    second.says(Event::Enrol {
        shard: ShardId(1),
        ticket: 5,
        remote: ([127, 0, 0, 1], 1).into(),
        request: Box::new(request),
    });
    let [Event::Enrol { shard, ticket, .. }] = received(&switch)[..] else {
        panic!("no enrolment");
    };
    assert_eq!(shard, ShardId(1));
    let reply = |ticket| Request::EnrolReply {
        shard,
        ticket,
        reply: EnrolReply::Refused(EnrolRefusal::UnknownToken),
    };
    switch.send(reply(ticket)).unwrap();
    assert_eq!((first.sent(), second.sent()), (Vec::new(), vec![reply(5)]));
}

#[test]
fn permits_count_for_the_owner_alone_and_under_one_number() {
    let (gateways, switch, [first, second]) = two();
    let granted = |server| Event::Granted {
        target: target(1),
        server,
        line: 1,
        grant: GrantId(1),
        epoch: Epoch(1),
        permits: 1,
        ttl: std::time::Duration::from_secs(1),
    };
    first.says(granted(ServerId(71)));
    second.says(granted(ServerId(72)));
    assert_eq!(received(&switch), [granted(switch.server)]);
    gateways.know(Vec::new(), &[placed(1, 2, 5)]);
    first.says(granted(ServerId(71)));
    assert_eq!(received(&switch), []);
}

#[test]
fn one_that_is_gone_takes_its_sessions_and_leaves_the_others_alone() {
    let (gateways, switch, [first, second]) = two();
    first.says(up(1, 7));
    second.says(up(2, 8));
    assert_eq!(received(&switch).len(), 2);
    // What it has said before its end is heard first.
    first.says(up(3, 9));
    first.gone.cancel();
    assert!(matches!(&received(&switch)[..], [Event::SessionUp(_)]));
    let gone: Vec<_> = received(&switch)
        .iter()
        .map(|event| match event {
            Event::SessionDown { session, .. } => session.0 & 0xff,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(gone, [7, 9]);
    let reached: Vec<_> = gateways.reached().iter().map(|one| one.run).collect();
    assert_eq!(reached, [run(2)]);
    switch.send(forget(2)).unwrap();
    assert_eq!(second.sent(), [forget(2)]);

    let command = Command {
        operation: OperationId {
            process: ProcessId::from_bytes([1; 16]),
            step: 0,
        },
        fence: Fence(1),
        kind: "exec".into(),
        input: "{}".into(),
        deadline_ms: 0,
    };
    let dispatch = Request::Dispatch {
        target: target(1),
        grant: GrantId(1),
        epoch: Epoch(1),
        command: Box::new(command),
    };
    switch.send(dispatch).unwrap();
    let answer = received(&switch);
    let not_owner = NotDelivered::NotOwner;
    assert!(
        matches!(&answer[..], [Event::NotDelivered { reason, .. }] if *reason == not_owner),
        "{answer:?}"
    );
}

#[test]
fn sessions_of_two_gateways_are_never_taken_for_one_another() {
    let (gateways, switch, [first, second]) = two();
    let mut ups = Vec::new();
    for number in 1..=2 {
        let epoch = 4 + u64::from(number);
        gateways.know(Vec::new(), &[placed(1, number, epoch)]);
        [&first, &second][usize::from(number) - 1].says(up(1, 7));
        ups.extend(received(&switch));
    }
    let down = Event::SessionDown {
        target: target(1),
        session: SessionId(7),
        reason: DownReason::TimedOut,
    };
    let mut of = ups.into_iter().map(|event| match event {
        Event::SessionUp(up) => up.session,
        other => panic!("{other:?}"),
    });
    let (one, other) = (of.next().unwrap(), of.next().unwrap());
    assert_ne!(one, other);
    for (gateway, ended) in [(first, one), (second, other)] {
        gateway.says(down.clone());
        let heard = received(&switch);
        assert!(
            matches!(&heard[..], [Event::SessionDown { session, .. }] if *session == ended),
            "{heard:?}"
        );
    }
}

#[test]
fn what_is_left_of_a_session_elsewhere_does_not_stand_in_for_the_owners() {
    let (gateways, switch, [first, second]) = two();
    second.says(up(2, 4));
    assert_eq!(received(&switch).len(), 1);
    // It stood still while its agents went over, and tells of those that it had.
    first.says(up(2, 3));
    assert_eq!(received(&switch), []);
    first.says(Event::SessionDown {
        target: target(2),
        session: SessionId(3),
        reason: DownReason::TimedOut,
    });
    assert_eq!(received(&switch), []);
    // Somebody else has told it that the group is its own, which is learned here a moment later.
    first.says(up(2, 5));
    assert_eq!(received(&switch), []);
    gateways.know(Vec::new(), &[placed(2, 1, 5)]);
    assert!(matches!(&received(&switch)[..], [Event::SessionUp(up)] if up.session.0 & 0xff == 5));
}

#[tokio::test]
async fn one_that_comes_is_told_who_may_come_in_before_it_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open("sqlite:", directory.path()).await.unwrap();
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let agent = crate::store::tests::enrol(&store, 1).await;
    let (gateways, switch, [first, _second]) = two();
    let third = Fake::new(3);
    gateways.know(Vec::new(), &[placed(5, 3, 1)]);
    third.says(up(5, 7));
    switch.add(third.way(), &store).await.unwrap();
    let said = third.sent();
    assert!(matches!(said[0], Request::SetLimits { .. }), "{said:?}");
    assert!(matches!(&said[1], Request::AdmitAgent { target, .. } if *target == agent));
    assert_eq!(received(&switch).len(), 1);
    assert_eq!(gateways.reached().len(), 3);
    let twice = switch.add(first.way(), &store).await.unwrap_err();
    assert!(matches!(twice, AddError::Twice(..)), "{twice}");
}
