//! The tables that several messages share: operations, their outcomes, and what an agent holds.

use std::time::Duration;

use bytes::Bytes;
use flatbuffers::WIPOffset;

use super::check::{self, Fault};
use super::codec::{
    self, Builder, bytes, enum_map, operation_id, read_millis, read_operation_id, slice, string,
};
use crate::generated::agent as fb;
use crate::ids::{Epoch, Fence, OperationId};
use crate::limits::{
    COMMAND_INPUT_BYTES_MAX, MESSAGE_BYTES_MAX, OPERATIONS_PER_FRAME_MAX, OUTPUT_BYTES_MAX,
};
use crate::operation::{
    Channel, Command, OperationState, Outcome, OutcomeStatus, Phase, Progress, Refusal,
};

enum_map!(write_status, read_status: OutcomeStatus => fb::OutcomeStatus {
    Succeeded, FailedPermanent, FailedTransient, Cancelled, DeadlineExceeded, Interrupted,
});
enum_map!(write_channel, read_channel: Channel => fb::Channel { None, Stdout, Stderr });
enum_map!(write_phase, read_phase: Phase => fb::Phase { Accepted, Running, Finished });

// ---- outcome, report ----

fn write_outcome(
    b: &mut Builder,
    outcome: &Outcome,
) -> Result<WIPOffset<fb::Outcome<'static>>, Fault> {
    let message = check::text("outcome.message", &outcome.message, MESSAGE_BYTES_MAX)?;
    check::size("outcome.output", outcome.output.len(), OUTPUT_BYTES_MAX)?;
    let service_time_us =
        u64::try_from(outcome.service_time.as_micros()).map_err(|_| Fault::Invalid {
            field: "outcome.service_time",
            problem: "is longer than 2^64 - 1 us",
        })?;
    let args = fb::OutcomeArgs {
        status: write_status(outcome.status),
        exit_code: outcome.exit_code,
        message: string(b, message),
        output: bytes(b, &outcome.output),
        service_time_us,
    };
    Ok(fb::Outcome::create(b, &args))
}

fn read_outcome(outcome: fb::Outcome<'_>) -> Result<Outcome, Fault> {
    let message = outcome.message().unwrap_or_default();
    let output = slice(outcome.output());
    check::size("outcome.output", output.len(), OUTPUT_BYTES_MAX)?;
    Ok(Outcome {
        status: read_status(outcome.status()).ok_or(Fault::unknown("outcome.status"))?,
        exit_code: outcome.exit_code(),
        message: check::text("outcome.message", message, MESSAGE_BYTES_MAX)?.to_owned(),
        output: Bytes::copy_from_slice(output),
        service_time: Duration::from_micros(outcome.service_time_us()),
    })
}

pub(super) fn write_report(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
    state: &OperationState,
) -> Result<WIPOffset<fb::Report<'static>>, Fault> {
    let (phase, outcome) = match state {
        OperationState::NeverSeen => (fb::Phase::NeverSeen, None),
        OperationState::Accepted => (fb::Phase::Accepted, None),
        OperationState::Running => (fb::Phase::Running, None),
        OperationState::Finished(outcome) => {
            (fb::Phase::Finished, Some(write_outcome(b, outcome)?))
        }
    };
    let args = fb::ReportArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
        phase,
        outcome,
    };
    Ok(fb::Report::create(b, &args))
}

pub(super) fn read_report(
    report: fb::Report<'_>,
) -> Result<(OperationId, Fence, OperationState), Fault> {
    let state = match (report.phase(), report.outcome()) {
        (fb::Phase::NeverSeen, None) => OperationState::NeverSeen,
        (fb::Phase::Accepted, None) => OperationState::Accepted,
        (fb::Phase::Running, None) => OperationState::Running,
        (fb::Phase::Finished, Some(outcome)) => OperationState::Finished(read_outcome(outcome)?),
        (fb::Phase::Finished, None) => return Err(Fault::missing("report.outcome")),
        (fb::Phase::NeverSeen | fb::Phase::Accepted | fb::Phase::Running, Some(_)) => {
            return Err(Fault::Invalid {
                field: "report.outcome",
                problem: "is there although the operation has not finished",
            });
        }
        _ => return Err(Fault::unknown("report.phase")),
    };
    Ok((
        read_operation_id(report.operation()),
        Fence(report.fence()),
        state,
    ))
}

// ---- progress, refusal, and the rest of what an agent answers ----

pub(super) fn write_accepted(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
) -> WIPOffset<fb::Accepted<'static>> {
    let args = fb::AcceptedArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
    };
    fb::Accepted::create(b, &args)
}

pub(super) fn write_progress(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
    progress: &Progress,
) -> Result<WIPOffset<fb::Progress<'static>>, Fault> {
    let message = check::text("progress.message", &progress.message, MESSAGE_BYTES_MAX)?;
    check::size("progress.output", progress.output.len(), OUTPUT_BYTES_MAX)?;
    let args = fb::ProgressArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
        sequence: progress.sequence,
        percent: check::percent("progress.percent", progress.percent)?,
        message: string(b, message),
        channel: write_channel(progress.channel),
        output: bytes(b, &progress.output),
    };
    Ok(fb::Progress::create(b, &args))
}

pub(super) fn read_progress(
    progress: fb::Progress<'_>,
) -> Result<(OperationId, Fence, Progress), Fault> {
    let message = progress.message().unwrap_or_default();
    let output = slice(progress.output());
    check::size("progress.output", output.len(), OUTPUT_BYTES_MAX)?;
    let report = Progress {
        sequence: progress.sequence(),
        percent: check::percent("progress.percent", progress.percent())?,
        message: check::text("progress.message", message, MESSAGE_BYTES_MAX)?.to_owned(),
        channel: read_channel(progress.channel()).ok_or(Fault::unknown("progress.channel"))?,
        output: Bytes::copy_from_slice(output),
    };
    Ok((
        read_operation_id(progress.operation()),
        Fence(progress.fence()),
        report,
    ))
}

pub(super) fn write_finished(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
    outcome: &Outcome,
) -> Result<WIPOffset<fb::Finished<'static>>, Fault> {
    let outcome = write_outcome(b, outcome)?;
    let args = fb::FinishedArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
        outcome: Some(outcome),
    };
    Ok(fb::Finished::create(b, &args))
}

pub(super) fn read_finished(
    finished: fb::Finished<'_>,
) -> Result<(OperationId, Fence, Outcome), Fault> {
    let operation = read_operation_id(finished.operation());
    let outcome = read_outcome(finished.outcome())?;
    Ok((operation, Fence(finished.fence()), outcome))
}

pub(super) fn write_refused(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
    refusal: &Refusal,
) -> Result<WIPOffset<fb::Refused<'static>>, Fault> {
    use fb::RefusalReason as Reason;
    let (reason, retry_after_ms, seen, text) = match refusal {
        Refusal::Busy { retry_after } => {
            let millis = codec::millis("refusal.retry_after", *retry_after)?;
            (Reason::Busy, millis, 0, "")
        }
        Refusal::StaleEpoch { seen } => (Reason::StaleEpoch, 0, seen.0, ""),
        Refusal::StaleFence { seen } => (Reason::StaleFence, 0, seen.0, ""),
        Refusal::UnknownKind { kind } => (
            Reason::UnknownKind,
            0,
            0,
            check::kind("refusal.kind", kind)?,
        ),
        Refusal::InvalidInput { message } => (Reason::InvalidInput, 0, 0, message.as_str()),
        Refusal::JournalFull => (Reason::JournalFull, 0, 0, ""),
        Refusal::JournalFailed { message } => (Reason::JournalFailed, 0, 0, message.as_str()),
        Refusal::DeadlinePassed => (Reason::DeadlinePassed, 0, 0, ""),
        Refusal::Cancelled => (Reason::Cancelled, 0, 0, ""),
        Refusal::Stopping => (Reason::Stopping, 0, 0, ""),
    };
    let text = check::text("refusal.text", text, MESSAGE_BYTES_MAX)?;
    let args = fb::RefusedArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
        reason,
        retry_after_ms,
        seen,
        text: string(b, text),
    };
    Ok(fb::Refused::create(b, &args))
}

pub(super) fn read_refused(
    refused: fb::Refused<'_>,
) -> Result<(OperationId, Fence, Refusal), Fault> {
    use fb::RefusalReason as Reason;
    let text = refused.text().unwrap_or_default();
    let text = check::text("refusal.text", text, MESSAGE_BYTES_MAX)?;
    let refusal = match refused.reason() {
        Reason::Busy => Refusal::Busy {
            retry_after: read_millis(refused.retry_after_ms()),
        },
        Reason::StaleEpoch => Refusal::StaleEpoch {
            seen: Epoch(refused.seen()),
        },
        Reason::StaleFence => Refusal::StaleFence {
            seen: Fence(refused.seen()),
        },
        Reason::UnknownKind => Refusal::UnknownKind {
            kind: check::kind("refusal.kind", text)?.to_owned(),
        },
        Reason::InvalidInput => Refusal::InvalidInput {
            message: text.to_owned(),
        },
        Reason::JournalFull => Refusal::JournalFull,
        Reason::JournalFailed => Refusal::JournalFailed {
            message: text.to_owned(),
        },
        Reason::DeadlinePassed => Refusal::DeadlinePassed,
        Reason::Cancelled => Refusal::Cancelled,
        Reason::Stopping => Refusal::Stopping,
        _ => return Err(Fault::unknown("refusal.reason")),
    };
    Ok((
        read_operation_id(refused.operation()),
        Fence(refused.fence()),
        refusal,
    ))
}

// ---- commands, and lists of operations ----

pub(super) fn write_command(
    b: &mut Builder,
    epoch: Epoch,
    command: &Command,
) -> Result<WIPOffset<fb::Command<'static>>, Fault> {
    check::size(
        "command.input",
        command.input.len(),
        COMMAND_INPUT_BYTES_MAX,
    )?;
    let kind = check::kind("command.kind", &command.kind)?;
    let args = fb::CommandArgs {
        operation: Some(&operation_id(command.operation)),
        fence: command.fence.0,
        epoch: epoch.0,
        deadline_ms: command.deadline_ms,
        kind: string(b, kind),
        input: bytes(b, &command.input),
    };
    Ok(fb::Command::create(b, &args))
}

pub(super) fn read_command(command: fb::Command<'_>) -> Result<(Epoch, Command), Fault> {
    let input = slice(command.input());
    check::size("command.input", input.len(), COMMAND_INPUT_BYTES_MAX)?;
    let owned = Command {
        operation: read_operation_id(command.operation()),
        fence: Fence(command.fence()),
        kind: check::kind("command.kind", command.kind())?.to_owned(),
        input: Bytes::copy_from_slice(input),
        deadline_ms: command.deadline_ms(),
    };
    Ok((Epoch(command.epoch()), owned))
}

pub(super) fn write_query(
    b: &mut Builder,
    operations: &[(OperationId, Fence)],
) -> Result<WIPOffset<fb::Query<'static>>, Fault> {
    check::size(
        "query.operations",
        operations.len(),
        OPERATIONS_PER_FRAME_MAX,
    )?;
    let list = operations
        .iter()
        .map(|&(operation, fence)| fb::OperationFence::new(&operation_id(operation), fence.0));
    let operations = Some(b.create_vector_from_iter(list));
    Ok(fb::Query::create(b, &fb::QueryArgs { operations }))
}

pub(super) fn read_query(query: fb::Query<'_>) -> Result<Vec<(OperationId, Fence)>, Fault> {
    let Some(list) = query.operations() else {
        return Ok(Vec::new());
    };
    check::size("query.operations", list.len(), OPERATIONS_PER_FRAME_MAX)?;
    let read =
        |item: &fb::OperationFence| (read_operation_id(item.operation()), Fence(item.fence()));
    Ok(list.iter().map(read).collect())
}

pub(super) fn write_forget(
    b: &mut Builder,
    operations: &[OperationId],
) -> Result<WIPOffset<fb::Forget<'static>>, Fault> {
    check::size(
        "forget.operations",
        operations.len(),
        OPERATIONS_PER_FRAME_MAX,
    )?;
    let list = operations.iter().copied().map(operation_id);
    let operations = Some(b.create_vector_from_iter(list));
    Ok(fb::Forget::create(b, &fb::ForgetArgs { operations }))
}

pub(super) fn read_forget(forget: fb::Forget<'_>) -> Result<Vec<OperationId>, Fault> {
    let Some(list) = forget.operations() else {
        return Ok(Vec::new());
    };
    check::size("forget.operations", list.len(), OPERATIONS_PER_FRAME_MAX)?;
    Ok(list.iter().map(read_operation_id).collect())
}
