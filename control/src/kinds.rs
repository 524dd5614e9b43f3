//! Process kinds: what an operator declares once, and everybody starts by name.
//!
//! ```text
//!   [kinds.vm-start]  ─ checked at the start ─▶ Kind ─ resolve(input) ─▶ Plan, stored with the process
//!   resource = "vm/${vm}"                        ${vm} from the input: "web-1"
//! ```
//!
//! A kind that is not declared is the name of a driver and has one step; a declared name goes before
//! a driver of the same name. Kinds for a machine's life are built in (`kinds/builtin.toml`); a
//! declaration of the same name replaces one. Everything is decided when a process is created: a
//! later change of configuration changes no process that there is.

mod spec;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::limits::{COMMAND_INPUT_BYTES_MAX, NAME_BYTES_MAX};
use serde_json::Value;

use crate::process::{Class, Plan, PlanOperation, PlanStep};
pub use spec::{FieldType, KindsError};
use template::Values;

/// Kinds that one deployment declares at most, the built-in ones among them.
pub const KINDS_MAX: usize = 256;

const BUILT_IN: &str = include_str!("kinds/builtin.toml");

/// Where a kind comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Part of this build.
    BuiltIn,
    /// The deployment's configuration.
    Configured,
}

/// A kind that has been checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Kind {
    /// Its name: `[a-z0-9_.-]{1,64}`.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where it comes from.
    pub origin: Origin,
    /// The fields of its input.
    pub fields: BTreeMap<String, Field>,
    /// What it works on, as a template.
    pub resource: Option<String>,
    /// Who goes first on a busy agent, unless the request says so.
    pub class: Class,
    /// It is over so long after its creation, unless the request says so.
    pub deadline: Option<Duration>,
    /// Attempts at each step, unless the request says so.
    pub max_attempts: Option<u32>,
    /// Kinds whose waiting processes on the same resource it makes needless.
    pub supersedes: Vec<String>,
    /// What is done, in order.
    pub steps: Vec<KindStep>,
}

/// A field of a kind's input.
#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    /// What it must be; `None`: whatever its places take.
    pub kind: Option<FieldType>,
    /// What it is when the input does not name it; `None`: it must.
    pub default: Option<Value>,
}

/// A step of a kind.
#[derive(Clone, PartialEq, Debug)]
pub struct KindStep {
    /// For people.
    pub name: String,
    /// What is done.
    pub work: KindOperation,
    /// What it weighs on the agent.
    pub class: Option<String>,
    /// Shared things that it uses, as templates.
    pub resources: Vec<String>,
    /// What undoes it.
    pub compensate: Option<KindOperation>,
}

/// An operation of a kind.
#[derive(Clone, PartialEq, Debug)]
pub struct KindOperation {
    /// The driver.
    pub operation: String,
    /// Its input, as a template.
    pub input: Value,
    /// It has so long.
    pub timeout: Duration,
}

/// What a kind makes of an input.
#[derive(Clone, PartialEq, Debug)]
pub struct Resolved {
    /// The steps.
    pub plan: Plan,
    /// What it works on.
    pub resource: Option<String>,
}

/// A field of an input that a kind cannot use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{field}`: {detail}")]
pub struct InputError {
    /// `input`, or `input.NAME`.
    pub field: String,
    /// What is wrong with it and how to mend it.
    pub detail: String,
}

impl InputError {
    fn of(name: &str, detail: impl Into<String>) -> Self {
        Self {
            field: format!("input.{name}"),
            detail: detail.into(),
        }
    }
}

/// The kinds of a deployment. Clones share them.
#[derive(Clone, PartialEq, Debug)]
pub struct Kinds(Arc<BTreeMap<String, Kind>>);

impl Default for Kinds {
    /// The built-in ones.
    fn default() -> Self {
        Self::built_in().unwrap_or_else(|error| {
            // A test reads them: this does not happen.
            tracing::error!(%error, "the built-in kinds cannot be read");
            Self(Arc::default())
        })
    }
}

impl Kinds {
    /// The built-in kinds alone.
    ///
    /// # Errors
    /// A defect of this build; a test keeps it from happening.
    pub fn built_in() -> Result<Self, KindsError> {
        Self::declare("")
    }

    /// The built-in kinds and those under `[kinds]` of a TOML text, whose other parts are not looked
    /// at. A declaration replaces a built-in kind of its name.
    ///
    /// # Errors
    /// [`KindsError`] names the key that cannot be used.
    pub fn declare(toml: &str) -> Result<Self, KindsError> {
        let mut specs: BTreeMap<String, (Origin, spec::KindSpec)> = spec::parse(BUILT_IN)?
            .into_iter()
            .map(|(name, spec)| (name, (Origin::BuiltIn, spec)))
            .collect();
        let configured = spec::parse(toml)?.into_iter();
        specs.extend(configured.map(|(name, spec)| (name, (Origin::Configured, spec))));
        if specs.len() > KINDS_MAX {
            return Err(KindsError {
                key: "kinds".to_owned(),
                problem: format!(
                    "there are {}; at most {KINDS_MAX} can be declared",
                    specs.len()
                ),
            });
        }
        let names: Vec<String> = specs.keys().cloned().collect();
        let kinds = specs.into_iter().map(|(name, (origin, spec))| {
            let kind = spec::check(&name, origin, spec, &names)?;
            Ok((name, kind))
        });
        Ok(Self(Arc::new(kinds.collect::<Result<_, KindsError>>()?)))
    }

    /// The kind with this name, if it is declared.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.0.get(name)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.values()
    }
}

impl Kind {
    /// Fills the kind's templates from an input.
    ///
    /// # Errors
    /// [`InputError`] names the field that is missing, not known, or of the wrong type.
    pub fn resolve(&self, input: &Value) -> Result<Resolved, InputError> {
        let values = self.values(input)?;
        let steps = self.steps.iter().map(|step| {
            let undo = step.compensate.as_ref();
            let resources = step.resources.iter();
            Ok(PlanStep {
                name: step.name.clone(),
                work: operation(&step.work, &values, &step.name)?,
                class: step.class.clone(),
                resources: resources
                    .map(|text| resource(text, &values))
                    .collect::<Result<_, _>>()?,
                undo: undo
                    .map(|undo| operation(undo, &values, &step.name))
                    .transpose()?,
            })
        });
        Ok(Resolved {
            plan: Plan {
                steps: steps.collect::<Result<_, _>>()?,
            },
            resource: self
                .resource
                .as_ref()
                .map(|text| resource(text, &values))
                .transpose()?,
        })
    }

    /// Whether one of its steps is work of this sort.
    pub fn has_work(&self, class: &str) -> bool {
        let mut classes = self.steps.iter().filter_map(|step| step.class.as_deref());
        classes.any(|of| of == class)
    }

    /// The input's fields, checked, with what is left out.
    fn values(&self, input: &Value) -> Result<Values, InputError> {
        let Value::Object(given) = input else {
            return Err(InputError {
                field: "input".to_owned(),
                detail: format!(
                    "the kind `{}` takes a JSON object with {}",
                    self.name,
                    self.named_fields()
                ),
            });
        };
        if let Some(stranger) = given.keys().find(|name| !self.fields.contains_key(*name)) {
            let name: String = stranger.chars().take(64).collect();
            let detail = format!(
                "the kind `{}` has no such field; it takes {}",
                self.name,
                self.named_fields()
            );
            return Err(InputError::of(&name, detail));
        }
        let mut values = Values::new();
        for (name, field) in &self.fields {
            let value = match (given.get(name), &field.default) {
                (Some(value), _) => {
                    if let Some(problem) = field.kind.and_then(|kind| kind.problem(value)) {
                        return Err(InputError::of(name, problem));
                    }
                    value.clone()
                }
                (None, Some(default)) => default.clone(),
                (None, None) => {
                    let detail = format!("is missing; the kind `{}` needs it", self.name);
                    return Err(InputError::of(name, detail));
                }
            };
            values.insert(name.clone(), value);
        }
        Ok(values)
    }

    fn named_fields(&self) -> String {
        if self.fields.is_empty() {
            return "no fields".to_owned();
        }
        let names: Vec<String> = self.fields.keys().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }
}

fn operation(
    operation: &KindOperation,
    values: &Values,
    step: &str,
) -> Result<PlanOperation, InputError> {
    let input = template::fill(&operation.input, values)?.to_string();
    if input.len() > COMMAND_INPUT_BYTES_MAX {
        return Err(InputError {
            field: "input".to_owned(),
            detail: format!(
                "makes {} bytes for the step `{step}`; at most {COMMAND_INPUT_BYTES_MAX} reach an agent",
                input.len()
            ),
        });
    }
    Ok(PlanOperation {
        operation: operation.operation.clone(),
        input,
        timeout: operation.timeout,
    })
}

fn resource(text: &str, values: &Values) -> Result<String, InputError> {
    let (filled, field) = template::fill_text(text, values)?;
    if filled.is_empty() || filled.len() > NAME_BYTES_MAX || filled.chars().any(char::is_control) {
        return Err(InputError {
            field: field.map_or("input".to_owned(), |name| format!("input.{name}")),
            detail: format!(
                "makes a resource of {} bytes from `{text}`; it must be 1 to {NAME_BYTES_MAX} bytes of \
                 text without control characters",
                filled.len()
            ),
        });
    }
    Ok(filled)
}
