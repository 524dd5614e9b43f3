//! The API over HTTP: one request, one typed reply, or a [`Fault`] that repeats what the server said.

use std::sync::Arc;
use std::time::Duration;

use control::api::model::Problem;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::seen::Seen;
use super::tls::{Dialer, Trust};
use crate::fault::{Exit, Fault, chain};

/// A request that takes longer than this is given up (event streams excepted).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Connecting to a server that is there takes far less.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Items asked for at once.
const PAGE_SIZE: u32 = 500;
/// Characters of an unexpected reply that are shown.
const EXCERPT_CHARS: usize = 200;

/// What every list of the API has around its items.
#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_page_token: Option<String>,
}

/// A client of one API with one token.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    /// Where the API speaks TLS.
    tls: Option<Dialer>,
    seen: Arc<Seen>,
}

impl Client {
    /// A client of the API at `base`; `trust` says who may be that, where it speaks TLS.
    pub(crate) fn new(base: &str, token: Option<String>, trust: &Trust) -> Result<Self, Fault> {
        let url: Url = base
            .parse()
            .map_err(|error| Fault::usage(format_args!("`{base}` is not a URL: {error}")))
            .map_err(|fault: Fault| fault.advise("write it as http://HOST:PORT"))?;
        if !["http", "https"].contains(&url.scheme()) || url.cannot_be_a_base() {
            return Err(
                Fault::usage(format_args!("`{base}` cannot be used as the API's URL"))
                    .advise("write it as http://HOST:PORT or https://HOST:PORT"),
            );
        }
        let tls = (url.scheme() == "https").then(|| Dialer::new(url.clone(), trust));
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("drover/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Fault::new(chain(&error)))?;
        Ok(Self {
            http,
            seen: Arc::new(Seen::of(&url)),
            base: url,
            token,
            tls: tls.transpose()?,
        })
    }

    /// Reads one thing.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Fault> {
        let request = || -> Result<RequestBuilder, Fault> {
            let request = self.request(Method::GET, path)?.query(query);
            Ok(request.timeout(REQUEST_TIMEOUT))
        };
        let mut response = self.send(self.seen.tell(request()?)).await?;
        if response.status() == StatusCode::BAD_REQUEST && self.seen.forget() {
            // What was seen may have been seen of another store; if not, this answer says what is wrong.
            response = self.send(request()?).await?;
        }
        self.reply(response).await
    }

    /// Reads a list to its end, or up to `limit` items.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Vec<T>, Fault> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        while items.len() < limit {
            let left = u32::try_from(limit - items.len()).unwrap_or(PAGE_SIZE);
            let mut query = query.to_vec();
            query.push(("page_size", left.min(PAGE_SIZE).to_string()));
            query.extend(token.take().map(|token| ("page_token", token)));
            let page: Page<T> = self.get(path, &query).await?;
            let empty = page.items.is_empty();
            items.extend(page.items);
            token = page.next_page_token;
            if token.is_none() || empty {
                break;
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    /// Makes or does something. Carries an idempotency key, so that the server does it once.
    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        idempotency_key: &str,
    ) -> Result<T, Fault> {
        self.post_with(path, &[], body, idempotency_key).await
    }

    /// As [`Client::post`], with query parameters.
    pub(crate) async fn post_with<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: &B,
        idempotency_key: &str,
    ) -> Result<T, Fault> {
        let request = self
            .request(Method::POST, path)?
            .query(query)
            .header("Idempotency-Key", idempotency_key)
            .json(body)
            .timeout(REQUEST_TIMEOUT);
        self.reply(self.send(request).await?).await
    }

    /// Changes something.
    pub(crate) async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, Fault> {
        let request = self
            .request(Method::PATCH, path)?
            .json(body)
            .timeout(REQUEST_TIMEOUT);
        self.reply(self.send(request).await?).await
    }

    /// Sets something.
    pub(crate) async fn put<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, Fault> {
        let request = self
            .request(Method::PUT, path)?
            .json(body)
            .timeout(REQUEST_TIMEOUT);
        self.reply(self.send(request).await?).await
    }

    /// Takes something away.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), Fault> {
        self.delete_with(path, &[]).await
    }

    /// As [`Client::delete`], with query parameters.
    pub(crate) async fn delete_with(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<(), Fault> {
        let request = self.request(Method::DELETE, path)?.query(query);
        let request = request.timeout(REQUEST_TIMEOUT);
        self.checked(self.send(request).await?).await.map(drop)
    }

    /// Opens an event stream behind the event `after`.
    pub(crate) async fn events(
        &self,
        query: &[(&str, String)],
        after: Option<u64>,
    ) -> Result<Response, Fault> {
        self.seen.heard();
        let mut request = self.stream(&["v1", "events"])?.query(query);
        if let Some(sequence) = after {
            request = request.header("Last-Event-ID", sequence.to_string());
        }
        self.checked(self.send(request).await?).await
    }

    /// Opens the stream of overviews, one a second.
    pub(crate) async fn overviews(&self) -> Result<Response, Fault> {
        let request = self.stream(&["v1", "overview", "events"])?;
        self.checked(self.send(request).await?).await
    }

    /// The API's host and port.
    pub(crate) fn address(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Any reply to a GET, whatever its status.
    pub(crate) async fn probe(&self, path: &[&str]) -> Result<Response, Fault> {
        let request = self.request(Method::GET, path)?.timeout(REQUEST_TIMEOUT);
        self.send(request).await
    }

    fn stream(&self, path: &[&str]) -> Result<RequestBuilder, Fault> {
        let request = self.request(Method::GET, path)?;
        Ok(request.header("Accept", "text/event-stream"))
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, Fault> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Fault::usage("the API's URL cannot carry a path"))?
            .pop_if_empty()
            .extend(path);
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Ok(request)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Fault> {
        let response = match &self.tls {
            Some(tls) => {
                let request = request.build().map_err(|error| self.unreachable(&error))?;
                tls.send(request).await?
            }
            None => {
                let sent = request.send().await;
                sent.map_err(|error| self.unreachable(&error))?
            }
        };
        self.seen.note(&response);
        Ok(response)
    }

    async fn reply<T: DeserializeOwned>(&self, response: Response) -> Result<T, Fault> {
        let response = self.checked(response).await?;
        let body = response
            .bytes()
            .await
            .map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Fault::new(format_args!(
                "the server at {} answered something unexpected: {error}: {}",
                self.base,
                excerpt(&body)
            ))
            .advise("is this the Drover API, and of the same version as this program?")
        })
    }

    /// Turns every status but success into what the server said about it.
    async fn checked(&self, response: Response) -> Result<Response, Fault> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(self.refusal(status, &body))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Fault {
        let fault = match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => {
                let mut what = problem.detail;
                let field = problem.errors.first().map(|error| error.field.clone());
                // Some details already are the sum of their parts.
                for error in problem.errors {
                    if !what.contains(&error.detail) {
                        what.push_str(&format!("; {}: {}", error.field, error.detail));
                    }
                }
                let (what, advice) = in_commands(&what);
                Fault {
                    field,
                    advice,
                    ..Fault::new(what)
                }
            }
            Err(_) => Fault::new(format_args!(
                "the server at {} answered {status}: {}",
                self.base,
                excerpt(body)
            )),
        };
        match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => fault.exit(Exit::Denied).advise(
                "give a token with --token or DROVER_TOKEN, or name the server's --data-dir; of several servers the \
                 first one has an admin token, and there `drover api-tokens create NAME --role ROLE` makes more",
            ),
            StatusCode::UNAUTHORIZED => fault
                .exit(Exit::Denied)
                .advise("check the token: --token, DROVER_TOKEN, or the server's admin token file"),
            StatusCode::FORBIDDEN => fault.exit(Exit::Denied).advise(
                "use a token of a higher role: `drover api-tokens create NAME --role ROLE`",
            ),
            StatusCode::NOT_FOUND => fault.exit(Exit::NotFound),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                fault.advise("try again in a moment; `drover health` says what is missing")
            }
            _ => fault,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Fault {
        let what = if error.is_timeout() {
            format!("the server at {} did not answer in time", self.base)
        } else {
            format!(
                "cannot reach the server at {}: {}",
                self.base,
                root_cause(error)
            )
        };
        Fault::new(what)
            .advise("is it running? start it with `drover serve`, or name another with --api URL")
            .exit(Exit::Unreachable)
    }
}

/// What the server says to people who use its API, for people who use this program: where the API lists a
/// thing, a command does.
fn in_commands(text: &str) -> (String, Option<String>) {
    const LISTS: [&str; 10] = [
        "agents",
        "api-tokens",
        "batches",
        "groups",
        "kinds",
        "limits",
        "pauses",
        "processes",
        "tokens",
        "webhooks",
    ];
    let mut text = LISTS.iter().fold(text.to_owned(), |text, things| {
        text.replace(
            &format!("GET /v1/{things} lists"),
            &format!("`drover {things} list` lists"),
        )
    });
    let mut advice = Vec::new();
    while let Some((before, inner, after)) = call(&text) {
        advice.extend(command_of(inner));
        text = format!("{before}{after}");
    }
    if let Some((what, clause)) = text.split_once("; GET /v1/agent-servers ") {
        let (clause, end) = match clause.strip_suffix('.') {
            Some(clause) => (clause, "."),
            None => (clause, ""),
        };
        advice.push(format!("`drover servers ls` {clause}"));
        if clause == "lists them" {
            advice.push("`drover servers undrain HOST:PORT` ends a drain".to_owned());
        }
        text = format!("{what}{end}");
    }
    (text, (!advice.is_empty()).then(|| advice.join("; ")))
}

/// The first request of the API that stands in brackets, and what is around it.
fn call(text: &str) -> Option<(&str, &str, &str)> {
    let starts = ["POST", "PUT", "DELETE"].map(|method| text.find(&format!(" ({method} /v1/")));
    let start = starts.into_iter().flatten().min()?;
    let (inner, after) = text[start + 2..].split_once(')')?;
    Some((&text[..start], inner, after))
}

/// The command that makes such a request.
fn command_of(request: &str) -> Option<String> {
    let (method, path) = request.split_once(' ')?;
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    match (method, &parts[..]) {
        ("POST", ["agent-servers", link, "undrain"]) => {
            Some(format!("`drover servers undrain {link}` ends the drain"))
        }
        ("PUT", ["groups", id, "pin"]) => Some(format!(
            "`drover groups pin {id} HOST:PORT` pins it elsewhere"
        )),
        ("DELETE", ["groups", id, "pin"]) => {
            Some(format!("`drover groups unpin {id}` removes the pin"))
        }
        _ => None,
    }
}

/// The innermost cause: "connection refused" instead of three layers of "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(EXCERPT_CHARS)
        .collect();
    if line.trim().is_empty() {
        "(nothing)".to_owned()
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(token: Option<&str>) -> Client {
        let trust = Trust::Authorities(None);
        Client::new("http://127.0.0.1:7440", token.map(str::to_owned), &trust).unwrap()
    }

    #[test]
    fn urls_that_cannot_work_are_refused_before_anything_is_sent() {
        let trust = Trust::Authorities(None);
        for url in ["127.0.0.1:7440", "ftp://x", "", "mailto:x"] {
            assert_eq!(
                Client::new(url, None, &trust).unwrap_err().exit,
                Exit::Usage,
                "{url}"
            );
        }
    }

    #[test]
    fn what_the_server_says_is_what_people_read() {
        let body = br#"{"type":"urn:drover:problem:invalid","title":"Invalid","status":422,
            "detail":"the group's name cannot be used","errors":[{"field":"name","detail":"is empty"}]}"#;
        let fault = client(Some("t")).refusal(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!(
            fault.what,
            "the group's name cannot be used; name: is empty"
        );
        assert_eq!(fault.exit, Exit::Failure);
        assert_eq!(fault.field.as_deref(), Some("name"));
    }

    #[test]
    fn where_the_api_lists_a_thing_people_read_the_command_that_does() {
        let body = br#"{"type":"urn:drover:problem:not-found","title":"Not found","status":404,
            "detail":"There is no limit of `work x`; GET /v1/limits lists those that there are.","errors":[]}"#;
        let fault = client(Some("t")).refusal(StatusCode::NOT_FOUND, body);
        assert_eq!(
            fault.what,
            "There is no limit of `work x`; `drover limits list` lists those that there are."
        );
        // Each of them is a command.
        let command = <crate::cli::Cli as clap::CommandFactory>::command();
        for things in ["agents", "api-tokens", "limits", "tokens", "webhooks"] {
            let (said, _) = in_commands(&format!("GET /v1/{things} lists"));
            assert_eq!(said, format!("`drover {things} list` lists"));
            let of = command.find_subcommand(things).unwrap();
            assert!(of.find_subcommand("list").is_some(), "{things}");
        }
    }

    #[test]
    fn requests_that_are_named_become_commands_to_try() {
        for (said, what, advice) in [
            (
                "No other one: there is only one; GET /v1/agent-servers lists them.",
                "No other one: there is only one.",
                "`drover servers ls` lists them; `drover servers undrain HOST:PORT` ends a drain",
            ),
            (
                "there is no agent server `x`; GET /v1/agent-servers lists those that there are",
                "there is no agent server `x`",
                "`drover servers ls` lists those that there are",
            ),
            (
                "`a.example:7444` drains; end that first (POST /v1/agent-servers/a.example:7444/undrain), or not",
                "`a.example:7444` drains; end that first, or not",
                "`drover servers undrain a.example:7444` ends the drain",
            ),
            (
                "Pin it elsewhere (PUT /v1/groups/7/pin), or remove the pin first (DELETE /v1/groups/7/pin).",
                "Pin it elsewhere, or remove the pin first.",
                "`drover groups pin 7 HOST:PORT` pins it elsewhere; `drover groups unpin 7` removes the pin",
            ),
        ] {
            let expected = (what.to_owned(), Some(advice.to_owned()));
            assert_eq!(in_commands(said), expected);
        }
        assert_eq!(in_commands("no (more) words").1, None);
    }

    #[test]
    fn a_missing_token_and_a_wrong_one_get_different_advice() {
        let without = client(None).refusal(StatusCode::UNAUTHORIZED, b"{}");
        let with = client(Some("t")).refusal(StatusCode::UNAUTHORIZED, b"{}");
        assert!(without.advice.as_ref().unwrap().contains("give a token"));
        assert!(with.advice.as_ref().unwrap().contains("check the token"));
        assert_eq!((without.exit, with.exit), (Exit::Denied, Exit::Denied));
    }

    #[test]
    fn a_reply_from_something_else_is_shown_in_part_and_made_harmless() {
        let fault = client(None).refusal(StatusCode::BAD_GATEWAY, &[b'\x1b'; 1000]);
        assert!(!fault.what.contains('\x1b'));
        assert!(fault.what.len() < 400);
    }

    #[test]
    fn path_segments_are_escaped() {
        let request = client(None)
            .request(Method::GET, &["v1", "groups", "a/b ?"])
            .unwrap();
        assert_eq!(
            request.build().unwrap().url().path(),
            "/v1/groups/a%2Fb%20%3F"
        );
    }
}
