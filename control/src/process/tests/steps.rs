//! Steps, undoing, and what people order.

use super::*;

/// A process of three steps, of which the first two can be undone, at work on step `index`.
fn at_step(index: u16) -> Process {
    let mut p = process(State::Running, 5);
    p.shape = Shape::new(3, 0b011);
    p.step = StepId::forward(index, 0);
    p.attempt = 1;
    p.counted_fence = Fence(5);
    p.started_at = Some(NOW);
    p
}

#[test]
fn a_step_that_is_done_leads_to_the_next_and_the_last_one_ends_it() {
    let mut p = at_step(0);
    for (index, fence) in [(1, 5), (2, 6)] {
        let step = p.handle(NOW, finished(fence, OutcomeStatus::Succeeded), 0.5);
        assert_eq!((p.state, p.step), (State::Ready, StepId::forward(index, 0)));
        assert_eq!((p.attempt, step.tell), (0, Some(Tell::Forget)));
        assert_eq!(p.ready_at, Some(p.created_at), "it keeps its place in line");
        assert!(step.outcome.is_none() && step.step_ended.is_some());
        apply(&mut p, [Input::Claim, Input::Accepted(Fence(fence + 1))]);
    }
    let step = p.handle(NOW, finished(7, OutcomeStatus::Succeeded), 0.5);
    assert_eq!((p.state, p.fence), (State::Succeeded, Fence(7)));
    assert!(step.outcome.is_some());
}

#[test]
fn every_way_to_fail_for_good_undoes_what_was_done() {
    let ways = [
        finished(5, OutcomeStatus::FailedPermanent),
        finished(5, OutcomeStatus::DeadlineExceeded),
        report(
            5,
            OperationState::Finished(outcome(OutcomeStatus::FailedPermanent)),
        ),
    ];
    for way in ways {
        let mut p = at_step(2);
        let step = p.handle(NOW, way.clone(), 0.5);
        assert_eq!(
            (p.state, p.step),
            (State::Ready, StepId::undo(1, 0)),
            "{way:?}"
        );
        assert_eq!(p.fate.as_ref().unwrap().end, State::Failed);
        assert!(p.deadline_at >= NOW.plus(UNDO_TIME), "it has time for that");
        assert!(step.note.unwrap().contains("undoing step 2"));
        // Nobody can stop it on its way, but by force.
        apply(&mut p, [Input::Cancel]);
        assert_eq!(p.state, State::Ready);
        apply(
            &mut p,
            [
                Input::Claim,
                finished(6, OutcomeStatus::Succeeded),
                Input::Claim,
            ],
        );
        assert_eq!(p.step, StepId::undo(0, 0));
        let end = p.handle(NOW, finished(7, OutcomeStatus::Succeeded), 0.5);
        assert_eq!((p.state, p.step), (State::Failed, StepId::forward(0, 0)));
        let message = end.outcome.unwrap().message;
        assert!(
            message.ends_with("said the agent; undone: steps 2, 1"),
            "{message}"
        );
    }
}

#[test]
fn what_may_still_be_in_effect_is_left_to_people() {
    let mut p = at_step(2);
    let step = p.handle(NOW, finished(5, OutcomeStatus::Interrupted), 0.5);
    assert_eq!(p.state, State::Failed);
    assert!(p.needs_attention);
    let message = step.outcome.unwrap().message;
    assert!(
        message.contains("steps 1 to 2 were done and are not undone"),
        "{message}"
    );
}

#[test]
fn a_step_that_cannot_be_undone_is_for_people_and_a_retry_goes_on_there() {
    let mut p = at_step(2);
    apply(
        &mut p,
        [finished(5, OutcomeStatus::FailedPermanent), Input::Claim],
    );
    let step = p.handle(NOW, finished(6, OutcomeStatus::FailedPermanent), 0.5);
    assert_eq!((p.state, p.needs_attention), (State::Failed, true));
    let message = step.outcome.unwrap().message;
    assert!(
        message.contains("undone: nothing; step 2 could not be undone"),
        "{message}"
    );
    let step = p.handle(NOW, Input::Retry, 0.5);
    assert_eq!((p.state, p.step), (State::Ready, StepId::undo(1, 1)));
    assert!(!p.needs_attention && step.renewed_from.is_none());
    apply(
        &mut p,
        [
            Input::Claim,
            finished(8, OutcomeStatus::Succeeded),
            Input::Claim,
            finished(9, OutcomeStatus::Succeeded),
        ],
    );
    assert_eq!((p.state, p.needs_attention), (State::Failed, false));
}

#[test]
fn a_cancel_undoes_what_was_done_wherever_it_comes() {
    // While it waits between two steps.
    let mut p = at_step(0);
    apply(
        &mut p,
        [finished(5, OutcomeStatus::Succeeded), Input::Cancel],
    );
    assert_eq!((p.state, p.step), (State::Ready, StepId::undo(0, 0)));
    apply(
        &mut p,
        [Input::Claim, finished(6, OutcomeStatus::Succeeded)],
    );
    assert_eq!(p.state, State::Cancelled);
    // While a step runs that then succeeds all the same.
    let mut p = at_step(1);
    apply(
        &mut p,
        [Input::Cancel, finished(5, OutcomeStatus::Succeeded)],
    );
    assert_eq!((p.state, p.step), (State::Ready, StepId::undo(1, 0)));
    assert_eq!(p.fate.unwrap().end, State::Cancelled);
    // In the last step it is too late.
    let mut p = at_step(2);
    apply(
        &mut p,
        [Input::Cancel, finished(5, OutcomeStatus::Succeeded)],
    );
    assert_eq!(p.state, State::Succeeded);
}

#[test]
fn force_ends_everything_at_once_and_the_late_word_settles_it() {
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 1);
        let step = p.handle(NOW, Input::Force, 0.5);
        if state.is_terminal() {
            assert!(step.refused.is_some());
            continue;
        }
        assert_eq!(p.state, State::Cancelled);
        assert_eq!(
            (p.needs_attention, p.unsettled),
            (state.is_active(), state.is_active())
        );
        assert_eq!(
            step.tell,
            state.is_active().then_some(Tell::Cancel(Fence(1)))
        );
        let status = step.outcome.unwrap().status;
        assert_eq!(
            status == OutcomeStatus::Interrupted,
            state.is_active(),
            "{state}"
        );
    }
    let mut p = at_step(1);
    apply(&mut p, [Input::Force]);
    // Its operation may still run: a retry asks for that one, and no other step is begun meanwhile.
    let mut retried = p.clone();
    let step = retried.handle(NOW, Input::Retry, 0.5);
    assert_eq!((retried.step, step.tell), (StepId::forward(1, 0), None));
    assert!(
        p.clone()
            .handle(NOW, Input::Replay(0), 0.5)
            .refused
            .is_some()
    );
    let step = p.handle(NOW, finished(5, OutcomeStatus::Succeeded), 0.5);
    assert!(step.stale && step.remark && !p.unsettled);
    assert_eq!(step.tell, Some(Tell::Forget));
    apply(&mut p, [Input::Retry]);
    assert_eq!(
        p.step,
        StepId::forward(1, 1),
        "known now: a retry is another operation"
    );
}

#[test]
fn a_retry_begins_anew_and_only_after_the_end() {
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 4);
        p.attempt = 3;
        p.finished_at = state.is_terminal().then_some(NOW);
        let later = NOW.plus(Duration::from_secs(500));
        let step = p.handle(later, Input::Retry, 0.5);
        if !matches!(state, State::Failed | State::Cancelled) {
            assert!(step.refused.is_some(), "{state}");
            continue;
        }
        assert_eq!((p.state, p.attempt, p.fence), (State::Ready, 0, Fence(5)));
        assert_eq!(p.deadline_at, later.plus(p.life));
        assert_eq!(p.step, StepId::forward(0, 1));
        assert_eq!((step.tell, p.finished_at), (Some(Tell::Forget), None));
    }
    let mut p = process(State::Failed, 4);
    p.resource = Some("vm/1".to_owned());
    apply(&mut p, [Input::Retry]);
    assert_eq!(
        p.state,
        State::Blocked,
        "its resource may be another's by now"
    );
    let mut worn = process(State::Failed, 4);
    worn.step = StepId::forward(0, RUN_MAX);
    let why = worn.handle(NOW, Input::Retry, 0.5).refused.unwrap();
    assert!(why.contains("clone it"), "{why}");
}

#[test]
fn a_replay_ends_a_wait_and_never_meets_an_agent_at_work() {
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 4);
        p.shape = Shape::new(3, 0);
        p.step = StepId::forward(1, 0);
        let step = p.handle(NOW, Input::Replay(1), 0.5);
        assert_eq!(step.refused.is_some(), state.is_active(), "{state}");
        if step.refused.is_none() {
            let expected = if state == State::Blocked {
                state
            } else {
                State::Ready
            };
            assert_eq!((p.state, p.step), (expected, StepId::forward(1, 1)));
            assert_eq!(step.renewed_from, Some(1));
        }
    }
    let mut p = process(State::Failed, 4);
    let why = p.handle(NOW, Input::Replay(1), 0.5).refused.unwrap();
    assert!(why.contains("1 step"), "{why}");
}

#[test]
fn a_replay_begins_where_all_steps_before_are_done() {
    use OutcomeStatus::{Cancelled, FailedPermanent, Succeeded};
    // What its agent says, from its last step, 2, on, and the last step that it can be replayed from then.
    let cases = [
        ("it has succeeded", vec![Succeeded], 2),
        ("undoing has not begun", vec![FailedPermanent], 1),
        ("undone in part", vec![FailedPermanent, Succeeded], 0),
        ("undone", vec![FailedPermanent, Succeeded, Succeeded], 0),
        (
            "stuck",
            vec![FailedPermanent, Succeeded, FailedPermanent],
            0,
        ),
        ("stuck at once", vec![Cancelled, FailedPermanent], 1),
    ];
    let mut reached: Vec<(&str, Process, u16)> = Vec::new();
    for (what, words, last) in cases {
        let mut p = at_step(2);
        for status in words {
            if p.state == State::Ready {
                apply(&mut p, [Input::Claim]);
            }
            let fence = p.fence.0;
            apply(&mut p, [finished(fence, status)]);
        }
        reached.push((what, p, last));
    }
    let mut forced = at_step(1);
    apply(&mut forced, [Input::Force, finished(5, Cancelled)]);
    reached.push(("never further", forced, 1));
    for (what, p, last) in reached {
        for index in 0..3 {
            let mut replayed = p.clone();
            let step = replayed.handle(NOW, Input::Replay(index), 0.5);
            assert_eq!(step.refused.is_none(), index <= last, "{what}: {index}");
            match step.refused {
                None => assert_eq!(replayed.step, StepId::forward(index, 1), "{what}"),
                Some(why) => assert!(
                    replayed == p && why.contains(&format!("replay it from step {last}")),
                    "{what}: {why}"
                ),
            }
        }
    }
}

#[test]
fn a_step_that_succeeded_while_it_was_cancelled_is_not_done_again_by_a_retry() {
    let mut p = at_step(1);
    p.shape = Shape::new(3, 0);
    let step = p.handle(NOW, Input::Cancel, 0.5);
    assert_eq!(step.tell, Some(Tell::Cancel(Fence(5))));
    let end = p.handle(NOW, finished(5, OutcomeStatus::Succeeded), 0.5);
    assert_eq!(p.state, State::Cancelled);
    let message = end.outcome.unwrap().message;
    assert!(message.contains("steps 1 to 2 were done"), "{message}");
    apply(&mut p, [Input::Retry]);
    assert_eq!(p.step, StepId::forward(2, 1));
}

#[test]
fn what_is_for_later_gets_in_line_for_its_resource_when_its_time_has_come() {
    for (resource, input) in [
        (false, Input::Due),
        (true, Input::Due),
        (false, Input::Replay(0)),
        (true, Input::Replay(0)),
    ] {
        let mut p = process(State::Scheduled, 0);
        p.due_at = Some(NOW);
        p.resource = resource.then(|| "vm/1".to_owned());
        apply(&mut p, [input]);
        let state = if resource {
            State::Blocked
        } else {
            State::Ready
        };
        assert_eq!((p.state, p.due_at), (state, Some(p.deadline_at)));
    }
}

#[test]
fn only_what_has_not_started_is_superseded() {
    let by = ProcessId(Uuid::from_u128(77));
    for state in State::ALL.iter().copied() {
        let mut p = process(state, 0);
        let step = p.handle(NOW, Input::Supersede(by), 0.5);
        assert_eq!(step.stale, !state.is_waiting());
        if !step.stale {
            assert_eq!(p.state, State::Cancelled);
            assert_eq!(step.outcome.unwrap().message, format!("superseded by {by}"));
        }
    }
    let mut begun = process(State::Backoff, 1);
    begun.started_at = Some(NOW);
    assert!(begun.handle(NOW, Input::Supersede(by), 0.5).stale);
}

#[test]
fn a_retry_without_a_budget_waits_in_backoff_and_does_not_fail() {
    let mut p = process(State::Ready, 3);
    let until = NOW.plus(Duration::from_secs(9));
    apply(&mut p, [Input::Defer(until)]);
    assert_eq!((p.state, p.due_at), (State::Backoff, Some(until)));
    assert_eq!(p.hold, Some(Hold::Budget));
    assert!(p.handle(NOW, Input::Defer(until), 0.5).stale);
    apply(&mut p, [Input::Due]);
    assert_eq!(p.state, State::Backoff, "not before its time");
    assert!(!p.handle(until, Input::Due, 0.5).stale);
    assert_eq!((p.state, p.hold), (State::Ready, None));
}
