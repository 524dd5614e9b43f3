//! One attempt over HTTP/1.1: signed, bounded in time and in bytes. Redirects are not followed, and
//! of an answer only the status and `Retry-After` count.

use std::error::Error;
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, Response, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::CertificateDer;

use super::address::Policy;
use super::connect::Connector;
use super::plan::Receiver;
use super::verdict::{Ended, retry_after};
use super::{sign, target};
use crate::clock::{self, UnixMs};

/// Bytes of an answer's body that are read, so that the connection can be used again.
const ANSWER_BYTES_MAX: usize = 4096;
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of an error's words that are kept.
const WORDS_BYTES_MAX: usize = 500;
/// Connections that rest, to one receiver.
const IDLE_MAX: usize = 4;
/// How long a connection rests.
const IDLE_LIFE: Duration = Duration::from_secs(30);

/// Sends to receivers.
pub(crate) struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    policy: Policy,
    timeout: Duration,
}

impl Client {
    pub(crate) fn new(
        policy: Policy,
        extra_roots: Vec<CertificateDer<'static>>,
        timeout: Duration,
    ) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIFE)
            .pool_max_idle_per_host(IDLE_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(Connector::new(policy, extra_roots));
        Self {
            http,
            policy,
            timeout,
        }
    }

    /// Which URLs it takes.
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Sends one message. `id` is the same at every attempt.
    pub(crate) async fn send(&self, receiver: &Receiver, id: &str, body: Bytes) -> Ended {
        let began = clock::monotonic();
        let now = clock::now();
        let answer = tokio::time::timeout(self.timeout, self.answer(receiver, id, body, now));
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", self.timeout.as_secs_f32())));
        let took = clock::monotonic() - began;
        let (result, retry_after) = match answer {
            Ok((status, wait)) => (Ok(status), wait),
            Err(words) => (Err(clip(&words)), None),
        };
        Ended {
            result,
            retry_after,
            took,
        }
    }

    async fn answer(
        &self,
        receiver: &Receiver,
        id: &str,
        body: Bytes,
        now: UnixMs,
    ) -> Result<(u16, Option<Duration>), String> {
        let request = self.request(receiver, id, body, now)?;
        let response = self.http.request(request).await;
        let response = response.map_err(|error| root_cause(&error))?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry_after(text, now));
        read_little(response).await;
        Ok((status, wait))
    }

    fn request(
        &self,
        receiver: &Receiver,
        id: &str,
        body: Bytes,
        now: UnixMs,
    ) -> Result<Request<Full<Bytes>>, String> {
        // Checked again: the server may have been started with other settings since.
        let uri = target::parse(&receiver.url, self.policy)
            .map_err(|error| format!("the webhook's URL {error}"))?;
        let seconds = now.0 / 1000;
        let signature = sign::signature(receiver.secrets(now), id, seconds, &body);
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("drover/", env!("CARGO_PKG_VERSION")),
            )
            .header("webhook-id", id)
            .header("webhook-timestamp", HeaderValue::from(seconds))
            .header("webhook-signature", signature)
            .body(Full::new(body))
            .map_err(|error| error.to_string())
    }
}

/// Reads an answer's body as far as a well-behaved one goes; what is longer costs its connection.
async fn read_little(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut left = ANSWER_BYTES_MAX;
    // A body that comes slowly costs no more than this: the status is known already.
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    drop(tokio::time::timeout(Duration::from_secs(2), reading).await);
}

/// The innermost cause: "connection refused" instead of "client error (Connect)".
fn root_cause(error: &legacy::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        // Ours say it in whole sentences, with the operating system's words.
        if let Some(ours) = next.downcast_ref::<super::connect::ConnectError>() {
            return ours.to_string();
        }
        cause = next;
    }
    cause.to_string()
}

fn clip(words: &str) -> String {
    let end = words.floor_char_boundary(WORDS_BYTES_MAX.min(words.len()));
    words[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
