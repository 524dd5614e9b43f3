//! A program that is told things: verifies signatures with an HMAC of its own, remembers what came,
//! and answers as its test says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::plane::eventually;

/// How the receiver answers.
pub(crate) enum Answer {
    Status(u16),
    /// A status with `Retry-After`.
    Later(u16, String),
    /// A redirect.
    Elsewhere(String),
    /// 200 after so long.
    Slow(Duration),
    /// Never.
    Hang,
    /// 200 with a body without end.
    Flood,
}

/// What came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) bytes: Bytes,
    pub(crate) body: Value,
    pub(crate) at: Instant,
    /// Requests before this one.
    pub(crate) nth: usize,
}

impl Got {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub(crate) fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap()
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.body["data"]["sequence"].as_u64().unwrap()
    }

    /// How many of its signatures are made with the secret.
    pub(crate) fn signatures_by(&self, secret: &str) -> usize {
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let stamp = &self.headers["webhook-timestamp"];
        let mut signed = format!("{}.{stamp}.", self.id()).into_bytes();
        signed.extend_from_slice(&self.bytes);
        let expected = format!("v1,{}", STANDARD.encode(hmac_sha256(&key, &signed)));
        let given = self.headers["webhook-signature"].split(' ');
        given.filter(|given| *given == expected).count()
    }
}

/// RFC 2104, for keys of at most 64 bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = Sha256::new()
        .chain_update(padded(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(padded(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

type Script = Box<dyn Fn(&Got) -> Answer + Send + Sync>;

struct Inner {
    got: Mutex<Vec<Got>>,
    script: Script,
}

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

impl Receiver {
    /// Listens on loopback and answers as `script` says.
    pub(crate) async fn start(script: impl Fn(&Got) -> Answer + Send + Sync + 'static) -> Self {
        let (receiver, router, listener) = Self::new(script).await;
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    /// The same without anybody who serves yet.
    pub(crate) async fn new(
        script: impl Fn(&Got) -> Answer + Send + Sync + 'static,
    ) -> (Self, Router, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let inner = Arc::new(Inner {
            got: Mutex::default(),
            script: Box::new(script),
        });
        let router = Router::new().fallback(take).with_state(Arc::clone(&inner));
        let address = listener.local_addr().unwrap();
        (Self { address, inner }, router, listener)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    /// Waits until so many requests have come.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Got> {
        let what = format!("request {count} at the receiver");
        eventually(&what, async || {
            let got = self.got();
            (got.len() >= count).then_some(got)
        })
        .await
    }
}

async fn take(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    assert_eq!(request.method(), "POST", "{path}");
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap();
    let answer = {
        let mut all = inner.got.lock().unwrap();
        let got = Got {
            path,
            headers,
            body: serde_json::from_slice(&bytes).unwrap(),
            bytes,
            at: control::clock::monotonic(),
            nth: all.len(),
        };
        let answer = (inner.script)(&got);
        all.push(got);
        answer
    };
    reply(answer).await
}

async fn reply(answer: Answer) -> Response {
    let status = |status: u16| StatusCode::from_u16(status).unwrap();
    match answer {
        Answer::Status(code) => status(code).into_response(),
        Answer::Later(code, wait) => (status(code), [(header::RETRY_AFTER, wait)]).into_response(),
        Answer::Elsewhere(url) => (StatusCode::FOUND, [(header::LOCATION, url)]).into_response(),
        Answer::Slow(time) => {
            tokio::time::sleep(time).await;
            StatusCode::OK.into_response()
        }
        Answer::Hang => std::future::pending().await,
        Answer::Flood => {
            let endless = futures_util::stream::repeat_with(|| {
                Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 1024]))
            });
            Body::from_stream(endless).into_response()
        }
    }
}
