//! `/v1/process-batches`

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};

use super::process_input::{self, Looked};
use super::process_view::{created, describe};
use crate::api::Api;
use crate::api::access::Caller;
use crate::api::extract::Body;
use crate::api::model::processes::{BatchItem, BatchResult, CreateProcessBatch, ProcessBatch};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::{self, UnixMs};
use crate::store::processes::NewProcess;

/// Processes in a batch.
const ITEMS_MAX: usize = 1000;
/// Bytes in a batch's body.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Start many processes
///
/// Each item stands or falls by itself and has its own idempotency key; `results` are in the order
/// of the request. The answer is 200 however the items fared.
#[utoipa::path(
    post,
    path = "/v1/process-batches",
    tag = "processes",
    operation_id = "create_process_batch",
    request_body = CreateProcessBatch,
    responses(
        (status = 200, description = "What became of each item.", body = ProcessBatch),
        (status = 400, description = "The batch itself is not valid; nothing was made."),
        (status = 413, description = "The body is larger than 8 MiB."),
        (status = 415, description = "The body is not JSON."),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Permit(permit): Permit,
    Body(batch): Body<CreateProcessBatch, BATCH_BYTES_MAX>,
) -> ApiResult<Json<ProcessBatch>> {
    let count = batch.processes.len();
    if count == 0 || count > ITEMS_MAX {
        return Err(ApiError::field(
            "processes",
            format!("has {count} items; it must have 1 to {ITEMS_MAX}"),
        ));
    }
    let now = clock::now();
    let mut looked = Looked::default();
    let mut results: Vec<Option<BatchResult>> = Vec::with_capacity(count);
    let mut places = Vec::new();
    let mut creates = Vec::new();
    for (at, item) in batch.processes.iter().enumerate() {
        match check(&api, &caller, item, now, &mut looked, at).await {
            Ok(process) => {
                creates.push(process);
                places.push(at);
                results.push(None);
            }
            Err(error) => results.push(Some(failed(error))),
        }
    }
    if !creates.is_empty() {
        let creations = api.engine.create(creates).await?;
        for (at, creation) in places.into_iter().zip(creations) {
            let field = format!("processes[{at}].process.agent");
            results[at] = Some(match created(creation, &field) {
                Ok((record, new)) => BatchResult {
                    status: if new { 201 } else { 200 },
                    process: Some(describe(record)),
                    problem: None,
                },
                Err(error) => failed(error),
            });
        }
    }
    drop(permit);
    let unanswered = || {
        failed(ApiError::new(
            Kind::Internal,
            "Repeat this item with its key.",
        ))
    };
    Ok(Json(ProcessBatch {
        results: results
            .into_iter()
            .map(|result| result.unwrap_or_else(unanswered))
            .collect(),
    }))
}

/// Room for one batch, taken before its body is read.
pub(super) struct Permit(tokio::sync::OwnedSemaphorePermit);

impl axum::extract::FromRequestParts<Arc<Api>> for Permit {
    type Rejection = ApiError;

    async fn from_request_parts(
        _: &mut axum::http::request::Parts,
        api: &Arc<Api>,
    ) -> Result<Self, ApiError> {
        let permits = Arc::clone(&api.batches);
        permits.try_acquire_owned().map(Self).map_err(|_| {
            ApiError::new(
                Kind::Unavailable,
                "Too many batches are on their way; try again in a second.",
            )
            .retry_after(std::time::Duration::from_secs(1))
        })
    }
}

async fn check(
    api: &Api,
    caller: &Caller,
    item: &BatchItem,
    now: UnixMs,
    looked: &mut Looked,
    at: usize,
) -> ApiResult<NewProcess> {
    let field = format!("processes[{at}].idempotency_key");
    let key = process_input::key(caller, &field, &item.idempotency_key, &item.process)?;
    let prefix = format!("processes[{at}].process.");
    let process = process_input::check(api, &item.process, key, now, looked, &prefix).await?;
    Ok(NewProcess {
        actor: Some(process_input::by(caller)),
        ..process
    })
}

fn failed(error: ApiError) -> BatchResult {
    BatchResult {
        status: error.status(),
        process: None,
        problem: Some(error.into_problem()),
    }
}
