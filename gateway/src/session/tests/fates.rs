//! Whatever happens, every command that a session was given has exactly one end.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Dispatch(u128, usize),
    Cancel(u128),
    /// The agent answers on one of its streams, rightly or wrongly.
    Answer(u64, Answer),
    End(u64, bool),
    Stopped(u64),
    Room(usize),
    Credit(u64),
    Garbage(u64, Vec<u8>),
    /// The agent has acknowledged all of a command.
    Arrived(u64),
    /// Packets are about to be made, under a lease that holds, or not.
    Fence(bool),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Accepted,
    Refused,
    Finished,
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        4 => Just(Answer::Accepted),
        1 => Just(Answer::Refused),
        3 => Just(Answer::Finished),
    ];
    prop_oneof![
        6 => (0..40u128, 0..2000usize).prop_map(|(n, size)| Step::Dispatch(n, size)),
        2 => (0..40u128).prop_map(Step::Cancel),
        12 => (0..40u64, answer).prop_map(|(stream, answer)| Step::Answer(stream, answer)),
        1 => (0..40u64, any::<bool>()).prop_map(|(stream, reset)| Step::End(stream, reset)),
        1 => (0..40u64).prop_map(Step::Stopped),
        3 => (0..20_000usize).prop_map(Step::Room),
        3 => (0..8u64).prop_map(Step::Credit),
        1 => (0..40u64, prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(stream, bytes)| Step::Garbage(stream, bytes)),
        2 => (0..40u64).prop_map(Step::Arrived),
        4 => prop::bool::weighted(0.8).prop_map(Step::Fence),
    ]
}

/// The operation that a stream's command was about, by what the session wrote.
fn operation_of(harness: &Harness, id: StreamId) -> Option<OperationId> {
    let mut input = FrameBuffer::default();
    input.push(&harness.streams.streams.get(&id)?.sent);
    match decode_gateway_message(&input.next_frame(FRAME_BYTES_MAX).unwrap()?).unwrap() {
        GatewayMessage::Command { command, .. } => Some(command.operation),
        _ => None,
    }
}

fn answer(harness: &mut Harness, stream: u64, answer: Answer) {
    let id = FakeStreams::opened(stream);
    let Some(operation) = operation_of(harness, id) else {
        return;
    };
    let fence = FENCE;
    let message = match answer {
        Answer::Accepted => AgentMessage::Accepted { operation, fence },
        Answer::Refused => AgentMessage::Refused {
            operation,
            fence,
            refusal: Refusal::JournalFull,
        },
        Answer::Finished => match finished(0) {
            AgentMessage::Finished { outcome, .. } => AgentMessage::Finished {
                operation,
                fence,
                outcome,
            },
            other => other,
        },
    };
    harness.hear(id, &message);
}

fn take_step(harness: &mut Harness, step: Step, given: &mut Vec<u128>) {
    match step {
        Step::Dispatch(n, size) if !given.contains(&n) => {
            given.push(n);
            harness.command(dispatch(n, size));
        }
        Step::Dispatch(..) => {}
        Step::Cancel(n) => {
            let (operation, epoch) = (operation(n), Epoch(7));
            harness.command(SessionCommand::Cancel {
                operation,
                fence: FENCE,
                epoch,
            });
        }
        Step::Answer(stream, kind) => answer(harness, stream, kind),
        Step::End(stream, reset) => {
            let id = FakeStreams::opened(stream);
            if harness.streams.streams.contains_key(&id) {
                harness.hear_end(id, if reset { Read::Reset } else { Read::Finished });
            }
        }
        Step::Stopped(stream) => {
            let id = FakeStreams::opened(stream);
            if let Some(stream) = harness.streams.streams.get_mut(&id) {
                stream.refused = true;
                harness.stream_event(StreamEvent::Stopped {
                    id,
                    error_code: 0u32.into(),
                });
            }
        }
        Step::Room(room) => {
            harness.streams.room = room;
            let id = harness.control;
            harness.stream_event(StreamEvent::Writable { id });
        }
        Step::Credit(credit) => {
            harness.streams.credit = credit;
            harness.stream_event(StreamEvent::Available { dir: Dir::Bi });
        }
        Step::Arrived(stream) => {
            let id = FakeStreams::opened(stream);
            harness.stream_event(StreamEvent::Finished { id });
        }
        Step::Fence(holds) => {
            harness.fence(holds);
        }
        Step::Garbage(stream, bytes) => {
            let id = FakeStreams::opened(stream);
            if harness.streams.streams.contains_key(&id) {
                harness.hear_bytes(id, &bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn every_command_has_exactly_one_end(steps in prop::collection::vec(step(), 1..120)) {
        let mut harness = Harness::up();
        let mut given = Vec::new();
        for step in steps {
            take_step(&mut harness, step, &mut given);
        }
        harness.session.handle_lost(&mut harness.out);
        let mut ends = BTreeMap::<OperationId, u32>::new();
        let mut closes = 0;
        for output in harness.take() {
            match output {
                Output::Operation(OperationEvent::Accepted { operation, .. }) => {
                    prop_assert!(!ends.contains_key(&operation), "accepted after its end");
                }
                Output::Operation(
                    OperationEvent::Finished { operation, .. }
                    | OperationEvent::Refused { operation, .. }
                    | OperationEvent::NotDelivered { operation, .. }
                    | OperationEvent::Uncertain { operation, .. },
                ) => *ends.entry(operation).or_default() += 1,
                Output::Close(..) => closes += 1,
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(closes <= 1);
        let expected: BTreeMap<_, _> = given.iter().map(|n| (operation(*n), 1)).collect();
        prop_assert_eq!(ends, expected);
    }

    /// The agent has the whole command whenever the session does not say that it has not.
    #[test]
    fn not_delivered_is_never_said_of_a_whole_command(steps in prop::collection::vec(step(), 1..80)) {
        let mut harness = Harness::up();
        let mut given = Vec::new();
        for step in steps {
            take_step(&mut harness, step, &mut given);
        }
        harness.session.handle_lost(&mut harness.out);
        let whole: Vec<_> = harness
            .streams
            .streams
            .keys()
            .filter(|id| **id != harness.control)
            // Those that were taken back before they left.
            .filter(|id| harness.streams.streams[id].reset != Some(CANCEL_STREAM))
            .filter_map(|id| operation_of(&harness, *id))
            .collect();
        for output in harness.take() {
            if let Output::Operation(OperationEvent::NotDelivered { operation, .. }) = output {
                prop_assert!(!whole.contains(&operation));
            }
        }
    }
}
