//! What a process waits for, as far as its row says; and its place in line, in words.

use std::time::Duration;

use protocol::ids::{AgentId, Fence, ProcessId};
use uuid::Uuid;

use super::{in_line, in_store};
use crate::clock::{self, UnixMs};
use crate::process::{Class, Hold, State, StepId};
use crate::store::queries::ProcessRecord;

/// A process in this state.
pub(in crate::api::routes) fn record(state: State, hold: Option<Hold>) -> ProcessRecord {
    let now = clock::now();
    ProcessRecord {
        id: ProcessId(Uuid::from_u128(3)),
        kind: "probe".to_owned(),
        tenant: "acme".to_owned(),
        agent: AgentId(Uuid::from_u128(4)),
        class: Class::Normal,
        resource: Some("disk/1".to_owned()),
        state,
        step: StepId(0),
        steps: 1,
        planned: false,
        fate: None,
        hold,
        needs_attention: false,
        paused: None,
        attempts: 1,
        max_attempts: 3,
        fence: Fence(1),
        created_at: now,
        started_at: None,
        finished_at: None,
        deadline_at: now.plus(Duration::from_secs(900)),
        due_at: Some(now.plus(Duration::from_secs(60))),
        life: Duration::from_secs(900),
        progress_dropped: 0,
        outcome: None,
    }
}

#[test]
fn what_waits_for_its_time_says_when_and_why() {
    let returned = Hold::Returned("the grant is too old".to_owned());
    for (record, scope, words) in [
        (
            record(State::Scheduled, None),
            "time",
            "not to be started before",
        ),
        (
            record(State::Backoff, Some(Hold::Retry)),
            "backoff",
            "attempt 1 of 3 failed",
        ),
        (
            record(State::Backoff, Some(Hold::Budget)),
            "budget",
            "too many attempts of kind `probe`",
        ),
        (
            record(State::Backoff, Some(returned)),
            "backoff",
            "the grant is too old",
        ),
    ] {
        let waits = in_store(&record).unwrap();
        assert_eq!(waits.scope, scope);
        assert!(waits.detail.contains(words), "{}", waits.detail);
        let due = crate::api::model::Timestamp(record.due_at.map_or(0, |at: UnixMs| at.0));
        assert_eq!(waits.key, due.to_string());
        assert!(waits.eta_s.is_some_and(|left| left > 50));
        assert!(waits.advice.is_some_and(|text| text.contains("replay")));
    }
}

#[test]
fn what_waits_for_another_or_for_a_word_says_for_which() {
    for (state, scope, key) in [
        (State::Blocked, "resource", "disk/1".to_owned()),
        (State::Unknown, "answer", Uuid::from_u128(4).to_string()),
        (State::Cancelling, "answer", Uuid::from_u128(4).to_string()),
    ] {
        let waits = in_store(&record(state, None)).unwrap();
        assert_eq!((waits.scope.as_str(), waits.key), (scope, key));
    }
    for state in [State::Ready, State::Running, State::Succeeded] {
        assert_eq!(in_store(&record(state, None)), None);
    }
}

#[test]
fn what_is_asked_of_an_agent_says_nothing_of_a_session_that_it_may_have() {
    for state in [State::Unknown, State::Cancelling] {
        let waits = in_store(&record(state, None)).unwrap();
        assert!(!waits.detail.contains("session"), "{}", waits.detail);
    }
}

#[test]
fn a_wait_while_it_is_undone_is_not_ended_by_going_forward_again() {
    let undoing = ProcessRecord {
        step: StepId::undo(0, 0),
        ..record(State::Backoff, Some(Hold::Retry))
    };
    let advice = in_store(&undoing).unwrap().advice.unwrap();
    assert!(!advice.contains("replay"), "{advice}");
    assert!(advice.contains("cancel --force"), "{advice}");
}

#[test]
fn a_process_with_a_free_place_is_about_to_start() {
    assert!(in_line(4, 0, 1).contains("about to start"));
    assert!(in_line(4, 3, 1).contains("about to start"));
    assert_eq!(
        in_line(4, 3, 2),
        "3 of 4 places are taken; it is number 2 in line"
    );
    assert_eq!(
        in_line(4, 4, 1),
        "4 of 4 places are taken; it is number 1 in line"
    );
    assert_eq!(
        in_line(4, 0, 0),
        "0 of 4 places are taken, and many are before it"
    );
    // An agent may lower its capacity below what it runs.
    assert!(in_line(2, 5, 1).contains("5 of 2"));
}
