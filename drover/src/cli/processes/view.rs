//! Processes as people read them in a terminal.

use control::api::model::processes::{
    DryRun, HistoryEntry, OutcomeStatus, Process, ProcessDetail, ProcessState, ProcessStep,
    WaitingOn,
};

use crate::cli::print;

/// Many processes; `narrowed`: only some were asked for.
pub(super) fn list(processes: &[Process], narrowed: bool) -> String {
    print::table(
        [
            "ID", "KIND", "AGENT", "STATE", "STEP", "ATTEMPTS", "EXIT", "CREATED",
        ],
        processes.iter().map(|process| {
            let exit = process
                .outcome
                .as_ref()
                .and_then(|outcome| outcome.exit_code);
            [
                process.id.to_string(),
                process.kind.clone(),
                process.agent.to_string(),
                state(process),
                format!("{}/{}", process.step + 1, process.step_count),
                format!("{}/{}", process.attempts, process.max_attempts),
                print::or_dash(exit),
                process.created_at.to_string(),
            ]
        }),
        match narrowed {
            true => "no process fits these filters",
            false => "no processes; start one with `drover run AGENT exec -- PROGRAM`",
        },
    )
}

/// The state, and what people must not miss.
fn state(process: &Process) -> String {
    let word = print::word(&process.state);
    match (process.needs_attention, process.undoing) {
        (true, _) => format!("{word}, look!"),
        (false, true) => format!("{word}, undoing"),
        (false, false) => word,
    }
}

/// One process.
pub(super) fn show(detail: &ProcessDetail) -> String {
    let process = &detail.process;
    let outcome = process.outcome.as_ref();
    let result = outcome
        .and_then(|outcome| outcome.output.as_ref())
        .map(|output| output.data.clone());
    let waiting = process.waiting_on.as_ref();
    let mut text = print::facts(&[
        ("id", Some(process.id.to_string())),
        ("kind", Some(process.kind.clone())),
        ("tenant", Some(process.tenant.clone())),
        ("agent", Some(process.agent.to_string())),
        ("state", Some(state(process))),
        (
            "attempts",
            Some(format!("{} of {}", process.attempts, process.max_attempts)),
        ),
        ("class", Some(print::word(&process.class))),
        ("resource", process.resource.clone()),
        ("input", Some(detail.input.to_string())),
        (
            "waiting on",
            waiting.map(|on| format!("{} {}: {}", on.scope, on.key, on.detail)),
        ),
        ("created", Some(process.created_at.to_string())),
        ("started", process.started_at.map(|at| at.to_string())),
        ("finished", process.finished_at.map(|at| at.to_string())),
        ("deadline", Some(process.deadline_at.to_string())),
        (
            "outcome",
            outcome.map(|outcome| print::word(&outcome.status)),
        ),
        (
            "exit code",
            outcome
                .and_then(|outcome| outcome.exit_code)
                .map(|code| code.to_string()),
        ),
        (
            "message",
            outcome
                .map(|outcome| outcome.message.clone())
                .filter(|text| !text.is_empty()),
        ),
        ("result", result.filter(|text| !text.is_empty())),
        (
            "not kept",
            (detail.progress_dropped > 0)
                .then(|| format!("{} pieces of output", detail.progress_dropped)),
        ),
    ]);
    if !detail.steps.is_empty() {
        text.push('\n');
        text.push_str(&steps(&detail.steps));
    }
    text
}

fn steps(steps: &[ProcessStep]) -> String {
    print::table(
        ["STEP", "NAME", "STATE", "DOES", "WITHIN", "UNDONE BY"],
        steps.iter().map(|step| {
            [
                step.step.to_string(),
                step.name.clone(),
                print::word(&step.state),
                format!("{} {}", step.operation, step.input),
                format!("{} s", step.timeout_seconds),
                print::or_dash(step.undone_by.as_ref()),
            ]
        }),
        "",
    )
}

/// Why a process is not running, in one answer, and what to do.
pub(super) fn why(detail: &ProcessDetail) -> String {
    let process = &detail.process;
    let id = process.id;
    let said = process.outcome.as_ref();
    let message = said.map_or("", |outcome| outcome.message.as_str());
    let (what, todo) = match (process.state, &process.waiting_on) {
        (_, Some(on)) => (
            format!("{}: {}", state(process), waits(on)),
            on.advice.clone(),
        ),
        (ProcessState::Succeeded, None) => ("it has succeeded".to_owned(), None),
        (ProcessState::Running | ProcessState::Leased, None) => (
            format!(
                "it is not waiting: step {} of {} is {} on its agent",
                process.step + 1,
                process.step_count,
                match process.undoing {
                    true => "being undone".to_owned(),
                    false => print::word(&process.state),
                }
            ),
            Some(format!("drover processes watch {id}")),
        ),
        (ProcessState::Failed | ProcessState::Cancelled, None) => (
            format!("it is over, {}: {message}", print::word(&process.state)),
            Some(after_end(process)),
        ),
        (_, None) => (format!("{}: it is about to go on", state(process)), None),
    };
    let mut text = format!("{}\n", print::harmless(&what));
    if let Some(todo) = todo {
        text.push_str(&format!("try: {}\n", print::harmless(&todo)));
    }
    text
}

fn waits(on: &WaitingOn) -> String {
    match on.eta_s {
        Some(seconds) if seconds > 0 => format!("{} (about {seconds} s)", on.detail),
        _ => on.detail.clone(),
    }
}

fn after_end(process: &Process) -> String {
    let id = process.id;
    let status = process.outcome.as_ref().map(|outcome| outcome.status);
    match (process.needs_attention, status) {
        (true, _) => format!(
            "look at the host of agent {}; then drover processes retry {id}, or leave it",
            process.agent
        ),
        (false, Some(OutcomeStatus::DeadlineExceeded)) => {
            format!("drover processes retry {id}, or drover processes clone {id}")
        }
        (false, Some(OutcomeStatus::Cancelled)) => {
            format!("to have it done after all: drover processes retry {id}")
        }
        (false, _) => format!("mend the cause, then: drover processes retry {id}"),
    }
}

/// What an order has led to.
pub(super) fn ordered(process: &Process) -> String {
    let id = process.id;
    let word = print::word(&process.state);
    match process.undoing && !process.state.is_terminal() {
        true => format!(
            "{id} is being undone (step {} of {}, {word}); only `drover processes cancel --force {id}` ends \
             that\n",
            process.step + 1,
            process.step_count
        ),
        false => format!("{id} is {word}\n"),
    }
}

/// Who did what to a process, and when.
pub(super) fn history(entries: &[HistoryEntry]) -> String {
    print::table(
        [
            "AT", "WHO", "WHAT", "FROM", "TO", "STEP", "ATTEMPT", "FENCE", "WHY",
        ],
        entries.iter().map(|entry| {
            let why = match (&entry.reason, &entry.detail) {
                (Some(reason), Some(detail)) => format!("{reason} ({detail})"),
                (Some(why), None) | (None, Some(why)) => why.clone(),
                (None, None) => String::new(),
            };
            [
                entry.at.to_string(),
                entry.actor.clone(),
                what(entry).to_owned(),
                print::or_dash(entry.from.as_ref()),
                print::or_dash(entry.to.as_ref()),
                print::or_dash(entry.step.map(|step| step + 1)),
                print::or_dash(entry.attempt),
                print::or_dash(entry.fence),
                why,
            ]
        }),
        "nothing is kept of its history",
    )
}

/// What was done, in a word.
fn what(entry: &HistoryEntry) -> &str {
    match entry.kind.as_str() {
        "process.created" => "made",
        "process.state" => "moved",
        "process.finished" => "ended",
        "pause.added" => "paused",
        "pause.removed" => "resumed",
        // Of a newer server.
        other => other,
    }
}

/// What a process would be and meet.
pub(super) fn dry_run(run: &DryRun) -> String {
    let permits: Vec<String> = run
        .permits
        .iter()
        .map(|permit| format!("{} {}", permit.scope, permit.key))
        .collect();
    let superseded: Vec<String> = run.supersedes.iter().map(ToString::to_string).collect();
    let mut text = print::facts(&[
        ("would be", Some(run.state.clone())),
        ("kind", Some(run.kind.clone())),
        ("tenant", Some(run.tenant.clone())),
        ("agent", Some(run.agent.to_string())),
        ("resource", run.resource.clone()),
        ("class", Some(print::word(&run.class))),
        ("attempts", Some(run.max_attempts.to_string())),
        ("deadline", Some(run.deadline_at.to_string())),
        ("permits", Some(permits.join(", "))),
        (
            "supersedes",
            (!superseded.is_empty()).then(|| superseded.join(", ")),
        ),
        ("meets", run.waiting_on.as_ref().map(|on| on.detail.clone())),
        (
            "waits",
            run.predicted_wait_s
                .map(|seconds| format!("about {seconds} s")),
        ),
    ]);
    text.push('\n');
    text.push_str(&steps(&run.steps));
    text.push_str("\nnothing was written\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn detail(more: &serde_json::Value) -> ProcessDetail {
        let mut value = json!({
            "id": "01900000-0000-7000-8000-000000000001", "kind": "exec", "tenant": "default",
            "agent": "01900000-0000-7000-8000-000000000002", "state": "ready", "step": 0,
            "step_count": 3, "needs_attention": false, "attempts": 1, "max_attempts": 3,
            "class": "normal", "created_at": "2026-11-24T09:30:00.000Z",
            "deadline_at": "2026-11-24T09:30:00.000Z", "input": {}, "progress_dropped": 0,
        });
        for (name, field) in more.as_object().unwrap() {
            value[name] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_empty_list_does_not_say_that_there_is_nothing_when_only_some_were_asked_for() {
        assert_eq!(list(&[], true), "no process fits these filters");
        assert!(list(&[], false).contains("start one with `drover run"));
    }

    #[test]
    fn why_is_one_answer_with_what_to_do() {
        let failed = |status: &str, attention: bool| {
            detail(&json!({
                "state": "failed", "needs_attention": attention,
                "outcome": {"status": status, "message": "no disk"},
            }))
        };
        let paused = detail(&json!({
            "state": "paused",
            "waiting_on": {"scope": "pause", "key": "tenant a", "detail": "ann paused the tenant a",
                "advice": "drover pauses remove tenant a"},
        }));
        let backoff = detail(&json!({
            "state": "backoff",
            "waiting_on": {"scope": "backoff", "key": "x", "detail": "attempt 1 failed", "eta_s": 7},
        }));
        let cases = [
            (paused, "ann paused", Some("drover pauses remove tenant a")),
            (backoff, "(about 7 s)", None),
            (
                failed("failed_permanent", false),
                "no disk",
                Some("processes retry"),
            ),
            (
                failed("interrupted", true),
                "no disk",
                Some("look at the host"),
            ),
            (failed("deadline_exceeded", false), "no disk", Some("clone")),
            (
                detail(&json!({"state": "running"})),
                "step 1 of 3 is running",
                Some("watch"),
            ),
            (
                detail(&json!({"state": "succeeded"})),
                "has succeeded",
                None,
            ),
            (
                detail(
                    &json!({"state": "cancelled", "outcome": {"status": "cancelled", "message": "x"}}),
                ),
                "it is over, cancelled",
                Some("after all: drover processes retry"),
            ),
            (
                detail(&json!({"state": "running", "undoing": true})),
                "step 1 of 3 is being undone",
                Some("watch"),
            ),
            (
                detail(&json!({"state": "backoff", "undoing": true,
                    "waiting_on": {"scope": "backoff", "key": "x", "detail": "failed"}})),
                "backoff, undoing: failed",
                None,
            ),
            (detail(&json!({})), "about to go on", None),
        ];
        for (process, says, todo) in cases {
            let text = why(&process);
            assert!(text.contains(says), "{text}");
            assert_eq!(text.contains("try: "), todo.is_some(), "{text}");
            assert!(text.contains(todo.unwrap_or_default()), "{text}");
        }
    }

    #[test]
    fn a_cancel_of_what_is_being_undone_says_what_ends_that() {
        let undoing = detail(&json!({"state": "running", "undoing": true}));
        let text = ordered(&undoing.process);
        assert!(
            text.contains("is being undone (step 1 of 3, running)"),
            "{text}"
        );
        assert!(text.contains("cancel --force 0190"), "{text}");
        // What could not be undone is over.
        let stuck = detail(&json!({"state": "failed", "undoing": true}));
        assert!(ordered(&stuck.process).ends_with("is failed\n"));
    }

    #[test]
    fn the_history_says_what_was_done_and_why_only_where_somebody_said() {
        let entry = |kind: &str, more: &serde_json::Value| {
            let mut value = json!({
                "sequence": 1, "at": "2026-11-24T09:30:00.000Z", "type": kind, "actor": "ann",
            });
            for (name, field) in more.as_object().unwrap() {
                value[name] = field.clone();
            }
            serde_json::from_value::<HistoryEntry>(value).unwrap()
        };
        let text = history(&[
            entry("process.created", &json!({"to": "ready"})),
            entry("pause.added", &json!({"reason": "not yet"})),
        ]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][2..], ["made", "-", "ready", "-", "-", "-"]);
        assert_eq!(
            lines[2][2..],
            ["paused", "-", "-", "-", "-", "-", "not", "yet"]
        );
    }

    #[test]
    fn what_must_not_be_missed_stands_in_the_list_and_steps_in_the_show() {
        let process = detail(&json!({
            "state": "failed", "needs_attention": true,
            "steps": [{"step": 0, "name": "define", "state": "undone", "operation": "exec",
                "input": {"a": 1}, "timeout_seconds": 60, "undone_by": "exec"}],
        }));
        assert!(list(std::slice::from_ref(&process.process), false).contains("failed, look!"));
        let text = show(&process);
        assert!(text.contains("define"), "{text}");
        assert!(text.contains("undone"), "{text}");
    }
}
