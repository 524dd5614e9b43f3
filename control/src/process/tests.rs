//! The rules against what must hold whatever happens, and the table of what each word does.

mod steps;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use protocol::ids::{AgentId, Epoch, Fence, ProcessId};
use protocol::link::NotDelivered;
use protocol::operation::{OperationState, Outcome, OutcomeStatus, Refusal};
use uuid::Uuid;

use super::*;

const NOW: UnixMs = UnixMs(1_000_000);

fn process(state: State, fence: u64) -> Process {
    let mut process = Process {
        id: ProcessId(Uuid::from_u128(1)),
        kind: "exec".into(),
        tenant: "default".into(),
        target: AgentId(Uuid::from_u128(2)),
        class: Class::Normal,
        resource: None,
        state,
        due_at: None,
        ready_at: None,
        deadline_at: NOW.plus(Duration::from_secs(60)),
        life: Duration::from_secs(60),
        attempt: 0,
        counted_fence: Fence(0),
        max_attempts: 3,
        busy_count: 0,
        fence: Fence(fence),
        progress: ProgressCount::default(),
        created_at: UnixMs(500_000),
        started_at: None,
        finished_at: None,
        shape: Shape::ONE,
        step: StepId::default(),
        fate: None,
        hold: None,
        needs_attention: false,
        unsettled: false,
    };
    if state == State::Backoff {
        process.hold = Some(Hold::Retry);
    }
    if state.is_waiting() {
        process.due_at = Some(process.deadline_at);
    }
    if state == State::Ready {
        process.ready_at = Some(process.created_at);
    }
    process
}

fn outcome(status: OutcomeStatus) -> Outcome {
    Outcome {
        status,
        exit_code: None,
        message: "said the agent".to_owned(),
        output: Bytes::new(),
        service_time: Duration::from_millis(5),
    }
}

fn finished(fence: u64, status: OutcomeStatus) -> Input {
    Input::Finished(Fence(fence), outcome(status))
}

fn report(fence: u64, state: OperationState) -> Input {
    Input::Report(Fence(fence), state)
}

fn apply(process: &mut Process, inputs: impl IntoIterator<Item = Input>) -> Vec<Step> {
    inputs
        .into_iter()
        .map(|input| process.handle(NOW, input, 0.5))
        .collect()
}

#[test]
fn the_straight_way_is_ready_leased_running_succeeded() {
    let mut p = process(State::Ready, 0);
    let steps = apply(
        &mut p,
        [
            Input::Claim,
            Input::Accepted(Fence(1)),
            finished(1, OutcomeStatus::Succeeded),
        ],
    );
    assert_eq!(p.state, State::Succeeded);
    assert_eq!((p.attempt, p.fence), (1, Fence(1)));
    assert_eq!(steps[2].tell, Some(Tell::Forget));
    assert_eq!(p.finished_at, Some(NOW));
}

#[test]
fn a_failure_that_may_pass_is_tried_again_and_the_last_one_stands() {
    let mut p = process(State::Ready, 0);
    for attempt in 1..=3 {
        assert!(!p.handle(NOW, Input::Claim, 0.5).stale);
        let step = p.handle(NOW, finished(attempt, OutcomeStatus::FailedTransient), 0.5);
        assert_eq!(p.attempt, u32::try_from(attempt).unwrap());
        if attempt < 3 {
            assert_eq!(p.state, State::Backoff);
            // The agent keeps its entry: it tells the next attempt from a repetition by it.
            assert_eq!(step.tell, None);
            p.due_at = Some(NOW);
            apply(&mut p, [Input::Due]);
        }
    }
    assert_eq!(p.state, State::Failed);
}

#[test]
fn what_was_not_started_is_no_attempt() {
    let returns = [
        Input::Refused(
            Fence(1),
            Refusal::Busy {
                retry_after: Duration::ZERO,
            },
        ),
        Input::Refused(Fence(1), Refusal::JournalFull),
        Input::Refused(Fence(1), Refusal::Stopping),
        Input::Refused(Fence(1), Refusal::StaleEpoch { seen: Epoch(9) }),
        Input::Refused(Fence(1), Refusal::StaleFence { seen: Fence(7) }),
        Input::NotDelivered(Fence(1), NotDelivered::NoSession),
        Input::NotDelivered(Fence(1), NotDelivered::NoGrant),
        Input::NotDelivered(Fence(1), NotDelivered::Busy),
        report(1, OperationState::NeverSeen),
    ];
    for input in returns {
        let mut p = process(State::Leased, 1);
        let step = p.handle(NOW, input.clone(), 0.5);
        assert!(p.state.is_waiting(), "{input:?} led to {}", p.state);
        assert_eq!((p.attempt, p.busy_count), (0, 1), "{input:?}");
        assert!(step.note.is_some(), "{input:?}");
    }
}

#[test]
fn what_cannot_succeed_fails_at_once() {
    for (input, status) in [
        (
            Input::Refused(
                Fence(1),
                Refusal::UnknownKind {
                    kind: "x".to_owned(),
                },
            ),
            OutcomeStatus::FailedPermanent,
        ),
        (
            Input::Refused(
                Fence(1),
                Refusal::InvalidInput {
                    message: "x".to_owned(),
                },
            ),
            OutcomeStatus::FailedPermanent,
        ),
        (
            Input::Refused(Fence(1), Refusal::DeadlinePassed),
            OutcomeStatus::DeadlineExceeded,
        ),
        (
            Input::NotDelivered(Fence(1), NotDelivered::TooLarge),
            OutcomeStatus::FailedPermanent,
        ),
    ] {
        let mut p = process(State::Leased, 1);
        let step = p.handle(NOW, input, 0.5);
        assert_eq!(p.state, State::Failed);
        assert_eq!(step.outcome.unwrap().status, status);
    }
}

#[test]
fn a_fence_that_the_agent_has_seen_is_overtaken_by_the_next_claim() {
    let mut p = process(State::Leased, 1);
    apply(
        &mut p,
        [Input::Refused(
            Fence(1),
            Refusal::StaleFence { seen: Fence(7) },
        )],
    );
    p.due_at = Some(NOW);
    apply(&mut p, [Input::Due, Input::Claim]);
    assert_eq!(p.fence, Fence(8));
}

#[test]
fn a_peer_cannot_push_the_fence_over_the_edge() {
    let mut p = process(State::Unknown, 1);
    apply(&mut p, [report(u64::MAX, OperationState::NeverSeen)]);
    assert!(p.fence <= Fence(FENCE_MAX));
    assert!(p.handle(NOW, Input::Claim, 0.5).stale);
}

#[test]
fn a_lost_reply_is_asked_for_and_never_guessed() {
    let mut p = process(State::Ready, 0);
    let steps = apply(
        &mut p,
        [
            Input::Claim,
            Input::Accepted(Fence(1)),
            Input::Uncertain(Fence(1)),
        ],
    );
    assert_eq!(p.state, State::Unknown);
    assert_eq!(steps[2].tell, Some(Tell::Query(Fence(1))));
    // Not even the deadline decides it.
    p.deadline_at = UnixMs(0);
    assert!(p.handle(NOW, Input::Due, 0.5).stale);
    assert_eq!(p.state, State::Unknown);
    for (answer, state) in [
        (OperationState::Running, State::Running),
        (
            OperationState::Finished(outcome(OutcomeStatus::Succeeded)),
            State::Succeeded,
        ),
    ] {
        let mut p = p.clone();
        apply(&mut p, [report(1, answer)]);
        assert_eq!(p.state, state);
    }
}

#[test]
fn an_agent_that_lost_its_journal_is_for_people_to_look_at() {
    let mut p = process(State::Ready, 0);
    let steps = apply(
        &mut p,
        [
            Input::Claim,
            Input::Accepted(Fence(1)),
            Input::Uncertain(Fence(1)),
            report(1, OperationState::NeverSeen),
        ],
    );
    assert_eq!(p.state, State::Failed);
    assert_eq!(
        steps[3].outcome.as_ref().unwrap().status,
        OutcomeStatus::Interrupted
    );
}

#[test]
fn the_end_of_an_earlier_attempt_does_not_end_a_claim_that_never_arrived() {
    let mut p = process(State::Leased, 2);
    p.attempt = 1;
    p.counted_fence = Fence(1);
    apply(&mut p, [Input::Uncertain(Fence(2))]);
    let earlier = OperationState::Finished(outcome(OutcomeStatus::FailedTransient));
    apply(&mut p, [report(1, earlier)]);
    assert_eq!((p.state, p.attempt), (State::Ready, 1));
}

#[test]
fn a_cancel_ends_what_waits_and_asks_the_agent_about_the_rest() {
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 1);
        let step = p.handle(NOW, Input::Cancel, 0.5);
        if state.is_waiting() {
            assert_eq!(p.state, State::Cancelled);
        } else if state.is_active() {
            assert_eq!(p.state, State::Cancelling);
            assert_eq!(step.tell, Some(Tell::Cancel(Fence(1))));
        } else {
            assert_eq!(p.state, state);
            assert!(step.outcome.is_none());
        }
    }
}

#[test]
fn a_cancelled_process_with_an_effect_has_succeeded() {
    let cases = [
        (finished(1, OutcomeStatus::Succeeded), State::Succeeded),
        (finished(1, OutcomeStatus::Cancelled), State::Cancelled),
        (
            finished(1, OutcomeStatus::FailedTransient),
            State::Cancelled,
        ),
        (finished(1, OutcomeStatus::FailedPermanent), State::Failed),
        (report(1, OperationState::NeverSeen), State::Cancelled),
        (report(1, OperationState::Running), State::Cancelling),
        (Input::Accepted(Fence(1)), State::Cancelling),
        (Input::Uncertain(Fence(1)), State::Cancelling),
        (
            Input::Refused(Fence(1), Refusal::Cancelled),
            State::Cancelled,
        ),
        (
            Input::NotDelivered(Fence(1), NotDelivered::NoSession),
            State::Cancelled,
        ),
    ];
    for (input, state) in cases {
        let mut p = process(State::Cancelling, 1);
        apply(&mut p, [input.clone()]);
        assert_eq!(p.state, state, "{input:?}");
    }
}

#[test]
fn revoking_an_agent_ends_what_it_had_and_says_what_is_not_known() {
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 1);
        let step = p.handle(NOW, Input::Abandoned, 0.5);
        let status = step.outcome.map(|outcome| outcome.status);
        let expected = if state.is_terminal() {
            None
        } else if state.is_active() {
            Some(OutcomeStatus::Interrupted)
        } else {
            Some(OutcomeStatus::FailedPermanent)
        };
        assert_eq!(status, expected, "{state}");
        assert!(p.state.is_terminal());
    }
}

#[test]
fn a_deadline_ends_what_has_not_started() {
    for state in State::ALL
        .iter()
        .copied()
        .filter(|state| state.is_waiting())
    {
        let mut p = process(state, 0);
        p.deadline_at = NOW;
        p.due_at = Some(NOW);
        let step = p.handle(NOW, Input::Due, 0.5);
        assert_eq!(p.state, State::Failed);
        assert_eq!(
            step.outcome.unwrap().status,
            OutcomeStatus::DeadlineExceeded
        );
    }
    let mut late = process(State::Ready, 0);
    late.deadline_at = NOW;
    apply(&mut late, [Input::Claim]);
    assert_eq!((late.state, late.fence), (State::Failed, Fence(0)));
}

#[test]
fn progress_is_bounded_and_repeats_are_dropped() {
    let mut p = process(State::Leased, 1);
    let say = |sequence, bytes| Input::Progress {
        fence: Fence(1),
        sequence,
        bytes,
    };
    let steps = apply(
        &mut p,
        [
            say(0, 10),
            say(0, 10),
            say(1, PROGRESS_BYTES_MAX),
            say(2, 5),
        ],
    );
    let kept: Vec<bool> = steps.iter().map(|step| step.keep_progress).collect();
    assert_eq!(kept, [true, false, false, true]);
    assert_eq!(
        (p.progress.rows, p.progress.bytes, p.progress.dropped),
        (2, 15, 1)
    );
    assert_eq!(p.state, State::Running);
    p.progress.rows = PROGRESS_ROWS_MAX;
    assert!(!p.handle(NOW, say(3, 0), 0.5).keep_progress);
}

#[test]
fn a_word_about_what_is_over_makes_the_agent_forget_it() {
    let mut p = process(State::Succeeded, 1);
    let before = p.clone();
    let step = p.handle(NOW, finished(1, OutcomeStatus::FailedPermanent), 0.5);
    assert_eq!((step.stale, step.tell), (true, Some(Tell::Forget)));
    assert_eq!(p, before);
}

#[test]
fn retries_are_spread_over_the_whole_interval_and_bounded() {
    assert_eq!(retry_delay(1, 0.0), Duration::ZERO);
    assert_eq!(retry_delay(1, 1.0), Duration::from_secs(2));
    assert_eq!(retry_delay(40, 1.0), RETRY_MAX);
    assert!(return_delay(0, 0.0) >= RETURN_BASE / 2);
    assert!(return_delay(40, 1.0) <= RETURN_MAX);
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(OutcomeStatus::Succeeded),
        Just(OutcomeStatus::FailedPermanent),
        Just(OutcomeStatus::FailedTransient),
        Just(OutcomeStatus::Cancelled),
        Just(OutcomeStatus::DeadlineExceeded),
        Just(OutcomeStatus::Interrupted),
    ]
    .prop_map(outcome)
}

fn any_state() -> impl Strategy<Value = OperationState> {
    prop_oneof![
        Just(OperationState::NeverSeen),
        Just(OperationState::Accepted),
        Just(OperationState::Running),
        any_outcome().prop_map(OperationState::Finished),
    ]
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        (0_u64..10_000).prop_map(|ms| Refusal::Busy {
            retry_after: Duration::from_millis(ms)
        }),
        (0_u64..9).prop_map(|seen| Refusal::StaleFence { seen: Fence(seen) }),
        Just(Refusal::StaleEpoch { seen: Epoch(3) }),
        Just(Refusal::UnknownKind {
            kind: "k".to_owned()
        }),
        Just(Refusal::JournalFull),
        Just(Refusal::DeadlinePassed),
        Just(Refusal::Cancelled),
        Just(Refusal::Stopping),
    ]
}

fn any_input() -> impl Strategy<Value = Input> {
    let fence = (0_u64..6).prop_map(Fence);
    prop_oneof![
        2 => Just(Input::Due),
        4 => Just(Input::Claim),
        1 => Just(Input::Unblocked),
        1 => Just(Input::Orphaned),
        1 => Just(Input::Cancel),
        1 => Just(Input::Abandoned),
        1 => Just(Input::Force),
        2 => Just(Input::Retry),
        1 => (0_u16..4).prop_map(Input::Replay),
        1 => Just(Input::Supersede(ProcessId(Uuid::from_u128(9)))),
        1 => (0_u64..60_000).prop_map(|ms| Input::Defer(NOW.plus(Duration::from_millis(ms)))),
        3 => fence.clone().prop_map(Input::Accepted),
        2 => (fence.clone(), 0_u32..5, 0_u64..2_000_000)
            .prop_map(|(fence, sequence, bytes)| Input::Progress { fence, sequence, bytes }),
        2 => (fence.clone(), any_outcome()).prop_map(|(fence, end)| Input::Finished(fence, end)),
        2 => (fence.clone(), any_refusal()).prop_map(|(fence, why)| Input::Refused(fence, why)),
        1 => fence.clone().prop_map(|fence| Input::NotDelivered(fence, NotDelivered::Busy)),
        2 => fence.clone().prop_map(Input::Uncertain),
        2 => (fence, any_state()).prop_map(|(fence, state)| Input::Report(fence, state)),
    ]
}

/// What must hold of every process at every moment.
fn check(p: &Process) {
    assert_eq!(p.state.is_waiting(), p.due_at.is_some(), "{p:?}");
    assert_eq!(p.state == State::Ready, p.ready_at.is_some(), "{p:?}");
    assert_eq!(p.state.is_terminal(), p.finished_at.is_some(), "{p:?}");
    assert!(p.due_at.is_none_or(|due| due <= p.deadline_at), "{p:?}");
    assert!(p.progress.bytes <= PROGRESS_BYTES_MAX && p.progress.rows <= PROGRESS_ROWS_MAX);
    assert!(u64::from(p.attempt) <= p.fence.0, "{p:?}");
    assert_eq!(p.state == State::Backoff, p.hold.is_some(), "{p:?}");
    assert!(p.step.index() < p.shape.steps(), "{p:?}");
    // It undoes something exactly while it knows what it ends as; and that can be undone.
    assert_eq!(p.step.undoes(), p.fate.is_some(), "{p:?}");
    if p.step.undoes() {
        assert!(p.shape.undo_bits() & (1 << p.step.index()) != 0, "{p:?}");
        assert!(
            p.state != State::Succeeded && p.state != State::Cancelling,
            "{p:?}"
        );
    }
    assert!(!p.unsettled || p.state.is_terminal(), "{p:?}");
    if p.state.is_active() {
        assert!(p.fence > Fence(0), "{p:?}");
    }
}

/// Which steps are done, as their agent would see it.
#[derive(Default)]
struct Done {
    steps: BTreeSet<u16>,
}

impl Done {
    fn note(&mut self, before: &Process, step: &Step, after: &Process) {
        let succeeded = step
            .step_ended
            .as_ref()
            .is_some_and(|end| end.status == OutcomeStatus::Succeeded);
        if succeeded && before.state.is_active() {
            match before.step.undoes() {
                true => self.steps.remove(&before.step.index()),
                false => self.steps.insert(before.step.index()),
            };
        }
        if let Some(from) = step.renewed_from {
            self.steps.retain(|at| *at < from);
        }
        if after.state == State::Leased && !after.step.undoes() {
            let before: BTreeSet<u16> = (0..after.step.index()).collect();
            assert!(
                self.steps.is_superset(&before),
                "it goes on from where not all steps before are done: {after:?}"
            );
        }
        if !after.state.is_terminal() {
            return;
        }
        if after.state == State::Succeeded {
            let all: BTreeSet<u16> = (0..after.shape.steps()).collect();
            assert_eq!(self.steps, all, "{after:?}");
        } else if !after.needs_attention {
            let left = self
                .steps
                .iter()
                .find(|at| after.shape.undo_bits() & (1 << **at) != 0);
            assert_eq!(
                left, None,
                "it ended and left a step that can be undone: {after:?}"
            );
        }
    }
}

/// The parts of the proptest that speak of one input.
fn check_step(before: &Process, input: &Input, step: &Step, p: &Process) {
    let restarts = matches!(input, Input::Retry | Input::Replay(_)) && step.refused.is_none();
    // Fences only rise, and only a claim, a new start or the agent's own word raises them.
    assert!(p.fence >= before.fence);
    if restarts {
        assert!(!before.state.is_active(), "{before:?} was started over");
        assert!(p.fence > before.fence && p.attempt == 0);
    }
    if step.refused.is_some() {
        assert_eq!(p, before, "refused, and changed by {input:?}");
    }
    // The late word about what was ended by force may settle it; else the end is the end.
    let settled = Process {
        unsettled: p.unsettled,
        ..before.clone()
    };
    if before.state.is_terminal() && !restarts {
        assert_eq!(*p, settled, "changed after its end by {input:?}");
        assert!(step.outcome.is_none());
    } else if p.state.is_terminal() {
        assert!(step.outcome.is_some());
    }
    // Words about another claim than the present one change nothing.
    let about = match input {
        Input::Accepted(fence)
        | Input::Progress { fence, .. }
        | Input::Finished(fence, _)
        | Input::Refused(fence, _)
        | Input::NotDelivered(fence, _)
        | Input::Uncertain(fence) => Some(*fence),
        _ => None,
    };
    if about.is_some_and(|fence| fence != before.fence) {
        assert!(step.stale);
        assert_eq!(*p, settled, "changed by {input:?}");
    }
    // Attempts are bounded, and success is only ever the agent's word.
    if p.state == State::Leased {
        assert!(p.attempt < p.max_attempts);
    }
    if p.state == State::Succeeded && before.state != State::Succeeded {
        let said = matches!(
            input,
            Input::Finished(_, o) | Input::Report(_, OperationState::Finished(o))
                if o.status == OutcomeStatus::Succeeded
        );
        assert!(said);
    }
    // Lost replies leave `unknown` only by the agent's word, or an order.
    if before.state == State::Unknown && p.state != State::Unknown {
        let word = matches!(
            input,
            Input::Report(..)
                | Input::Accepted(_)
                | Input::Progress { .. }
                | Input::Finished(..)
                | Input::Refused(..)
                | Input::NotDelivered(..)
                | Input::Cancel
                | Input::Force
                | Input::Abandoned
        );
        assert!(word, "{input:?} decided an unknown process");
    }
}

proptest! {
    #[test]
    fn whatever_is_said_in_whatever_order_the_rules_hold(
        first in prop::sample::select(vec![State::Blocked, State::Ready, State::Scheduled]),
        resource in any::<bool>(),
        (steps, undo) in (1_u16..5, any::<u32>()),
        inputs in prop::collection::vec((any_input(), 0_u64..30_000, 0.0_f64..1.0), 1..80),
    ) {
        let mut p = process(first, 0);
        p.shape = Shape::new(steps, undo);
        p.resource = (resource || first == State::Blocked).then(|| "vm/1".to_owned());
        let mut now = NOW;
        let (mut ends, mut starts) = (0, 1);
        let mut done = Done::default();
        for (input, passed, chance) in inputs {
            now = now.plus(Duration::from_millis(passed));
            let before = p.clone();
            let step = p.handle(now, input.clone(), chance);
            check(&p);
            check_step(&before, &input, &step, &p);
            done.note(&before, &step, &p);
            if input == Input::Claim && !step.stale && p.state == State::Leased {
                prop_assert_eq!(p.fence.0, before.fence.0 + 1);
                prop_assert!(now < p.deadline_at, "claimed after its deadline");
            }
            ends += usize::from(p.state.is_terminal() && !before.state.is_terminal());
            starts += usize::from(before.state.is_terminal() && !p.state.is_terminal());
        }
        prop_assert!(ends <= starts);
    }

    #[test]
    fn what_is_given_up_is_undone_in_reverse_whatever_goes_wrong_on_the_way(
        (steps, undo, fails_at) in (1_u16..33, any::<u32>(), 0_u16..33),
        (cancel, busy) in (any::<bool>(), prop::collection::vec(any::<bool>(), 0..8)),
    ) {
        let fails_at = fails_at % steps;
        let mut p = process(State::Ready, 0);
        p.shape = Shape::new(steps, undo);
        let mut busy = busy.into_iter();
        let mut sequence = Vec::new();
        while !p.state.is_terminal() {
            apply(&mut p, [Input::Claim]);
            let (fence, at) = (p.fence, p.step);
            if busy.next() == Some(true) {
                let refusal = Refusal::Busy { retry_after: Duration::ZERO };
                apply(&mut p, [Input::Refused(fence, refusal)]);
                p.due_at = Some(NOW);
                apply(&mut p, [Input::Due]);
                continue;
            }
            apply(&mut p, [Input::Accepted(fence)]);
            sequence.push((at.undoes(), at.index()));
            let dooms = at == StepId::forward(fails_at, 0);
            let status = match (dooms, cancel) {
                (true, true) => {
                    apply(&mut p, [Input::Cancel]);
                    OutcomeStatus::Cancelled
                }
                (true, false) => OutcomeStatus::FailedPermanent,
                (false, _) => OutcomeStatus::Succeeded,
            };
            apply(&mut p, [finished(fence.0, status)]);
        }
        let forward = (0..=fails_at).map(|at| (false, at));
        let back = (0..fails_at).rev().filter(|at| undo & (1 << at) != 0);
        let wanted: Vec<_> = forward.chain(back.map(|at| (true, at))).collect();
        prop_assert_eq!(sequence, wanted);
        prop_assert_eq!(p.state, if cancel { State::Cancelled } else { State::Failed });
        prop_assert!(!p.needs_attention);
    }

    #[test]
    fn with_an_honest_agent_every_process_ends(
        script in prop::collection::vec((any_outcome(), 0.0_f64..1.0), 1..120),
    ) {
        let mut p = process(State::Ready, 0);
        let mut now = NOW;
        for (outcome, chance) in script {
            if p.state.is_terminal() {
                break;
            }
            if let Some(due) = p.due_at.filter(|_| p.state != State::Ready) {
                now = due;
                drop(p.handle(now, Input::Due, chance));
            }
            drop(p.handle(now, Input::Claim, chance));
            let fence = p.fence;
            drop(p.handle(now, Input::Finished(fence, outcome), chance));
        }
        // At most three attempts, or the deadline.
        prop_assert!(p.state.is_terminal() || p.attempt < p.max_attempts);
    }
}
