//! `/v1/kinds`

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::api::Api;
use crate::api::extract::{Params, clip};
use crate::api::model::Page;
use crate::api::model::kinds::{KindField, KindOperation, KindStep, ProcessKind};
use crate::api::model::processes::Class;
use crate::api::page::{self, PageParams};
use crate::api::problem::{ApiError, ApiResult};
use crate::kinds::{self, Kind, Origin};
use crate::process;

/// List kinds
///
/// Those that are declared, by name. Any other `kind` of a process is the name of a driver.
#[utoipa::path(
    get,
    path = "/v1/kinds",
    tag = "kinds",
    operation_id = "list_kinds",
    params(PageParams),
    responses(
        (status = 200, description = "A page of kinds.", body = Page<ProcessKind>),
        (status = 400, description = "A parameter is not valid."),
    )
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<Page<ProcessKind>>> {
    let (size, after) = params.read::<String>("kinds")?;
    let rows: Vec<&Kind> = api
        .kinds
        .iter()
        .filter(|kind| after.as_ref().is_none_or(|after| kind.name > *after))
        .collect();
    let name = |kind: &&Kind| kind.name.clone();
    Ok(Json(page::of("kinds", size, rows, name, describe)))
}

/// Show a kind
#[utoipa::path(
    get,
    path = "/v1/kinds/{name}",
    tag = "kinds",
    operation_id = "get_kind",
    params(("name" = String, Path, description = "One that `GET /v1/kinds` lists.")),
    responses(
        (status = 200, description = "The kind.", body = ProcessKind),
        (status = 404, description = "No such kind is declared."),
    )
)]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> ApiResult<Json<ProcessKind>> {
    let Path(name) = path.map_err(|_| ApiError::field("name", "is not valid UTF-8"))?;
    let kind = api.kinds.get(&name);
    let kind = kind.ok_or_else(|| ApiError::not_found("kind", &clip(&name), "/v1/kinds"))?;
    Ok(Json(describe(kind)))
}

fn describe(kind: &Kind) -> ProcessKind {
    ProcessKind {
        name: kind.name.clone(),
        description: kind.description.clone(),
        built_in: kind.origin == Origin::BuiltIn,
        fields: kind
            .fields
            .iter()
            .map(|(name, field)| KindField {
                name: name.clone(),
                kind: field
                    .kind
                    .map_or("any", kinds::FieldType::as_str)
                    .to_owned(),
                required: field.default.is_none(),
                default: field.default.clone(),
            })
            .collect(),
        resource: kind.resource.clone(),
        class: class(kind.class),
        deadline_seconds: kind.deadline.map(|time| time.as_secs()),
        max_attempts: kind.max_attempts,
        supersedes: kind.supersedes.clone(),
        steps: kind
            .steps
            .iter()
            .map(|step| KindStep {
                name: step.name.clone(),
                work: operation(&step.work),
                class: step.class.clone(),
                resources: step.resources.clone(),
                compensate: step.compensate.as_ref().map(operation),
            })
            .collect(),
    }
}

fn operation(operation: &kinds::KindOperation) -> KindOperation {
    KindOperation {
        operation: operation.operation.clone(),
        input: operation.input.clone(),
        timeout_seconds: operation.timeout.as_secs(),
    }
}

/// The API's word for a class.
pub(super) fn class(class: process::Class) -> Class {
    match class {
        process::Class::Interactive => Class::Interactive,
        process::Class::Normal => Class::Normal,
        process::Class::Background => Class::Background,
    }
}
