//! Text to values, with messages that say what would have been right.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// `true` or `false`.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A whole number within limits.
pub(crate) fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        Ok(_) | Err(_) => Err(format!("expected a whole number from {least} to {most}")),
    }
}

/// A whole number with a unit: `250ms`, `10s`, `5m`, `24h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a whole number with a unit: 250ms, 10s, 5m or 24h".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let milliseconds = match &text[split..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

/// A duration between limits.
pub(crate) fn duration_within(
    text: &str,
    least: Duration,
    most: Duration,
) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < least || value > most {
        return Err(format!(
            "expected between {} and {}",
            show_duration(least),
            show_duration(most)
        ));
    }
    Ok(value)
}

/// A duration between limits, or `never`.
pub(crate) fn never_or_within(
    text: &str,
    least: Duration,
    most: Duration,
) -> Result<Option<Duration>, String> {
    match text {
        "never" => Ok(None),
        _ => duration_within(text, least, most)
            .map(Some)
            .map_err(|error| format!("{error}, or never")),
    }
}

/// What [`never_or_within`] reads back.
pub(crate) fn show_or_never(value: Option<Duration>) -> String {
    value.map_or("never".to_owned(), show_duration)
}

/// A duration that the API can hold: whole seconds, at least one.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value.is_zero() || value.subsec_nanos() != 0 {
        return Err("expected whole seconds, one or more: 1s, 90s, 15m".to_owned());
    }
    Ok(value)
}

/// The shortest text that [`duration`] reads back.
pub(crate) fn show_duration(value: Duration) -> String {
    let milliseconds = value.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(size) {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    format!("{milliseconds}ms")
}

/// An address to listen on: `127.0.0.1:7440`, `[::]:7443`. Names are not resolved: a server that
/// listens somewhere else after a DNS change is a surprise.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address with a port, such as 127.0.0.1:7440 or [::]:7443 (port 0: any free one)"
            .to_owned()
    })
}

/// An address to listen on, or `off`.
pub(crate) fn listen_or_off(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "off" => Ok(None),
        _ => listen(text)
            .map(Some)
            .map_err(|error| format!("{error}, or off")),
    }
}

/// What [`listen_or_off`] reads back.
pub(crate) fn show_or_off(address: Option<SocketAddr>) -> String {
    address.map_or("off".to_owned(), |address| address.to_string())
}

/// Comma-separated `host:port`, at most as many as fit into a welcome.
pub(crate) fn addresses(text: &str) -> Result<Vec<String>, String> {
    let all = list(text);
    if all.len() > protocol::limits::ADDRESSES_MAX {
        return Err(format!(
            "at most {} addresses",
            protocol::limits::ADDRESSES_MAX
        ));
    }
    for one in &all {
        address(one)?;
    }
    Ok(all)
}

/// One `host:port`.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if valid {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not HOST:PORT"))
    }
}

/// A comma-separated list; blanks around items and empty items do not count.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Comma-separated URLs of replicas of a store.
pub(crate) fn replicas(text: &str) -> Result<Vec<String>, String> {
    let all = list(text);
    let is_server = |url: &String| {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        matches!(
            scheme,
            Some("postgres" | "postgresql" | "mysql" | "mariadb")
        )
    };
    match all.iter().all(is_server) {
        true => Ok(all),
        false => Err(
            "expected postgres://USER:PASSWORD@HOST/DATABASE or mysql://…, one for each replica, with commas between \
             them (a comma in a password is %2C)"
                .to_owned(),
        ),
    }
}

/// A trust domain of SPIFFE: what stands between `spiffe://` and the next slash.
pub(crate) fn domain(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if text.is_empty() || text.len() > 255 || !text.chars().all(valid) {
        return Err(
            "expected a trust domain: lower-case letters, digits, dot, dash and underscore"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// A TOML string.
pub(crate) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A TOML list of strings.
pub(crate) fn quote_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_survive_their_text_form() {
        for text in ["0ms", "250ms", "10s", "5m", "24h", "1500ms"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn durations_without_a_known_unit_or_too_large_are_refused() {
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "99999999999999999h",
            "18446744073709551616ms",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_that_the_api_cannot_hold_are_refused_and_never_rounded() {
        for text in ["0s", "0ms", "1ms", "999ms", "1500ms", "1"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("2000ms"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("15m"), Ok(Duration::from_secs(900)));
    }

    #[test]
    fn numbers_outside_their_limits_say_the_limits() {
        assert_eq!(number("64", 1_u16, 64), Ok(64));
        let problem = number("65", 1_u16, 64).unwrap_err();
        assert!(problem.contains("1 to 64"), "{problem}");
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        assert_eq!(addresses("a:1, [::1]:2").unwrap(), ["a:1", "[::1]:2"]);
        for text in ["a", ":1", "a:0", "a:65536", "a:b"] {
            assert!(addresses(text).is_err(), "{text}");
        }
        assert!(addresses(&vec!["a:1"; 17].join(",")).is_err());
    }

    #[test]
    fn replicas_are_on_servers() {
        let two = ["postgres://a:b@c/d", "postgresql://e/d?sslmode=require"];
        assert_eq!(replicas(&two.join(", ")).unwrap(), two);
        assert_eq!(replicas("").unwrap(), [""; 0]);
        for text in ["sqlite:", "a", "http://a", "mysql://a/b,c"] {
            assert!(
                replicas(text).unwrap_err().contains("postgres://"),
                "{text}"
            );
        }
    }

    #[test]
    fn quoted_text_is_valid_toml() {
        let line = format!("a = {}", quote("a \"b\" \\ c\n"));
        let table: toml::Table = line.parse().unwrap();
        assert_eq!(table["a"].as_str(), Some("a \"b\" \\ c\n"));
    }
}
