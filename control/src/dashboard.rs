//! The dashboard: a few static files, embedded, that show what the API says.
//!
//! ```text
//!   GET /      ─▶ 307 /ui/
//!   GET /ui/…  ─▶ the file, with an ETag; gzip where the browser takes it (made once, at the first use)
//! ```
//!
//! The files hold no data, so they need no token. The page asks for one and sends it as a bearer
//! token with every request of its own; its policy allows nothing from elsewhere, no inline script
//! or style, and no way from text to HTML.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// What the page may do: load from here, connect to here, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// A file smaller than this is sent as it is.
const GZIP_FROM_BYTES: usize = 512;

macro_rules! files {
    ($($name:literal: $kind:literal,)*) => {
        /// Name, media type, content.
        const FILES: &[(&str, &str, &[u8])] =
            &[$(($name, $kind, include_bytes!(concat!("dashboard/", $name))),)*];
    };
}

files! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "theme.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "agents.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "attention.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "histograms.js": "text/javascript; charset=utf-8",
    "latency.js": "text/javascript; charset=utf-8",
    "limits.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "processes.js": "text/javascript; charset=utf-8",
    "steps.js": "text/javascript; charset=utf-8",
    "tables.js": "text/javascript; charset=utf-8",
}

/// A file as it is sent.
struct Asset {
    name: &'static str,
    kind: HeaderValue,
    etag: HeaderValue,
    plain: Bytes,
    gzip: Option<Bytes>,
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let made = FILES.iter().map(|&(name, kind, bytes)| Asset {
        name,
        kind: HeaderValue::from_static(kind),
        etag: etag(bytes),
        plain: Bytes::from_static(bytes),
        gzip: (bytes.len() >= GZIP_FROM_BYTES)
            .then(|| gzip(bytes))
            .flatten(),
    });
    made.collect()
});

/// The routes, for whatever state the rest has.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/ui/") }))
        .route("/ui", get(|| async { Redirect::temporary("/ui/") }))
        .route(
            "/ui/",
            get(|headers: HeaderMap| async move { answer("index.html", &headers) }),
        )
        .route("/ui/{file}", get(file))
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    answer(&name, &headers)
}

fn answer(name: &str, asked: &HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return (
            StatusCode::NOT_FOUND,
            "no such file; the dashboard is at /ui/\n",
        )
            .into_response();
    };
    let known = asked.get(header::IF_NONE_MATCH);
    let mut response = if known.is_some_and(|known| names(known, &asset.etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        body(asset, asked)
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, asset.etag.clone());
    let fixed: [(HeaderName, &'static str); 7] = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn body(asset: &Asset, asked: &HeaderMap) -> Response {
    let takes_gzip = asked
        .get(header::ACCEPT_ENCODING)
        .is_some_and(|codings| takes(codings, "gzip"));
    let kind = (header::CONTENT_TYPE, asset.kind.clone());
    match asset.gzip.as_ref().filter(|_| takes_gzip) {
        Some(bytes) => {
            let coding = (header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            ([kind, coding], bytes.clone()).into_response()
        }
        None => ([kind], asset.plain.clone()).into_response(),
    }
}

/// Weak: the same text, compressed or not (RFC 9110 §8.8.1).
fn etag(bytes: &[u8]) -> HeaderValue {
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(bytes));
    HeaderValue::from_str(&format!("W/\"{hash}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("W/\"unknown\""))
}

/// Whether a list of entity tags has this one, or is `*` (RFC 9110 §13.1.2).
fn names(list: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(list), Ok(etag)) = (list.to_str(), etag.to_str()) else {
        return false;
    };
    list.split(',')
        .map(str::trim)
        .any(|known| known == etag || known == "*")
}

/// Whether a list of codings takes this one (RFC 9110 §12.5.3).
fn takes(list: &HeaderValue, coding: &str) -> bool {
    let list = list.to_str().unwrap_or_default();
    list.split(',').any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(coding));
        let refused = parts.any(|part| {
            let quality = part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
            quality.is_some_and(|q| q <= 0.0)
        });
        named && !refused
    })
}

fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail; if it did, the file would be sent as it is.
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(path: &str, headers: &[(HeaderName, &str)]) -> Response {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        router::<()>().oneshot(request).await.unwrap()
    }

    async fn bytes(response: Response) -> Bytes {
        to_bytes(response.into_body(), 1 << 20).await.unwrap()
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dashboard");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let embedded: BTreeSet<String> = FILES.iter().map(|file| file.0.to_owned()).collect();
        assert_eq!(embedded, there);
    }

    #[test]
    fn nothing_refers_to_another_host_or_writes_html() {
        for (name, _, bytes) in FILES {
            let text = std::str::from_utf8(bytes).unwrap();
            for line in text.lines() {
                let line = line.replace("http://www.w3.org/2000/svg", "");
                assert!(!line.contains("://"), "{name}: {line}");
                for sink in [
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                ] {
                    assert!(!line.contains(sink), "{name}: {line}");
                }
            }
        }
    }

    #[tokio::test]
    async fn the_root_leads_to_the_page_and_the_page_has_a_strict_policy() {
        for path in ["/", "/ui"] {
            let response = get(path, &[]).await;
            assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(response.headers()[header::LOCATION], "/ui/");
        }
        let response = get("/ui/", &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers().clone();
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(bytes(response).await.starts_with(b"<!doctype html>"));
    }

    #[tokio::test]
    async fn a_browser_that_has_the_file_is_not_sent_it_again() {
        let first = get("/ui/app.js", &[]).await;
        let etag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for known in [etag.clone(), format!("W/\"other\", {etag}"), "*".to_owned()] {
            let again = get("/ui/app.js", &[(header::IF_NONE_MATCH, &known)]).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert!(bytes(again).await.is_empty());
        }
        let other = get("/ui/app.js", &[(header::IF_NONE_MATCH, "W/\"other\"")]).await;
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn gzip_is_sent_to_those_who_take_it() {
        let plain = bytes(get("/ui/app.js", &[]).await).await;
        let small = get("/ui/app.js", &[(header::ACCEPT_ENCODING, "br, gzip;q=0.5")]).await;
        assert_eq!(small.headers()[header::CONTENT_ENCODING], "gzip");
        let small = bytes(small).await;
        assert!(small.len() * 2 < plain.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&small[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, plain);
        let refused = get("/ui/app.js", &[(header::ACCEPT_ENCODING, "gzip;q=0")]).await;
        assert!(!refused.headers().contains_key(header::CONTENT_ENCODING));
    }

    #[tokio::test]
    async fn what_is_not_embedded_is_not_there() {
        for path in ["/ui/none.js", "/ui/..%2fapi.rs", "/ui/a/b"] {
            assert_eq!(
                get(path, &[]).await.status(),
                StatusCode::NOT_FOUND,
                "{path}"
            );
        }
    }
}
