//! Which of the formats of `/metrics` a reader asks for (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};

/// Of the formats of Prometheus, the one with native histograms.
const PROTOBUF: &str = "application/vnd.google.protobuf";
const PROTO: &str = "io.prometheus.client.MetricFamily";

/// Whether protobuf is asked for by name, and no less than text. Whoever says nothing, or anything
/// that is not understood, gets text.
pub(super) fn prefers_protobuf(headers: &HeaderMap) -> bool {
    let (mut protobuf, mut text) = (0.0_f32, 0.0_f32);
    let values = headers.get_all(header::ACCEPT).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    for range in texts.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut proto, mut delimited) = (1.0_f32, false, false);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.parse().unwrap_or(0.0),
                "proto" => proto = value == PROTO,
                "encoding" => delimited = value == "delimited",
                _ => {}
            }
        }
        if kind == PROTOBUF && proto && delimited {
            protobuf = protobuf.max(quality);
        } else if kind == "text/plain" {
            text = text.max(quality);
        }
    }
    protobuf > 0.0 && protobuf >= text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers(accept: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        prefers_protobuf(&headers)
    }

    const DELIMITED: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    #[test]
    fn prometheus_gets_what_it_likes_best() {
        // What Prometheus sends with native histograms, and without.
        let native = format!(
            "{DELIMITED};q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,\
             text/plain;version=0.0.4;q=0.4,*/*;q=0.1"
        );
        assert!(prefers(&[&native]));
        let text =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        assert!(!prefers(&[text]));
        let last = format!("text/plain;q=0.9, {DELIMITED}; q=0.2");
        assert!(!prefers(&[&last]));
        assert!(prefers(&["text/plain", DELIMITED]));
    }

    #[test]
    fn everybody_else_gets_text() {
        for accept in [
            "",
            "*/*",
            "application/json",
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=text",
            "application/vnd.google.protobuf; proto=Other; encoding=delimited",
            &format!("{DELIMITED};q=0"),
            &format!("{DELIMITED};q=lots"),
            ";;,=,;q",
        ] {
            assert!(!prefers(&[accept]), "{accept}");
        }
        assert!(!prefers(&[]));
        let spaced = "Application/vnd.google.protobuf ; Proto=\"io.prometheus.client.MetricFamily\" ; \
                      encoding = delimited";
        assert!(prefers(&[spaced]));
    }
}
