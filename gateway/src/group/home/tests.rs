//! The rules of a home, one by one.

use bytes::Bytes;
use protocol::flow::Demand;
use protocol::ids::{Fence, OperationId, ProcessId, ServerId, SessionId};
use protocol::link::NotDelivered;
use protocol::operation::{
    Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Refusal,
};

use super::*;
use crate::group::OperationEvent;
use crate::runtime::clock;

pub(super) const SHARD: ShardId = ShardId(0);

pub(super) fn target(agent: u8) -> Target {
    Target {
        agent: AgentId::from_bytes([agent; 16]),
        group: GroupId::from_bytes([1; 16]),
        slot: Slot(0),
    }
}

pub(super) fn location(session: u64) -> Location {
    Location {
        shard: ShardId(1),
        index: 3,
        session: SessionId(session),
    }
}

pub(super) fn operation(number: u8) -> OperationId {
    OperationId::new(ProcessId::from_bytes([number; 16]), 0)
}

pub(super) fn command(number: u8, fence: u64) -> Box<Command> {
    Box::new(Command {
        operation: operation(number),
        fence: Fence(fence),
        kind: "exec".to_owned(),
        input: Bytes::new(),
        deadline_ms: 0,
    })
}

pub(super) fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: String::new(),
        output: Bytes::new(),
        service_time: Duration::ZERO,
    }
}

pub(super) fn up(
    agent: u8,
    session: u64,
    capacity: u32,
    open: Vec<OpenOperation>,
) -> Box<SessionUp> {
    Box::new(SessionUp {
        target: target(agent),
        session: SessionId(session),
        shard: ShardId(1),
        at_home: false,
        remote: ([127, 0, 0, 1], 9).into(),
        capacity,
        kinds: Vec::new(),
        open,
        hostname: String::new(),
        software: String::new(),
        labels: Vec::new(),
    })
}

pub(super) fn assign(epoch: u64) -> Request {
    Request::AssignGroup {
        group: target(0).group,
        slot: Slot(0),
        epoch: Epoch(epoch),
    }
}

/// What the first server has ready, all in one line.
pub(super) fn demand(target: Target, ready: u32) -> Request {
    Request::Demand {
        target,
        server: ServerId(1),
        lines: vec![Demand::of("exec", ready)],
    }
}

pub(super) fn outputs(home: &mut Home) -> Vec<HomeOutput> {
    std::iter::from_fn(|| home.poll_output()).collect()
}

/// A home with a group of epoch 5 and one agent with capacity 2, and its session.
struct Scene {
    home: Home,
    now: Instant,
}

const AGENT: u8 = 7;

impl Scene {
    fn new() -> Self {
        let mut scene = Self::empty();
        scene.up(1, 1, Vec::new());
        scene.outputs();
        scene
    }

    /// Without offers: what is about them says so.
    fn empty() -> Self {
        Self::with(false)
    }

    fn with_offers() -> Self {
        Self::with(true)
    }

    fn with(offers: bool) -> Self {
        let config = HomeConfig {
            offers,
            adaptive: false,
            ..HomeConfig::default()
        };
        let now = clock::now();
        let mut home = Home::new(now, SHARD, 2, config);
        home.handle_request(now, assign(5));
        Self { home, now }
    }

    fn up(&mut self, session: u64, count: u64, open: Vec<OpenOperation>) {
        let up = up(AGENT, session, 2, open);
        self.home
            .handle_session_up(self.now, location(session), up, count);
    }

    fn down(&mut self, session: u64) {
        let agent = target(AGENT).agent;
        let reason = DownReason::TimedOut;
        self.home
            .handle_session_down(self.now, location(session), agent, reason);
    }

    fn ask(&mut self, request: Request) -> Vec<HomeOutput> {
        self.home.handle_request(self.now, request);
        self.outputs()
    }

    fn demand(&mut self, ready: u32) -> Option<(GrantId, u32)> {
        let target = target(AGENT);
        granted(&self.ask(demand(target, ready)))
    }

    fn dispatch(&mut self, grant: GrantId, number: u8) -> Vec<HomeOutput> {
        self.ask(dispatch(grant, 5, number))
    }

    fn say(&mut self, session: u64, event: OperationEvent) -> Vec<HomeOutput> {
        let agent = target(AGENT).agent;
        self.home
            .handle_operation(self.now, location(session), agent, event);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<HomeOutput> {
        outputs(&mut self.home)
    }
}

fn dispatch(grant: GrantId, epoch: u64, number: u8) -> Request {
    Request::Dispatch {
        target: target(AGENT),
        grant,
        epoch: Epoch(epoch),
        command: command(number, 1),
    }
}

fn granted(outputs: &[HomeOutput]) -> Option<(GrantId, u32)> {
    outputs.iter().find_map(|output| match output {
        HomeOutput::Event(Event::Granted { grant, permits, .. }) => Some((*grant, *permits)),
        _ => None,
    })
}

fn offered(outputs: &[HomeOutput]) -> Option<GrantId> {
    outputs.iter().find_map(|output| match output {
        HomeOutput::Event(Event::Offered { grant, .. }) => Some(*grant),
        _ => None,
    })
}

fn withdrawn(outputs: &[HomeOutput]) -> Option<GrantId> {
    outputs.iter().find_map(|output| match output {
        HomeOutput::Event(Event::Withdrawn { grant, .. }) => Some(*grant),
        _ => None,
    })
}

fn refused(outputs: &[HomeOutput]) -> Option<NotDelivered> {
    match outputs {
        [HomeOutput::Event(Event::NotDelivered { reason, .. }), ..] => Some(*reason),
        _ => None,
    }
}

fn closes(outputs: &[HomeOutput], session: u64, code: CloseCode) -> bool {
    let close = HomeOutput::ToSession(location(session), SessionCommand::Close(code));
    outputs.contains(&close)
}

fn finished(number: u8) -> OperationEvent {
    OperationEvent::Finished {
        operation: operation(number),
        fence: Fence(1),
        outcome: outcome(),
    }
}

fn uncertain(number: u8) -> HomeOutput {
    HomeOutput::Event(Event::Uncertain {
        target: target(AGENT),
        operation: operation(number),
        fence: Fence(1),
    })
}

fn is_finished(output: &HomeOutput) -> bool {
    matches!(output, HomeOutput::Event(Event::Finished { .. }))
}

fn is_finished_report(output: &HomeOutput) -> bool {
    let finished = |state: &OperationState| matches!(state, OperationState::Finished(_));
    matches!(output, HomeOutput::Event(Event::Report { state, .. }) if finished(state))
}

#[test]
fn a_demand_waits_for_a_permit_and_gets_it_when_one_is_free() {
    let mut scene = Scene::new();
    let (grant, permits) = scene.demand(3).unwrap();
    assert_eq!(permits, 2);
    for number in [1, 2] {
        let sent = scene.dispatch(grant, number);
        assert!(matches!(
            sent[..],
            [HomeOutput::ToSession(
                _,
                SessionCommand::Dispatch {
                    epoch: Epoch(5),
                    ..
                }
            )]
        ));
    }
    let told = scene.say(1, finished(1));
    assert!(is_finished(&told[0]));
    assert_eq!(granted(&told).unwrap().1, 1);
}

#[test]
fn a_late_dispatch_is_not_delivered() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(2).unwrap();
    scene.now = scene.home.poll_timeout().unwrap();
    scene.home.handle_timeout(scene.now);
    assert_eq!(scene.outputs(), [], "nobody asked again");
    let told = scene.dispatch(grant, 1);
    assert_eq!(refused(&told), Some(NotDelivered::NoGrant));
    assert_eq!(scene.home.poll_timeout(), None);
    let counts = scene.home.take_counts();
    let expected = PermitCounts {
        granted: 2,
        expired: 2,
        refused: 1,
        turned_away: 1,
        ..PermitCounts::default()
    };
    assert_eq!(counts, expected);
}

#[test]
fn an_agent_with_room_is_offered_before_anybody_asks() {
    let mut scene = Scene::with_offers();
    scene.up(1, 1, Vec::new());
    let offer = offered(&scene.outputs()).unwrap();
    let told = scene.dispatch(offer, 1);
    assert_eq!(refused(&told), None);
    let next = offered(&told).unwrap();
    assert_ne!(next, offer);
    let told = scene.dispatch(offer, 2);
    assert_eq!(refused(&told), Some(NotDelivered::NoGrant), "once only");
    let told = scene.dispatch(next, 2);
    assert_eq!((refused(&told), offered(&told)), (None, None), "it is full");
    assert_eq!(
        scene.home.poll_timeout(),
        None,
        "offers do not end by themselves"
    );
}

#[test]
fn an_offer_keeps_its_place_whatever_the_demand() {
    let mut scene = Scene::with_offers();
    scene.up(1, 1, Vec::new());
    let offer = offered(&scene.outputs()).unwrap();
    let told = scene.ask(demand(target(AGENT), 9));
    assert_eq!(granted(&told).unwrap().1, 1);
    assert_eq!(withdrawn(&told), None);
    let told = scene.dispatch(offer, 1);
    assert_eq!(refused(&told), None);
    assert_eq!((granted(&told), offered(&told)), (None, None), "it is full");
}

#[test]
fn an_offer_is_not_lost_with_a_dispatch_that_is_turned_away() {
    let mut scene = Scene::with_offers();
    scene.up(1, 1, Vec::new());
    let offer = offered(&scene.outputs()).unwrap();
    let told = scene.ask(dispatch(offer, 4, 1));
    assert_eq!(refused(&told), Some(NotDelivered::StaleEpoch));
    let next = offered(&told).expect("its place is free");
    // Where a lease ran out the dispatch does not even come here: its permit does.
    let told = scene.ask(Request::ReturnPermits {
        target: target(AGENT),
        grant: next,
        unused: 1,
    });
    assert!(offered(&told).is_some());
}

#[test]
fn who_is_sent_away_is_offered_nothing_more() {
    let mut scene = Scene::with_offers();
    scene.up(1, 1, Vec::new());
    let offer = offered(&scene.outputs()).unwrap();
    let agent = target(AGENT).agent;
    let told = scene.ask(Request::RevokeAgent { agent });
    assert_eq!(withdrawn(&told), Some(offer));
    let words = OperationEvent::Accepted {
        operation: operation(1),
        fence: Fence(1),
    };
    assert_eq!(offered(&scene.say(1, words)), None);
}

#[test]
fn an_offer_ends_with_the_capacity_for_it() {
    let mut scene = Scene::with_offers();
    scene.up(1, 1, Vec::new());
    let offer = offered(&scene.outputs()).unwrap();
    let told = scene.say(1, OperationEvent::Capacity(0));
    assert_eq!(withdrawn(&told), Some(offer));
    let told = scene.say(1, OperationEvent::Capacity(1));
    assert!(offered(&told).is_some());
}

#[test]
fn grants_that_were_used_up_do_not_wake_anybody() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(1).unwrap();
    assert!(scene.home.poll_timeout().is_some());
    scene.dispatch(grant, 1);
    assert_eq!(scene.home.poll_timeout(), None);
}

#[test]
fn every_reason_not_to_deliver_has_its_word() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(2).unwrap();
    let stale = scene.ask(dispatch(grant, 4, 1));
    assert_eq!(refused(&stale), Some(NotDelivered::StaleEpoch));
    let bogus = scene.dispatch(GrantId(99), 1);
    assert_eq!(refused(&bogus), Some(NotDelivered::NoGrant));
    scene.down(1);
    scene.outputs();
    let gone = scene.dispatch(grant, 1);
    assert_eq!(refused(&gone), Some(NotDelivered::NoSession));
    let drain = Request::Drain {
        addresses: Vec::new(),
        spread: Duration::ZERO,
        deadline: Duration::ZERO,
    };
    scene.ask(drain);
    let draining = scene.dispatch(grant, 1);
    assert_eq!(refused(&draining), Some(NotDelivered::Draining));
    let mut other = Home::new(clock::now(), SHARD, 2, HomeConfig::default());
    other.handle_request(scene.now, dispatch(grant, 5, 1));
    let foreign = outputs(&mut other);
    assert_eq!(refused(&foreign), Some(NotDelivered::NotOwner));
}

#[test]
fn the_newest_session_wins_and_the_loser_is_closed() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(1).unwrap();
    scene.dispatch(grant, 1);
    scene.up(2, 2, Vec::new());
    let told = scene.outputs();
    assert!(closes(&told, 1, CloseCode::Superseded));
    let turn: Vec<_> = told
        .iter()
        .filter(|output| matches!(output, HomeOutput::Event(_)))
        .collect();
    assert!(matches!(
        turn[0],
        HomeOutput::Event(Event::SessionDown {
            session: SessionId(1),
            ..
        })
    ));
    assert_eq!(*turn[1], uncertain(1));
    assert!(matches!(
        turn[2],
        HomeOutput::Event(Event::SessionUp(up)) if up.session == SessionId(2)
    ));
    scene.down(1);
    assert_eq!(scene.outputs(), [], "the loser's end was told already");
}

#[test]
fn an_older_session_that_arrives_late_loses_itself() {
    let mut scene = Scene::empty();
    scene.up(1, 9, Vec::new());
    scene.outputs();
    scene.up(2, 8, Vec::new());
    let told = scene.outputs();
    assert!(closes(&told, 2, CloseCode::Superseded) && told.len() == 1);
    scene.down(2);
    assert_eq!(scene.outputs(), []);
    scene.up(3, 9, Vec::new());
    assert!(closes(&scene.outputs(), 1, CloseCode::Superseded));
}

#[test]
fn late_words_of_a_replaced_session_come_as_reports() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(1).unwrap();
    scene.dispatch(grant, 1);
    let running = OpenOperation {
        operation: operation(1),
        fence: Fence(1),
        phase: Phase::Running,
    };
    scene.up(2, 2, vec![running]);
    scene.outputs();
    let told = scene.say(1, finished(1));
    assert!(is_finished_report(&told[0]) && told.len() == 1);
    assert_eq!(scene.demand(9).unwrap().1, 2, "its permit is free again");
    let lost = OperationEvent::NotDelivered {
        operation: operation(1),
        fence: Fence(1),
        reason: NotDelivered::Busy,
    };
    assert_eq!(scene.say(1, lost), []);
}

#[test]
fn the_inventory_is_charged_and_settled_by_reports() {
    let mut scene = Scene::empty();
    let open = |number, phase| OpenOperation {
        operation: operation(number),
        fence: Fence(1),
        phase,
    };
    let journal = vec![
        open(1, Phase::Running),
        open(2, Phase::Accepted),
        open(3, Phase::Finished),
    ];
    scene.up(1, 1, journal);
    scene.outputs();
    assert_eq!(scene.demand(1), None);
    let report = |number, state| OperationEvent::Report {
        operation: operation(number),
        fence: Fence(1),
        state,
    };
    let told = scene.say(1, report(3, OperationState::Finished(outcome())));
    assert_eq!(granted(&told), None, "a finished operation held no permit");
    let told = scene.say(1, report(1, OperationState::Running));
    assert_eq!(granted(&told), None);
    let told = scene.say(1, report(1, OperationState::Finished(outcome())));
    assert!(is_finished_report(&told[0]));
    assert_eq!(granted(&told).unwrap().1, 1);
}

#[test]
fn an_uncertain_operation_stays_charged_until_the_agent_answers() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(2).unwrap();
    scene.dispatch(grant, 1);
    scene.dispatch(grant, 2);
    let broken = OperationEvent::Uncertain {
        operation: operation(1),
        fence: Fence(1),
    };
    assert_eq!(scene.say(1, broken.clone()), [uncertain(1)]);
    assert_eq!(scene.say(1, broken), [], "it was told");
    assert_eq!(scene.demand(1), None);
    let report = OperationEvent::Report {
        operation: operation(1),
        fence: Fence(1),
        state: OperationState::NeverSeen,
    };
    assert_eq!(granted(&scene.say(1, report)).unwrap().1, 1);
    scene.down(1);
    let told = scene.outputs();
    let ends = told.iter().filter(|told| **told == uncertain(2)).count();
    assert_eq!((told.len(), ends), (2, 1));
}

#[test]
fn a_refusal_frees_its_permit_once() {
    let mut scene = Scene::new();
    let (grant, _) = scene.demand(2).unwrap();
    scene.dispatch(grant, 1);
    scene.dispatch(grant, 2);
    let refusal = OperationEvent::Refused {
        operation: operation(1),
        fence: Fence(1),
        refusal: Refusal::Stopping,
    };
    assert_eq!(scene.say(1, refusal.clone()).len(), 1);
    assert_eq!(scene.say(1, refusal), []);
    assert_eq!(scene.demand(9).unwrap().1, 1);
}

#[test]
fn a_new_epoch_is_told_and_its_grants_replace_the_old() {
    let mut scene = Scene::new();
    let (old, _) = scene.demand(2).unwrap();
    assert_eq!(scene.ask(assign(5)), [], "the same epoch changes nothing");
    let told = scene.ask(assign(6));
    let new_epoch = SessionCommand::NewEpoch(Epoch(6));
    assert_eq!(told[0], HomeOutput::ToSession(location(1), new_epoch));
    let (new, permits) = granted(&told).unwrap();
    assert_eq!(permits, 2);
    let stale = scene.ask(dispatch(old, 6, 1));
    assert_eq!(refused(&stale), Some(NotDelivered::NoGrant));
    assert_eq!(refused(&scene.ask(dispatch(new, 6, 1))), None);
}

#[test]
fn members_of_a_released_group_leave_spread_out_and_the_group_is_forgotten() {
    let mut scene = Scene::new();
    let other = up(8, 2, 2, Vec::new());
    scene
        .home
        .handle_session_up(scene.now, location(2), other, 1);
    scene.outputs();
    scene.demand(1);
    let release = |epoch| Request::ReleaseGroup {
        group: target(0).group,
        epoch: Epoch(epoch),
        addresses: vec!["b.example:4433".to_owned()],
    };
    assert_eq!(scene.ask(release(4)), [], "a lower epoch releases nothing");
    let told = scene.ask(release(5));
    let delays: Vec<_> = told
        .iter()
        .filter_map(|told| match told {
            HomeOutput::ToSession(_, SessionCommand::GoAway { delay, .. }) => Some(*delay),
            _ => None,
        })
        .collect();
    assert_eq!(delays, [Duration::ZERO, Duration::from_millis(4)]);
    assert_eq!(scene.demand(2), None);
    scene.up(3, 9, Vec::new());
    assert!(closes(&scene.outputs(), 3, CloseCode::Redirected));
    scene.down(1);
    let agent = target(8).agent;
    scene
        .home
        .handle_session_down(scene.now, location(2), agent, DownReason::TimedOut);
    assert!(scene.home.groups.is_empty() && scene.home.group_names.is_empty());
}

#[test]
fn revoked_and_moved_agents_are_sent_away() {
    let mut scene = Scene::new();
    let elsewhere = Target {
        group: GroupId::from_bytes([2; 16]),
        ..target(AGENT)
    };
    let admit = |target| Request::AdmitAgent {
        target,
        keys: Vec::new(),
    };
    assert_eq!(scene.ask(admit(target(AGENT))), []);
    let told = scene.ask(admit(elsewhere));
    assert!(matches!(
        told[..],
        [HomeOutput::ToSession(_, SessionCommand::GoAway { .. })]
    ));
    assert_eq!(scene.demand(1), None, "who leaves is given nothing");
    let agent = target(AGENT).agent;
    let told = scene.ask(Request::RevokeAgent { agent });
    assert!(closes(&told, 1, CloseCode::Revoked));
}

#[test]
fn what_must_reach_the_session_does() {
    let mut scene = Scene::new();
    let cancel = scene.ask(Request::Cancel {
        target: target(AGENT),
        operation: operation(1),
        fence: Fence(1),
    });
    assert!(matches!(
        cancel[..],
        [HomeOutput::ToSession(
            _,
            SessionCommand::Cancel {
                epoch: Epoch(5),
                ..
            }
        )]
    ));
    let forget = scene.ask(Request::Forget {
        target: target(AGENT),
        operations: vec![operation(1); 1025],
    });
    let pieces: Vec<_> = forget
        .iter()
        .filter_map(|told| match told {
            HomeOutput::ToSession(_, SessionCommand::Forget(list)) => Some(list.len()),
            _ => None,
        })
        .collect();
    assert_eq!(pieces, [1024, 1]);
}

#[test]
fn a_home_at_its_limit_turns_newcomers_away_and_keeps_its_members() {
    let mut scene = Scene::empty();
    scene.home.config.members_max = 1;
    scene.up(1, 1, Vec::new());
    scene.outputs();
    let newcomer = up(8, 2, 2, Vec::new());
    scene
        .home
        .handle_session_up(scene.now, location(2), newcomer, 1);
    assert!(closes(&scene.outputs(), 2, CloseCode::Overloaded));
    scene.up(3, 2, Vec::new());
    assert!(closes(&scene.outputs(), 1, CloseCode::Superseded));
    assert_eq!(scene.demand(1).unwrap().1, 1);
}
