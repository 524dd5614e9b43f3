//! Kinds as they are written, and whether they can be meant.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::limits::{
    COMMAND_INPUT_BYTES_MAX, KIND_BYTES_MAX, OPERATION_DEADLINE_DEFAULT, RESOURCES_MAX,
};
use serde::Deserialize;
use serde_json::Value;

use super::{Field, Kind, KindOperation, KindStep, Origin, template};
use crate::process::{Class, STEPS_MAX};

/// The drivers that every build of the agent has; a kind may have the name of one.
const DRIVERS: [&str; 2] = ["exec", "simulated"];
/// Neither a step nor a process may take longer.
const TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const FIELDS_MAX: usize = 64;
const SUPERSEDES_MAX: usize = 16;
const ATTEMPTS_MAX: u32 = 100;
const DESCRIPTION_BYTES_MAX: usize = 1024;

/// A part of `[kinds]` that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct KindsError {
    /// Which key: `kinds.vm-start.steps[0].timeout`.
    pub key: String,
    /// What is wrong with it and how to mend it.
    pub problem: String,
}

/// What a field's value must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// A name that a program can take for nothing else: `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`.
    Name,
    /// Any text without control characters.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A JSON object.
    Object,
    /// A JSON array.
    Array,
}

impl FieldType {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Object => "object",
            Self::Array => "array",
        }
    }

    /// Why a value is not of this type, if it is not.
    pub(super) fn problem(self, value: &Value) -> Option<String> {
        let fits = match self {
            Self::Name => value.as_str().is_some_and(is_plain_name),
            Self::String => value
                .as_str()
                .is_some_and(|text| !text.chars().any(char::is_control)),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
        };
        let wanted = match self {
            Self::Name => {
                "a name of 1 to 128 characters: letters, digits, `_`, `.` and `-`, and no `-` or `.` first"
            }
            Self::String => "text without control characters",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Object => "a JSON object",
            Self::Array => "a JSON array",
        };
        (!fits).then(|| format!("must be {wanted}"))
    }
}

fn is_plain_name(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A file, of which nothing but the kinds is looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    kinds: BTreeMap<String, KindSpec>,
}

/// `[kinds.NAME]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindSpec {
    #[serde(default)]
    description: String,
    #[serde(default)]
    fields: BTreeMap<String, FieldSpec>,
    resource: Option<String>,
    class: Option<ClassName>,
    deadline: Option<String>,
    max_attempts: Option<u32>,
    #[serde(default)]
    supersedes: Vec<String>,
    steps: Vec<StepSpec>,
}

/// `fields.NAME = { type = "name", default = … }`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldSpec {
    #[serde(rename = "type")]
    kind: FieldType,
    default: Option<Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClassName {
    Interactive,
    Normal,
    Background,
}

/// `[[kinds.NAME.steps]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepSpec {
    name: String,
    operation: String,
    #[serde(default = "empty")]
    input: Value,
    timeout: Option<String>,
    class: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    compensate: Option<OperationSpec>,
}

/// `compensate = { operation = …, input = …, timeout = … }`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationSpec {
    operation: String,
    #[serde(default = "empty")]
    input: Value,
    timeout: Option<String>,
}

fn empty() -> Value {
    Value::Object(serde_json::Map::new())
}

/// Reads `[kinds]` of a TOML text.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, KindSpec>, KindsError> {
    let reader = toml::de::Deserializer::parse(text).map_err(|error| KindsError {
        key: "kinds".to_owned(),
        problem: format!("the file is not TOML: {}", first_line(error.message())),
    })?;
    let file: File = serde_path_to_error::deserialize(reader).map_err(|error| {
        let key = error.path().to_string();
        KindsError {
            key: if key == "." { "kinds".to_owned() } else { key },
            problem: first_line(error.inner().message()).to_owned(),
        }
    })?;
    Ok(file.kinds)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("not readable")
}

/// Where in `[kinds]` the check is.
struct At<'a>(&'a str);

impl At<'_> {
    fn error(&self, key: &str, problem: impl Into<String>) -> KindsError {
        let dot = if key.is_empty() { "" } else { "." };
        KindsError {
            key: format!("{}{dot}{key}", self.0),
            problem: problem.into(),
        }
    }
}

/// Checks one kind. `names` are those of all kinds.
pub(super) fn check(
    name: &str,
    origin: Origin,
    spec: KindSpec,
    names: &[String],
) -> Result<Kind, KindsError> {
    let path = format!("kinds.{name}");
    let at = At(&path);
    if !is_kind(name) {
        return Err(at.error("", kind_grammar("the name of a kind")));
    }
    if spec.description.len() > DESCRIPTION_BYTES_MAX {
        let problem = format!("has more than {DESCRIPTION_BYTES_MAX} bytes");
        return Err(at.error("description", problem));
    }
    if spec
        .max_attempts
        .is_some_and(|max| !(1..=ATTEMPTS_MAX).contains(&max))
    {
        return Err(at.error("max_attempts", format!("must be 1 to {ATTEMPTS_MAX}")));
    }
    let deadline = spec.deadline.as_deref();
    let deadline = deadline.map(duration).transpose();
    check_supersedes(&at, &spec)?;
    let mut fields = declared(&at, spec.fields)?;
    let given = !fields.is_empty();
    let mut known = Names {
        fields: &mut fields,
        given,
    };
    if let Some(text) = &spec.resource {
        known.take(&at, "resource", template::fields_of_text(text))?;
    }
    let steps = steps(&at, spec.steps, names, &mut known)?;
    Ok(Kind {
        name: name.to_owned(),
        description: spec.description,
        origin,
        fields,
        resource: spec.resource,
        class: match spec.class {
            Some(ClassName::Interactive) => Class::Interactive,
            Some(ClassName::Background) => Class::Background,
            Some(ClassName::Normal) | None => Class::Normal,
        },
        deadline: deadline.map_err(|problem| at.error("deadline", problem))?,
        max_attempts: spec.max_attempts,
        supersedes: spec.supersedes,
        steps,
    })
}

fn check_supersedes(at: &At<'_>, spec: &KindSpec) -> Result<(), KindsError> {
    if spec.supersedes.len() > SUPERSEDES_MAX {
        return Err(at.error(
            "supersedes",
            format!("names more than {SUPERSEDES_MAX} kinds"),
        ));
    }
    if let Some(bad) = spec.supersedes.iter().find(|kind| !is_kind(kind)) {
        let problem = format!("`{bad}`: {}", kind_grammar("each"));
        return Err(at.error("supersedes", problem));
    }
    if !spec.supersedes.is_empty() && spec.resource.is_none() {
        return Err(at.error(
            "supersedes",
            "needs `resource`: a process supersedes others on the same resource only",
        ));
    }
    Ok(())
}

fn declared(
    at: &At<'_>,
    specs: BTreeMap<String, FieldSpec>,
) -> Result<BTreeMap<String, Field>, KindsError> {
    if specs.len() > FIELDS_MAX {
        return Err(at.error("fields", format!("has more than {FIELDS_MAX}")));
    }
    let mut fields = BTreeMap::new();
    for (name, spec) in specs {
        let key = format!("fields.{name}");
        if !template::is_name(&name) {
            let problem =
                "names of fields are 1 to 64 characters of a-z, 0-9 and `_`, a letter first";
            return Err(at.error(&key, problem));
        }
        if let Some(problem) = spec
            .default
            .as_ref()
            .and_then(|value| spec.kind.problem(value))
        {
            return Err(at.error(&format!("{key}.default"), problem));
        }
        let field = Field {
            kind: Some(spec.kind),
            default: spec.default,
        };
        fields.insert(name, field);
    }
    Ok(fields)
}

/// The fields that templates may name.
struct Names<'a> {
    fields: &'a mut BTreeMap<String, Field>,
    /// They were declared: a template names no other.
    given: bool,
}

impl Names<'_> {
    fn take(
        &mut self,
        at: &At<'_>,
        key: &str,
        found: Result<Vec<String>, String>,
    ) -> Result<(), KindsError> {
        for name in found.map_err(|problem| at.error(key, problem))? {
            if self.fields.contains_key(&name) {
                continue;
            }
            if self.given {
                let problem = format!("names `${{{name}}}`, which is not in `fields`");
                return Err(at.error(key, problem));
            }
            if self.fields.len() >= FIELDS_MAX {
                let problem = format!("the kind has more than {FIELDS_MAX} fields");
                return Err(at.error(key, problem));
            }
            let any = Field {
                kind: None,
                default: None,
            };
            self.fields.insert(name, any);
        }
        Ok(())
    }
}

fn steps(
    at: &At<'_>,
    specs: Vec<StepSpec>,
    names: &[String],
    fields: &mut Names<'_>,
) -> Result<Vec<KindStep>, KindsError> {
    if specs.is_empty() || specs.len() > STEPS_MAX {
        let problem = format!("has {} steps; a kind has 1 to {STEPS_MAX}", specs.len());
        return Err(at.error("steps", problem));
    }
    let mut steps: Vec<KindStep> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.into_iter().enumerate() {
        let path = format!("{}.steps[{index}]", at.0);
        let at = At(&path);
        if !is_kind(&spec.name) {
            return Err(at.error("name", kind_grammar("a step's name")));
        }
        if steps.iter().any(|step| step.name == spec.name) {
            let problem = format!(
                "`{}` is there twice; each step has a name of its own",
                spec.name
            );
            return Err(at.error("name", problem));
        }
        if spec.class.as_deref().is_some_and(|class| !is_kind(class)) {
            return Err(at.error("class", kind_grammar("a step's class")));
        }
        if spec.resources.len() > RESOURCES_MAX {
            return Err(at.error("resources", format!("names more than {RESOURCES_MAX}")));
        }
        for text in &spec.resources {
            fields.take(&at, "resources", template::fields_of_text(text))?;
        }
        let work = OperationSpec {
            operation: spec.operation,
            input: spec.input,
            timeout: spec.timeout,
        };
        steps.push(KindStep {
            name: spec.name,
            work: operation(&at, work, names, fields)?,
            class: spec.class,
            resources: spec.resources,
            compensate: spec
                .compensate
                .map(|undo| {
                    let path = format!("{path}.compensate");
                    operation(&At(&path), undo, names, fields)
                })
                .transpose()?,
        });
    }
    Ok(steps)
}

fn operation(
    at: &At<'_>,
    spec: OperationSpec,
    names: &[String],
    fields: &mut Names<'_>,
) -> Result<KindOperation, KindsError> {
    if !is_kind(&spec.operation) {
        return Err(at.error("operation", kind_grammar("a driver's name")));
    }
    if names.contains(&spec.operation) && !DRIVERS.contains(&spec.operation.as_str()) {
        let problem = format!(
            "`{}` is a kind itself: a step runs a driver, so that no kind can lead back to itself",
            spec.operation
        );
        return Err(at.error("operation", problem));
    }
    if spec.input.to_string().len() > COMMAND_INPUT_BYTES_MAX {
        let problem = format!("has more than {COMMAND_INPUT_BYTES_MAX} bytes");
        return Err(at.error("input", problem));
    }
    fields.take(at, "input", template::fields(&spec.input))?;
    let timeout = spec.timeout.as_deref().map(duration).transpose();
    Ok(KindOperation {
        operation: spec.operation,
        input: spec.input,
        timeout: timeout
            .map_err(|problem| at.error("timeout", problem))?
            .unwrap_or(OPERATION_DEADLINE_DEFAULT),
    })
}

fn is_kind(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    !name.is_empty() && name.len() <= KIND_BYTES_MAX && name.chars().all(valid)
}

fn kind_grammar(what: &str) -> String {
    format!("{what} must be 1 to {KIND_BYTES_MAX} characters of a-z, 0-9, `_`, `.` and `-`")
}

/// `30s`, `15m`, `2h`, `1d`: whole numbers from one second to 30 days.
fn duration(text: &str) -> Result<Duration, String> {
    let wanted = || format!("`{text}` is not a time from 1s to 30d, such as 30s, 15m, 2h or 1d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 24 * 3600,
        _ => return Err(wanted()),
    };
    let number: u64 = digits.parse().map_err(|_| wanted())?;
    let time = Duration::from_secs(number.checked_mul(unit).ok_or_else(wanted)?);
    match time >= Duration::from_secs(1) && time <= TIME_MAX {
        true => Ok(time),
        false => Err(wanted()),
    }
}
