//! The JSON that the store keeps: the very forms that the API shows, so that reading is copying.

use protocol::operation::{Channel, Outcome, OutcomeStatus, Progress};
use serde_json::{Value, json};

use crate::api::model::Payload;
use crate::api::model::processes::{OutcomeStatus as StoredStatus, ProcessOutcome};

/// An outcome as a column holds it.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    let stored = ProcessOutcome {
        status: status(outcome.status),
        exit_code: outcome.exit_code,
        message: outcome.message.clone(),
        output: (!outcome.output.is_empty()).then(|| Payload::from_bytes(&outcome.output)),
    };
    json!(stored).to_string()
}

/// The API's word for a status.
pub(crate) fn status(status: OutcomeStatus) -> StoredStatus {
    match status {
        OutcomeStatus::Succeeded => StoredStatus::Succeeded,
        OutcomeStatus::FailedPermanent => StoredStatus::FailedPermanent,
        OutcomeStatus::FailedTransient => StoredStatus::FailedTransient,
        OutcomeStatus::Cancelled => StoredStatus::Cancelled,
        OutcomeStatus::DeadlineExceeded => StoredStatus::DeadlineExceeded,
        OutcomeStatus::Interrupted => StoredStatus::Interrupted,
    }
}

/// The status that [`status`] writes.
pub(crate) fn read_status(value: &Value) -> Option<OutcomeStatus> {
    let stored: StoredStatus = serde_json::from_value(value.clone()).ok()?;
    Some(match stored {
        StoredStatus::Succeeded => OutcomeStatus::Succeeded,
        StoredStatus::FailedPermanent => OutcomeStatus::FailedPermanent,
        StoredStatus::FailedTransient => OutcomeStatus::FailedTransient,
        StoredStatus::Cancelled => OutcomeStatus::Cancelled,
        StoredStatus::DeadlineExceeded => OutcomeStatus::DeadlineExceeded,
        StoredStatus::Interrupted => OutcomeStatus::Interrupted,
    })
}

/// A progress report as the data of its event.
pub(crate) fn progress(progress: &Progress) -> Value {
    let mut data = json!({ "sequence": progress.sequence });
    if let Some(percent) = progress.percent {
        data["percent"] = json!(percent);
    }
    if !progress.message.is_empty() {
        data["message"] = json!(progress.message);
    }
    let channel = match progress.channel {
        Channel::None => None,
        Channel::Stdout => Some("stdout"),
        Channel::Stderr => Some("stderr"),
    };
    if let Some(channel) = channel {
        data["channel"] = json!(channel);
    }
    if !progress.output.is_empty() {
        data["output"] = json!(Payload::from_bytes(&progress.output));
    }
    data
}
