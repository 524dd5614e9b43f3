//! Join tokens, which let agents in, and API tokens, which let people and programs in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;
use super::agents::GroupRef;

/// Makes join tokens.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTokens {
    /// Agents that join with them go into this group (name or id). Absent: each into the group
    /// with the fewest agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How many, 1–1000. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// How long they can be used, 1 s – 7 days. Default 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// New join tokens: the only time that their text is shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedTokens {
    /// The tokens.
    pub tokens: Vec<CreatedToken>,
}

/// A new join token with its text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// What the agent is given: `drover1.…`. Shown once.
    pub token: String,
    /// The rest.
    #[serde(flatten)]
    pub info: Token,
}

/// A join token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name, for lists and deletion.
    pub id: Uuid,
    /// The group that it leads to; absent: the emptiest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRef>,
    /// The agent whose key it replaces; absent: it makes a new agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekeys: Option<Uuid>,
    /// Whether it can still be used.
    pub state: TokenState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// When it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
    /// The agent that it let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Uuid>,
    /// From where it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_from: Option<String>,
}

/// Whether a join token can still be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It can.
    Valid,
    /// It was.
    Used,
    /// Too late.
    Expired,
}

/// Makes a token that gives one agent a new key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rekey {
    /// How long it can be used, 1 s – 7 days. Default 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// What the holder of an API token may do. Each role may do what the ones below it may.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// And run processes.
    Operator,
    /// And decide who gets in: groups, join tokens, API tokens, revoking.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Makes an API token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApiToken {
    /// For people: whose it is. 1–128 characters.
    #[schema(example = "ci")]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// It stops working after this long, at most 10 years; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A new API token with its text: the only time that it is shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiToken {
    /// What goes into `Authorization: Bearer …`: `drvapi_…`. Shown once.
    pub token: String,
    /// The rest.
    #[serde(flatten)]
    pub info: ApiToken,
}

/// An API token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// Its name, for lists and deletion.
    pub id: Uuid,
    /// For people: whose it is.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to within a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}
