//! `drover kinds …`

use std::collections::BTreeSet;

use clap::Subcommand;
use control::api::model::kinds::{KindOperation, ProcessKind};

use super::client::Client;
use super::{Output, print};
use crate::fault::{Exit, Fault};

/// A deployment has no more.
const KINDS_MAX: usize = 1000;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List the kinds of processes that are declared
    List,
    /// Show what a kind takes and does
    Show {
        /// Its name
        kind: String,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List => {
            let kinds: Vec<ProcessKind> = client.list(&["v1", "kinds"], &[], KINDS_MAX).await?;
            print::value(output, &kinds, |kinds| list(kinds))
        }
        Command::Show { kind } => {
            let kind: ProcessKind = client.get(&["v1", "kinds", &kind], &[]).await?;
            print::value(output, &kind, show)
        }
    }
}

fn list(kinds: &[ProcessKind]) -> String {
    print::table(
        ["NAME", "FROM", "DRIVERS", "FIELDS", "STEPS", "RESOURCE"],
        kinds.iter().map(|kind| {
            let fields = kind.fields.iter().map(|field| match field.required {
                true => field.name.clone(),
                false => format!("[{}]", field.name),
            });
            let steps = kind.steps.iter().map(|step| step.name.as_str());
            [
                kind.name.clone(),
                origin(kind).to_owned(),
                drivers(kind).join(" "),
                fields.collect::<Vec<_>>().join(" "),
                steps.collect::<Vec<_>>().join(" > "),
                print::or_dash(kind.resource.as_ref()),
            ]
        }),
        "no kinds are declared",
    )
}

/// What an agent must have: for the steps, and for what undoes them.
fn drivers(kind: &ProcessKind) -> Vec<String> {
    let steps = kind.steps.iter();
    let operations = steps.flat_map(|step| [Some(&step.work), step.compensate.as_ref()]);
    let names = operations.flatten().map(|work| work.operation.clone());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

fn origin(kind: &ProcessKind) -> &'static str {
    if kind.built_in {
        "built-in"
    } else {
        "configured"
    }
}

fn show(kind: &ProcessKind) -> String {
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join(", "));
    let mut text = print::facts(&[
        ("name", Some(kind.name.clone())),
        ("from", Some(origin(kind).to_owned())),
        (
            "description",
            Some(kind.description.clone()).filter(|text| !text.is_empty()),
        ),
        ("drivers", list(&drivers(kind))),
        ("resource", kind.resource.clone()),
        ("class", Some(print::word(&kind.class))),
        (
            "deadline",
            kind.deadline_seconds.map(|seconds| format!("{seconds} s")),
        ),
        ("attempts", kind.max_attempts.map(|max| max.to_string())),
        ("supersedes", list(&kind.supersedes)),
    ]);
    text.push('\n');
    text.push_str(&print::table(
        ["FIELD", "TYPE", "DEFAULT"],
        kind.fields.iter().map(|field| {
            let default = field.default.as_ref().map(ToString::to_string);
            [
                field.name.clone(),
                field.kind.clone(),
                default.unwrap_or_else(|| "must be given".to_owned()),
            ]
        }),
        "it takes no fields\n",
    ));
    text.push('\n');
    text.push_str(&print::table(
        ["STEP", "DOES", "WITHIN", "CLASS", "UNDONE BY"],
        kind.steps.iter().map(|step| {
            [
                step.name.clone(),
                operation(&step.work),
                format!("{} s", step.work.timeout_seconds),
                print::or_dash(step.class.as_ref()),
                print::or_dash(step.compensate.as_ref().map(operation)),
            ]
        }),
        "",
    ));
    text
}

fn operation(operation: &KindOperation) -> String {
    format!("{} {}", operation.operation, operation.input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_shown_with_what_it_takes_does_and_undoes() {
        let kind: ProcessKind = serde_json::from_value(serde_json::json!({
            "name": "vm-start", "description": "Starts a machine.", "built_in": true,
            "fields": [
                {"name": "vm", "type": "name", "required": true},
                {"name": "size", "type": "integer", "required": false, "default": 3},
            ],
            "resource": "vm/${vm}", "class": "interactive", "supersedes": ["vm-stop"],
            "steps": [{
                "name": "start", "operation": "exec", "input": {"program": "virsh"},
                "timeout_seconds": 120,
                "compensate": {"operation": "undo", "input": {}, "timeout_seconds": 60},
            }],
        }))
        .unwrap();
        let listed = list(std::slice::from_ref(&kind));
        let row = "vm-start  built-in  exec undo  vm [size]";
        assert!(listed.contains(row), "{listed}");
        let text = show(&kind);
        for words in [
            "vm/${vm}",
            "must be given",
            "exec {\"program\":\"virsh\"}",
            "120 s",
            "undo {}",
            "exec, undo",
            "supersedes",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }
}
