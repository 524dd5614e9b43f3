//! The URLs of lock and event services. Passwords are never printed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Name;

/// A service keeps the lock of a holder that says nothing for so long, unless its URL says otherwise: short enough
/// to be of use, long enough for a pause of a busy machine.
const LEASE: Duration = Duration::from_secs(3);
const LEASE_LEAST: Duration = Duration::from_secs(1);
const LEASE_MOST: Duration = Duration::from_secs(60);
const REDIS_PORT: u16 = 6379;
const ZOOKEEPER_PORT: u16 = 2181;
/// What everything in a service begins with, unless its URL says otherwise.
const PREFIX: &str = "drover";

const LOCKS_WANTED: &str =
    "expected local:, sql:, zookeeper://HOST, zookeeper+tls://HOST, redis://HOST or rediss://HOST";
const EVENTS_WANTED: &str = "expected local:, sql:, redis://HOST or rediss://HOST";
/// What is known of the one that is missing.
const HAZELCAST: &str = "hazelcast: is not built yet: there is no client of it for Rust to build on, its CP locks are \
    of the Enterprise edition since 5.5, and those of the open one (IMap) can have two owners after a split; use \
    zookeeper:, redis: or sql:";

/// Why a URL names no service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

/// Which service keeps locks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LocksUrl {
    /// This process.
    Local,
    /// The store.
    Sql,
    /// A Redis.
    Redis(RedisTarget),
    /// A ZooKeeper.
    ZooKeeper(ZooKeeperTarget),
}

/// Which service carries events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventsUrl {
    /// This process.
    Local,
    /// The store.
    Sql,
    /// A Redis.
    Redis(RedisTarget),
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself: for the service, and for nobody else.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The files that TLS needs, as the URL names them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsFiles {
    /// Whose certificates are trusted; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// A certificate of ours and its key, for services that ask for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Where a Redis is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisTarget {
    /// TLS, and with which files; `None`: plain.
    pub tls: Option<TlsFiles>,
    /// Who we are there.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database's number.
    pub database: u16,
    /// What every key and channel begins with.
    pub prefix: Name,
    /// How long a lock is kept without a renewal.
    pub lease: Duration,
}

/// Where a ZooKeeper is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZooKeeperTarget {
    /// TLS, and with which files; `None`: plain.
    pub tls: Option<TlsFiles>,
    /// A user and a password (scheme `digest`): only this user may touch our nodes then.
    pub user: Option<(String, Secret)>,
    /// Its servers, each as `host:port`.
    pub servers: Vec<String>,
    /// The node under which ours are.
    pub path: String,
    /// The session's time-out.
    pub lease: Duration,
}

impl LocksUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlError`] says what is wrong, without the URL's password.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        match text {
            "local:" => return Ok(Self::Local),
            "sql:" => return Ok(Self::Sql),
            _ => {}
        }
        let parts = Parts::of(text, LOCKS_WANTED)?;
        match parts.scheme {
            "redis" => parts.redis(false).map(Self::Redis),
            "rediss" => parts.redis(true).map(Self::Redis),
            "zookeeper" => parts.zookeeper(false).map(Self::ZooKeeper),
            "zookeeper+tls" => parts.zookeeper(true).map(Self::ZooKeeper),
            _ => Err(UrlError(LOCKS_WANTED.to_owned())),
        }
    }
}

impl EventsUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlError`] says what is wrong, without the URL's password.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        match text {
            "local:" => return Ok(Self::Local),
            "sql:" => return Ok(Self::Sql),
            _ => {}
        }
        let parts = Parts::of(text, EVENTS_WANTED)?;
        match parts.scheme {
            "redis" => parts.redis(false).map(Self::Redis),
            "rediss" => parts.redis(true).map(Self::Redis),
            "zookeeper" | "zookeeper+tls" => Err(UrlError(
                "zookeeper: keeps locks and carries no events; use redis: or sql:".to_owned(),
            )),
            _ => Err(UrlError(EVENTS_WANTED.to_owned())),
        }
    }
}

/// A URL in its parts.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<String>,
    password: Option<Secret>,
    /// What comes before the path: one or more of `host:port`.
    authority: &'a str,
    path: &'a str,
    options: Vec<(&'a str, String)>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str, wanted: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| UrlError(wanted.to_owned()))?;
        if scheme == "hazelcast" {
            return Err(UrlError(HAZELCAST.to_owned()));
        }
        let rest = rest
            .strip_prefix("//")
            .ok_or_else(|| UrlError(wanted.to_owned()))?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        // A password may hold an @ that nobody has escaped; a host may not.
        let (login, authority) = place.rsplit_once('@').unwrap_or(("", place));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let decoded =
            |text: &str| unescape(text).ok_or_else(|| wrong(scheme, "a % that escapes nothing"));
        let some = |text: String| (!text.is_empty()).then_some(text);
        let options = options.split('&').filter(|option| !option.is_empty());
        let options = options.map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            Ok((name, decoded(value)?))
        });
        Ok(Self {
            scheme,
            user: some(decoded(user)?),
            password: some(decoded(password)?).map(Secret),
            authority,
            path,
            options: options.collect::<Result<_, UrlError>>()?,
        })
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.options.iter().position(|(key, _)| *key == name)?;
        Some(self.options.swap_remove(at).1)
    }

    fn lease(&mut self) -> Result<Duration, UrlError> {
        let Some(text) = self.take("lease") else {
            return Ok(LEASE);
        };
        let lease = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => number.parse().ok().map(Duration::from_millis),
            (_, Some(number)) => number.parse().ok().map(Duration::from_secs),
            _ => None,
        };
        lease
            .filter(|lease| (LEASE_LEAST..=LEASE_MOST).contains(lease))
            .ok_or_else(|| wrong(self.scheme, "`lease` must be 1s to 60s, as 3s or 2500ms"))
    }

    fn tls(&mut self, tls: bool) -> Result<Option<TlsFiles>, UrlError> {
        let ca = self.take("ca").map(PathBuf::from);
        let certificate = self.take("certificate").map(PathBuf::from);
        let own = match (certificate, self.take("key").map(PathBuf::from)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(wrong(
                    self.scheme,
                    "`certificate` and `key` need each other",
                ));
            }
        };
        match tls {
            true => Ok(Some(TlsFiles { ca, own })),
            false if ca.is_some() || own.is_some() => Err(wrong(
                self.scheme,
                "files of TLS are for rediss: and zookeeper+tls: only",
            )),
            false => Ok(None),
        }
    }

    /// Nothing that was said may be left.
    fn end(&self) -> Result<(), UrlError> {
        match self.options.first() {
            Some((name, _)) => Err(wrong(self.scheme, &format!("`{name}` is no option of it"))),
            None => Ok(()),
        }
    }

    fn redis(mut self, tls: bool) -> Result<RedisTarget, UrlError> {
        let (host, port) = host(self.scheme, self.authority, REDIS_PORT)?;
        let database = self.path.trim_start_matches('/');
        let database = match database.is_empty() {
            true => Some(0),
            false => database.parse().ok(),
        };
        let prefix = self.take("prefix");
        let target = RedisTarget {
            tls: self.tls(tls)?,
            lease: self.lease()?,
            database: database
                .ok_or_else(|| wrong(self.scheme, "the path is the number of a database"))?,
            prefix: Name::new(prefix.as_deref().unwrap_or(PREFIX))
                .ok_or_else(|| wrong(self.scheme, "`prefix` is made of a-z, 0-9, `.` and `-`"))?,
            user: self.user.take(),
            password: self.password.take(),
            host,
            port,
        };
        self.end()?;
        Ok(target)
    }

    fn zookeeper(mut self, tls: bool) -> Result<ZooKeeperTarget, UrlError> {
        let servers = self.authority.split(',').map(|server| {
            let (host, port) = host(self.scheme, server, ZOOKEEPER_PORT)?;
            Ok(format!("{host}:{port}"))
        });
        let servers = servers.collect::<Result<_, UrlError>>()?;
        let path = match self.path.trim_end_matches('/') {
            "" => format!("/{PREFIX}"),
            path => path.to_owned(),
        };
        let parts = path.trim_start_matches('/').split('/');
        if !parts.clone().all(|part| Name::new(part).is_some()) {
            return Err(wrong(
                self.scheme,
                "the parts of the path are made of a-z, 0-9, `.` and `-`",
            ));
        }
        let user = match (self.user.take(), self.password.take()) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            _ => return Err(wrong(self.scheme, "a user and a password need each other")),
        };
        let target = ZooKeeperTarget {
            tls: self.tls(tls)?,
            lease: self.lease()?,
            user,
            servers,
            path,
        };
        if target.tls.as_ref().is_some_and(|files| files.ca.is_none()) {
            return Err(wrong(
                self.scheme,
                "`ca` must name whose certificate is trusted",
            ));
        }
        self.end()?;
        Ok(target)
    }
}

fn wrong(scheme: &str, what: &str) -> UrlError {
    UrlError(format!("in the URL of {scheme}: {what}"))
}

fn host(scheme: &str, text: &str, port: u16) -> Result<(String, u16), UrlError> {
    let colon = text.rfind(':').filter(|at| !text[*at..].contains(']'));
    let (host, port) = match colon {
        Some(at) => (&text[..at], text[at + 1..].parse().ok()),
        None => (text, Some(port)),
    };
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| wrong(scheme, "a port is a number from 1 to 65535"))?;
    let address = host.starts_with('[') && host.ends_with(']');
    let name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
    if host.is_empty() || !(address || host.chars().all(name)) {
        return Err(wrong(
            scheme,
            "a host is a name or an address, as db.example or [::1]",
        ));
    }
    Ok((host.to_owned(), port))
}

/// `%2F` and the like become what they stand for.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        let digits = digits
            .chars()
            .all(|c| c.is_ascii_hexdigit())
            .then_some(digits)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        write!(f, "{scheme}://")?;
        login(f, self.user.as_deref(), self.password.is_some())?;
        write!(f, "{}:{}/{}", self.host, self.port, self.database)?;
        let prefix = ("prefix", self.prefix.to_string());
        let prefix = Some(prefix).filter(|(_, prefix)| prefix != PREFIX);
        options(f, self.lease, self.tls.as_ref(), prefix)
    }
}

impl fmt::Display for ZooKeeperTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { "+tls" } else { "" };
        write!(f, "zookeeper{tls}://")?;
        let user = self.user.as_ref().map(|(user, _)| user.as_str());
        login(f, user, user.is_some())?;
        write!(f, "{}{}", self.servers.join(","), self.path)?;
        options(f, self.lease, self.tls.as_ref(), None)
    }
}

impl fmt::Display for LocksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local:"),
            Self::Sql => f.write_str("sql:"),
            Self::Redis(target) => target.fmt(f),
            Self::ZooKeeper(target) => target.fmt(f),
        }
    }
}

impl fmt::Display for EventsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local:"),
            Self::Sql => f.write_str("sql:"),
            Self::Redis(target) => target.fmt(f),
        }
    }
}

fn login(f: &mut fmt::Formatter<'_>, user: Option<&str>, password: bool) -> fmt::Result {
    match (user, password) {
        (None, false) => Ok(()),
        (user, true) => write!(f, "{}:***@", user.unwrap_or_default()),
        (Some(user), false) => write!(f, "{user}@"),
    }
}

fn options(
    f: &mut fmt::Formatter<'_>,
    lease: Duration,
    tls: Option<&TlsFiles>,
    more: Option<(&'static str, String)>,
) -> fmt::Result {
    let lease = (lease != LEASE).then(|| ("lease", format!("{}ms", lease.as_millis())));
    let file = |name, path: &PathBuf| (name, path.display().to_string());
    let ca = tls.and_then(|files| Some(file("ca", files.ca.as_ref()?)));
    let own = tls.and_then(|files| files.own.as_ref());
    let own = own.map(|(certificate, key)| [file("certificate", certificate), file("key", key)]);
    let all = more.into_iter().chain(lease).chain(ca);
    let all = all.chain(own.into_iter().flatten());
    for (at, (name, value)) in all.enumerate() {
        let mark = if at == 0 { '?' } else { '&' };
        write!(f, "{mark}{name}={value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks(text: &str) -> LocksUrl {
        LocksUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        for (text, full) in [
            ("local:", "local:"),
            ("sql:", "sql:"),
            ("redis://db.example", "redis://db.example:6379/0"),
            ("redis://[::1]", "redis://[::1]:6379/0"),
            ("zookeeper://a,b:2182", "zookeeper://a:2181,b:2182/drover"),
            (
                "zookeeper://[::1]:2182/x/y/?lease=5s",
                "zookeeper://[::1]:2182/x/y?lease=5000ms",
            ),
            (
                "rediss://a:1/7?prefix=x&ca=/ca.pem&certificate=/c&key=/k",
                "rediss://a:1/7?prefix=x&ca=/ca.pem&certificate=/c&key=/k",
            ),
        ] {
            assert_eq!(locks(text).to_string(), full);
            assert_eq!(locks(full), locks(text), "{full} is the same");
        }
    }

    #[test]
    fn a_password_is_understood_and_never_printed() {
        for (text, user, password) in [
            ("redis://:s%40e/0", None, None),
            ("redis://:s%40cret@a", None, Some("s@cret")),
            ("redis://:secr@et@a", None, Some("secr@et")),
            ("redis://ann:secret@a", Some("ann"), Some("secret")),
            ("redis://ann@a", Some("ann"), None),
        ] {
            let Ok(LocksUrl::Redis(target)) = LocksUrl::parse(text) else {
                assert!(password.is_none() && user.is_none(), "{text}");
                continue;
            };
            assert_eq!(target.user.as_deref(), user);
            assert_eq!(target.password.as_ref().map(Secret::reveal), password);
            if let Some(password) = password {
                let said = format!("{target} {target:?}");
                assert!(!said.contains(password) && said.contains("***"), "{said}");
            }
        }
        let LocksUrl::ZooKeeper(target) = locks("zookeeper://ann:secret@a") else {
            panic!("a ZooKeeper");
        };
        let said = format!("{target} {target:?}");
        assert!(
            said.contains("ann:***@a:2181") && !said.contains("secret"),
            "{said}"
        );
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_is_wrong_and_without_its_password() {
        for (text, says) in [
            ("", "expected local:"),
            ("redis", "expected local:"),
            ("local:x", "expected local:"),
            ("etcd://a", "expected local:"),
            ("redis:a", "expected local:"),
            ("redis://:secret@", "a host is"),
            ("redis://:secret@a b", "a host is"),
            ("redis://:secret@a:0", "a port is"),
            ("redis://:secret@a:x", "a port is"),
            ("redis://:secret@a/x", "number of a database"),
            ("redis://:secret@a/70000", "number of a database"),
            ("redis://:secret@a?lease=900ms", "`lease` must be"),
            ("redis://:secret@a?lease=61s", "`lease` must be"),
            ("redis://:secret@a?lease=3", "`lease` must be"),
            ("redis://:secret@a?prefix=A", "`prefix` is made of"),
            ("redis://:secret@a?ca=/x", "for rediss:"),
            ("redis://:secret@a?tiemout=3", "`tiemout` is no option"),
            ("rediss://:secret@a?key=/x", "need each other"),
            ("redis://:secret%4@a", "escapes nothing"),
            ("redis://:secret%+1@a", "escapes nothing"),
            ("zookeeper://ann@a", "need each other"),
            ("zookeeper://a,", "a host is"),
            ("zookeeper://a/x//y", "parts of the path"),
            ("zookeeper://a/../y", "parts of the path"),
            ("zookeeper+tls://a", "`ca` must name"),
            ("hazelcast://a", "not built yet"),
        ] {
            let error = LocksUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{text}: {error}");
        }
        for (text, says) in [
            ("zookeeper://a", "carries no events"),
            ("hazelcast:", "not built yet"),
            ("kafka://a", "expected local:, sql:, redis:"),
        ] {
            let error = EventsUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(EventsUrl::parse("sql:").unwrap(), EventsUrl::Sql);
        let events = EventsUrl::parse("redis://a").unwrap();
        assert_eq!(events.to_string(), "redis://a:6379/0");
    }
}
