//! Process kinds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::processes::Class;

/// A kind of process that is declared.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessKind {
    /// Its name: the `kind` of a new process.
    pub name: String,
    /// For people.
    pub description: String,
    /// Part of this build, and not of the deployment's configuration.
    pub built_in: bool,
    /// The fields of its input.
    pub fields: Vec<KindField>,
    /// What it works on: `${field}` stands for the input's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Who goes first on a busy agent, unless the request says so.
    pub class: Class,
    /// It is over so long after its creation, unless the request says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// Attempts at each step, unless the request says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Kinds whose waiting processes on the same resource it makes needless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<String>,
    /// What is done, in order.
    pub steps: Vec<KindStep>,
}

/// A field of a kind's input.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct KindField {
    /// Its name.
    pub name: String,
    /// `name`, `string`, `integer`, `number`, `boolean`, `object`, `array`, or `any`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The input must have it.
    pub required: bool,
    /// What it is when the input does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub default: Option<serde_json::Value>,
}

/// A step of a kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct KindStep {
    /// Its name.
    pub name: String,
    /// What is done.
    #[serde(flatten)]
    pub work: KindOperation,
    /// What it weighs on the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Shared things that it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// What undoes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<KindOperation>,
}

/// An operation of a kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct KindOperation {
    /// The driver.
    pub operation: String,
    /// Its input: `${field}` stands for the process's.
    #[schema(value_type = Value)]
    pub input: serde_json::Value,
    /// It has so long.
    pub timeout_seconds: u64,
}
