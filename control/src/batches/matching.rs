//! Which processes a batch is about: what its filter says, narrowed by what its action can do.

use protocol::ids::{AgentId, GroupId};
use uuid::Uuid;

use super::rules::{eligible, goes_on};
use crate::api::model::Timestamp;
use crate::api::model::batches::{BatchAction, BatchFilter};
use crate::api::model::processes::ProcessState;
use crate::clock::UnixMs;
use crate::process::State;
use crate::store::batches::Matching;

/// Which processes a batch that is made `at` is about. The filter's names were resolved before.
pub(crate) fn matching(action: BatchAction, filter: &BatchFilter, at: UnixMs) -> Matching {
    let id = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Uuid>().ok());
    let moment = |at: Timestamp| UnixMs(at.0);
    let needs_attention = match action {
        BatchAction::Redrive => Some(filter.needs_attention.unwrap_or(false)),
        _ => filter.needs_attention,
    };
    Matching {
        states: states(action, filter.state),
        agent: id(&filter.agent).map(AgentId),
        kind: filter.kind.clone(),
        tenant: filter.tenant.clone(),
        group: id(&filter.group).map(GroupId),
        outcome: filter.outcome.and_then(word),
        needs_attention,
        paused: filter.state.and_then(paused),
        paused_itself: match action {
            BatchAction::Pause => Some(false),
            BatchAction::Resume => Some(true),
            _ => None,
        },
        finished_after: filter.finished_after.map(moment),
        finished_before: filter.finished_before.map(moment),
        over_by: goes_on(action).then_some(at),
        admitted: goes_on(action),
    }
}

/// States that are stored. `paused` is not: it is `ready`, and a pause applies.
fn states(action: BatchAction, named: Option<ProcessState>) -> Vec<State> {
    let eligible = eligible(action).into_iter();
    match named {
        None => eligible.collect(),
        Some(ProcessState::Paused) => eligible.filter(|state| *state == State::Ready).collect(),
        Some(named) => {
            let word = word(named);
            eligible
                .filter(|state| word.as_deref() == Some(state.as_str()))
                .collect()
        }
    }
}

fn paused(state: ProcessState) -> Option<bool> {
    match state {
        ProcessState::Paused => Some(true),
        ProcessState::Ready => Some(false),
        _ => None,
    }
}

/// An enum of the API as its JSON, and so the store, has it.
fn word<T: serde::Serialize>(value: T) -> Option<String> {
    let value = serde_json::to_value(value).ok()?;
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::processes::OutcomeStatus;

    const AT: UnixMs = UnixMs(7);

    #[test]
    fn a_redrive_leaves_out_what_people_must_look_at_unless_it_is_asked_for() {
        let mut filter = BatchFilter::default();
        let found = matching(BatchAction::Redrive, &filter, AT);
        assert_eq!(found.needs_attention, Some(false));
        assert_eq!(found.states, [State::Failed]);
        assert_eq!((found.over_by, found.admitted), (Some(AT), true));
        filter.needs_attention = Some(true);
        let found = matching(BatchAction::Redrive, &filter, AT);
        assert_eq!(found.needs_attention, Some(true));
        let found = matching(BatchAction::Retry, &BatchFilter::default(), AT);
        assert_eq!(found.needs_attention, None);
    }

    #[test]
    fn paused_is_ready_with_a_pause_and_ready_is_without() {
        for (named, paused) in [(ProcessState::Paused, true), (ProcessState::Ready, false)] {
            let filter = BatchFilter {
                state: Some(named),
                ..BatchFilter::default()
            };
            let found = matching(BatchAction::Cancel, &filter, AT);
            assert_eq!(found.states, [State::Ready]);
            assert_eq!(found.paused, Some(paused));
            assert_eq!((found.over_by, found.admitted), (None, false));
        }
    }

    #[test]
    fn words_are_those_of_the_store() {
        let filter = BatchFilter {
            state: Some(ProcessState::Backoff),
            outcome: Some(OutcomeStatus::FailedTransient),
            ..BatchFilter::default()
        };
        let found = matching(BatchAction::Replay, &filter, AT);
        assert_eq!(found.states, [State::Backoff]);
        assert_eq!(found.outcome.as_deref(), Some("failed_transient"));
        let found = matching(BatchAction::Retry, &filter, AT);
        assert!(
            found.states.is_empty(),
            "nothing that a retry could do something to"
        );
    }
}
