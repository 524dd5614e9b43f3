//! The URL of a webhook: what may be one.

use std::net::IpAddr;

use axum::http::Uri;

use super::address::Policy;

/// Bytes of a URL at most.
const URL_BYTES_MAX: usize = 2048;

/// Why a URL cannot be a webhook's. The words go behind the name of the field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// No URL at all.
    #[error("is not a URL with a host, such as https://example.com/hooks")]
    NotUrl,
    /// Too long.
    #[error("has more than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Neither https nor http.
    #[error("must begin with https://")]
    Scheme,
    /// http where only https is permitted.
    #[error(
        "must begin with https://; http:// needs `webhooks.allow_insecure = true` in the server's \
         configuration"
    )]
    Plain,
    /// `https://user:password@…`.
    #[error(
        "carries a user name or password; leave it out: deliveries are signed, see docs/WEBHOOKS.md"
    )]
    UserInfo,
    /// An address that the server must not be sent to.
    #[error(
        "leads to {address}, {what}; webhooks go to public addresses only, unless \
         `webhooks.allow_insecure = true` is in the server's configuration"
    )]
    NotPublic {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

/// Reads and checks a URL. A name is not resolved here: that is done before each connection.
pub(crate) fn parse(text: &str, policy: Policy) -> Result<Uri, TargetError> {
    if text.len() > URL_BYTES_MAX {
        return Err(TargetError::TooLong);
    }
    // `Uri` would cut a fragment off without a word, and takes no blanks or control characters.
    if text.contains('#') {
        return Err(TargetError::NotUrl);
    }
    let uri: Uri = text.parse().map_err(|_| TargetError::NotUrl)?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if policy.permits_plain() => {}
        Some("http") => return Err(TargetError::Plain),
        Some(_) => return Err(TargetError::Scheme),
        None => return Err(TargetError::NotUrl),
    }
    let authority = uri.authority().ok_or(TargetError::NotUrl)?;
    if authority.as_str().contains('@') {
        return Err(TargetError::UserInfo);
    }
    let host = host(&uri).filter(|host| !host.is_empty());
    let host = host.ok_or(TargetError::NotUrl)?;
    if authority.port().is_none() && authority.as_str().ends_with(':') {
        return Err(TargetError::NotUrl);
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        policy
            .check(address)
            .map_err(|what| TargetError::NotPublic { address, what })?;
    }
    Ok(uri)
}

/// The host without the brackets of a version 6 address.
pub(crate) fn host(uri: &Uri) -> Option<&str> {
    let host = uri.host()?;
    Some(
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host),
    )
}

/// The port, given or usual.
pub(crate) fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    uri.port_u16().unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_urls_are_taken_as_they_are() {
        for text in [
            "https://example.com",
            "https://example.com/hooks?team=7",
            "https://example.com:8443/",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]:8443/x",
        ] {
            assert!(parse(text, Policy::Public).is_ok(), "{text}");
        }
        for text in [
            "http://localhost:1/",
            "http://127.0.0.1:1",
            "https://[::1]/",
        ] {
            assert!(parse(text, Policy::Anything).is_ok(), "{text}");
            assert!(
                text.contains("localhost") || parse(text, Policy::Public).is_err(),
                "{text}"
            );
        }
        let uri = parse("https://[2606:4700:4700::1111]/", Policy::Public).unwrap();
        assert_eq!(host(&uri), Some("2606:4700:4700::1111"));
        assert_eq!(port(&uri), 443);
        let uri = parse("http://a/", Policy::Anything).unwrap();
        assert_eq!((host(&uri), port(&uri)), (Some("a"), 80));
    }

    #[test]
    fn everything_else_is_refused_with_what_is_wrong() {
        let words = |text: &str| parse(text, Policy::Public).unwrap_err().to_string();
        for text in [
            "",
            "example.com/x",
            "/x",
            "https://",
            "https:///x",
            "https://a b/",
            "x:y",
        ] {
            let said = words(text);
            assert!(
                said.contains("not a URL") || said.contains("https://"),
                "{text}: {said}"
            );
        }
        assert!(words("https://a/#b").contains("not a URL"));
        assert!(words("http://example.com/").contains("webhooks.allow_insecure"));
        assert!(words("ftp://example.com/").contains("must begin with https://"));
        assert!(words("https://me:secret@example.com/").contains("user name or password"));
        assert!(words(&format!("https://a/{}", "x".repeat(2048))).contains("2048 bytes"));
        for (text, address) in [
            ("https://127.0.0.1/", "127.0.0.1, a loopback address"),
            ("https://[::1]/", "::1, a loopback address"),
            ("https://[::ffff:10.0.0.1]/", "a private address"),
            (
                "https://169.254.169.254/latest/meta-data",
                "a link-local address",
            ),
            ("https://10.0.0.1:7440/", "10.0.0.1, a private address"),
        ] {
            let said = words(text);
            assert!(said.contains(address), "{text}: {said}");
        }
    }
}
