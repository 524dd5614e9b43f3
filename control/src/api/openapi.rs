//! The OpenAPI document: what the handlers say about themselves, completed from the table of
//! routes: security, and the problems that any route may answer with.

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Ref, RefOr, ResponseBuilder, path::HttpMethod, path::OperationBuilder,
};

use super::access::{Access, ROUTES};
use super::model::access::Role;
use super::model::{FieldProblem, Problem};
use super::problem::PROBLEM_JSON;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Drover",
        description = "Holds a fleet of hypervisors on persistent sessions and runs durable \
                       processes on them, no faster than they can take it.\n\nEvery error is \
                       `application/problem+json` (RFC 9457); decide on `type` and `retryable`, \
                       show `detail`. Unknown fields in a request are refused. Lists are read page \
                       by page with `page_token`.\n\nWhere the store has replicas, reads may show what was so a \
                       few seconds ago, and the answer to a write has the header `Drover-Position`: who sends it \
                       back with a read reads what was written. `Drover-Position: latest` reads what is so now, as \
                       after an event; an answer has it where nobody could say how far the store was.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Problem, FieldProblem)),
    tags(
        (name = "processes", description = "Durable work on agents."),
        (name = "kinds", description = "What processes can be made by name."),
        (name = "pauses", description = "What is not to be started."),
        (name = "limits", description = "How much may be at work at once."),
        (name = "batches", description = "One action on many processes."),
        (name = "dead-letters", description = "What has failed and waits for people."),
        (name = "events", description = "What happened, as it happens."),
        (name = "webhooks", description = "Programs that are told what happens."),
        (name = "agents", description = "Hypervisors' agents."),
        (name = "agent-servers", description = "Agent servers, where there are several."),
        (name = "groups", description = "Groups of agents."),
        (name = "tokens", description = "Join tokens, which let agents in."),
        (name = "api-tokens", description = "API tokens, which let people and programs in."),
        (name = "server", description = "The server itself."),
    )
)]
struct Document;

/// The document without its paths.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// Completes the document and writes it as JSON.
pub(super) fn finish(mut document: utoipa::openapi::OpenApi) -> Bytes {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("drvapi_…")
        .description(Some(
            "An API token. The first one is in `admin.token` in the server's data directory.",
        ))
        .build();
    document
        .components
        .get_or_insert_default()
        .add_security_scheme("token", SecurityScheme::Http(bearer));
    let itself = OperationBuilder::new()
        .tag("server")
        .operation_id(Some("openapi"))
        .summary(Some("This document"))
        .response(
            "200",
            ResponseBuilder::new()
                .description("OpenAPI 3.1")
                .content("application/json", ContentBuilder::new().build())
                .build(),
        )
        .build();
    document
        .paths
        .add_path_operation("/v1/openapi.json", vec![HttpMethod::Get], itself);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in [
            ("GET", &mut item.get),
            ("POST", &mut item.post),
            ("PUT", &mut item.put),
            ("PATCH", &mut item.patch),
            ("DELETE", &mut item.delete),
        ] {
            if let Some(operation) = operation {
                complete(operation, access_of(method, path));
            }
        }
    }
    Bytes::from(document.to_json().unwrap_or_default())
}

fn access_of(method: &str, path: &str) -> Access {
    ROUTES
        .iter()
        .find(|(at, route, _)| at.as_str() == method && *route == path)
        // A test keeps the table and the document together.
        .map_or(Access::Role(Role::Admin), |(_, _, access)| *access)
}

fn complete(operation: &mut Operation, access: Access) {
    if let Access::Role(role) = access {
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(
            "token",
            [],
        )]);
        let note = format!("Needs the role `{role}`.");
        let text = operation.description.take().unwrap_or_default();
        operation.description = Some(format!("{text}\n\n{note}").trim().to_owned());
        for (status, text) in [
            ("401", "No valid API token."),
            ("403", "The token's role is not enough."),
            (
                "429",
                "The token is over its request rate; see Retry-After.",
            ),
        ] {
            problem(operation, status, text);
        }
    }
    problem(operation, "500", "The server met an error of its own.");
    problem(
        operation,
        "503",
        "The server cannot do this now; see Retry-After.",
    );
    // Problems that handlers name by status alone get their shape here.
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && (status.starts_with('4') || status.starts_with('5'))
            && response.content.is_empty()
        {
            response
                .content
                .insert(PROBLEM_JSON.to_owned(), problem_content().into());
        }
    }
}

fn problem(operation: &mut Operation, status: &str, text: &str) {
    operation
        .responses
        .responses
        .entry(status.to_owned())
        .or_insert_with(|| ResponseBuilder::new().description(text).build().into());
}

fn problem_content() -> utoipa::openapi::Content {
    ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build()
}

/// The document as an answer.
pub(super) fn response(document: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}
