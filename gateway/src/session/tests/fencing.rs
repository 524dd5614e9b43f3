//! Commands of a gateway whose lease runs out.

use super::*;

/// How our side of the n-th command stream was reset.
fn reset(harness: &mut Harness, n: u64) -> Option<u64> {
    harness.streams.get(FakeStreams::opened(n)).reset
}

#[test]
fn under_a_lease_that_holds_nothing_is_kept_back() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    assert_eq!(harness.fence(true), 0);
    assert_eq!(
        (harness.operations(), reset(&mut harness, 0)),
        (vec![], None)
    );
}

#[test]
fn what_is_written_and_has_not_left_is_certainly_not_delivered() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    assert_eq!(harness.fence(false), 1);
    assert_eq!(
        harness.operations(),
        [not_delivered(1, NotDelivered::NotOwner)]
    );
    assert_eq!(reset(&mut harness, 0), Some(CANCEL_STREAM));
    assert_eq!(harness.fence(false), 0, "once");
}

#[test]
fn what_waits_for_the_agents_credit_or_for_room_is_not_written_later() {
    let mut harness = Harness::up();
    harness.streams.room = 20;
    harness.command(dispatch(1, 100));
    harness.streams.credit = 0;
    harness.command(dispatch(2, 10));
    assert_eq!(harness.fence(true), 0);
    assert_eq!(harness.fence(false), 2);
    let back = [1, 2].map(|n| not_delivered(n, NotDelivered::NotOwner));
    assert_eq!(harness.operations(), back);
    harness.streams.room = usize::MAX;
    harness.streams.credit = 9;
    harness.stream_event(StreamEvent::Available { dir: Dir::Bi });
    assert_eq!(harness.streams.streams.len(), 2, "no third stream");
    assert_eq!(reset(&mut harness, 0), Some(CANCEL_STREAM));
}

#[test]
fn what_has_left_and_may_have_to_be_sent_again_is_uncertain_and_is_not() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    assert_eq!(harness.fence(true), 0);
    assert_eq!(harness.fence(false), 0, "it was sent");
    assert_eq!(harness.operations(), [uncertain(1)]);
    // An agent that has it goes on with it.
    assert_eq!(reset(&mut harness, 0), Some(DONE_STREAM));
}

#[test]
fn what_has_arrived_or_is_accepted_goes_on() {
    let mut harness = Harness::up();
    harness.command(dispatch(1, 10));
    harness.command(dispatch(2, 10));
    assert_eq!(harness.fence(true), 0);
    let [first, second] = [0, 1].map(FakeStreams::opened);
    harness.stream_event(StreamEvent::Finished { id: first });
    harness.hear(second, &accepted(2));
    harness.take();
    assert!(!harness.session.has_commands_under_way());
    assert_eq!(harness.fence(false), 0);
    harness.hear(first, &accepted(1));
    harness.hear(first, &finished(1));
    harness.hear(second, &finished(2));
    let ended = harness.operations();
    assert!(
        matches!(
            ended[..],
            [
                OperationEvent::Accepted { .. },
                OperationEvent::Finished { .. },
                OperationEvent::Finished { .. }
            ]
        ),
        "{ended:?}"
    );
}
