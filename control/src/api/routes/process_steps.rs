//! The steps of a process as the API shows them.

use crate::api::model::Timestamp;
use crate::api::model::processes::{OutcomeStatus, ProcessStep, StepState};
use crate::process::{Plan, State, StepId};
use crate::store::plans::PlanRow;
use crate::store::queries::ProcessRecord;

/// The steps of a process, from the rows of its plan.
pub(super) fn describe(record: &ProcessRecord, rows: Vec<PlanRow>) -> Vec<ProcessStep> {
    let (undo, forward): (Vec<PlanRow>, Vec<PlanRow>) =
        rows.into_iter().partition(|row| row.step.undoes());
    let steps = forward.into_iter().map(|row| {
        let undo = undo
            .iter()
            .find(|undo| undo.step.index() == row.step.index());
        let state = state(record, &row, undo);
        ProcessStep {
            step: row.step.index(),
            name: row.name,
            state,
            operation: row.operation,
            input: serde_json::from_str(&row.input).unwrap_or_default(),
            timeout_seconds: row.timeout.as_secs(),
            class: row.class,
            resources: row.resources,
            undone_by: undo.map(|undo| undo.operation.clone()),
            attempts: (row.attempts > 0).then_some(row.attempts),
            finished_at: row.finished_at.map(|at| Timestamp(at.0)),
            outcome: row.outcome,
        }
    });
    steps.collect()
}

fn state(record: &ProcessRecord, row: &PlanRow, undo: Option<&PlanRow>) -> StepState {
    let ended = |row: &PlanRow| row.outcome.as_ref().map(|outcome| outcome.status);
    let succeeded = |row: &PlanRow| ended(row) == Some(OutcomeStatus::Succeeded);
    let index = row.step.index();
    let at_hand = record.step.index() == index;
    if at_hand && record.step.undoes() {
        return StepState::Undoing;
    }
    if undo.is_some_and(succeeded) {
        return StepState::Undone;
    }
    if succeeded(row) {
        return StepState::Done;
    }
    match (at_hand && !record.state.is_terminal(), ended(row)) {
        (true, _) => StepState::Current,
        (false, Some(OutcomeStatus::Cancelled)) => StepState::Cancelled,
        (false, Some(_)) => StepState::Failed,
        (false, None) if at_hand && record.state == State::Failed => StepState::Failed,
        (false, None) => StepState::Waiting,
    }
}

/// The steps of a plan that is not stored.
pub(super) fn of_plan(plan: &Plan) -> Vec<ProcessStep> {
    let steps = plan
        .steps
        .iter()
        .zip(0_u16..)
        .map(|(step, index)| ProcessStep {
            step: StepId::forward(index, 0).index(),
            name: step.name.clone(),
            state: StepState::Waiting,
            operation: step.work.operation.clone(),
            input: serde_json::from_str(&step.work.input).unwrap_or_default(),
            timeout_seconds: step.work.timeout.as_secs()
                + u64::from(step.work.timeout.subsec_nanos() > 0),
            class: step.class.clone(),
            resources: step.resources.clone(),
            undone_by: step.undo.as_ref().map(|undo| undo.operation.clone()),
            attempts: None,
            finished_at: None,
            outcome: None,
        });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::model::processes::ProcessOutcome;
    use crate::api::routes::process_waits::tests::record;

    #[test]
    fn a_step_that_was_stopped_has_not_failed() {
        let ended = |status| PlanRow {
            step: StepId::forward(0, 0),
            name: "move".to_owned(),
            operation: "exec".to_owned(),
            input: "{}".to_owned(),
            timeout: Duration::from_secs(60),
            class: None,
            resources: Vec::new(),
            attempts: 1,
            finished_at: None,
            outcome: Some(ProcessOutcome {
                status,
                exit_code: None,
                message: String::new(),
                output: None,
            }),
        };
        for (state, status, shown) in [
            (
                State::Cancelled,
                OutcomeStatus::Cancelled,
                StepState::Cancelled,
            ),
            (
                State::Failed,
                OutcomeStatus::FailedPermanent,
                StepState::Failed,
            ),
            (State::Failed, OutcomeStatus::Interrupted, StepState::Failed),
        ] {
            let steps = describe(&record(state, None), vec![ended(status)]);
            assert_eq!(steps[0].state, shown);
        }
    }
}
