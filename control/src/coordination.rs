//! Lock and event services: who is alive, and that something has happened, sooner than the store tells it.
//!
//! ```text
//!   process server ── holds a lock while it lives ──▶ locks  ── vacant ──▶ the others look at the store at once
//!   process server ── "something was written" ──────▶ events ── notice ──▶ the others look at the store at once
//! ```
//!
//! Both are hints. No lock service gives mutual exclusion: a holder may be paused past its lease, the service may
//! fail over and forget, an answer may be lost. So nothing is decided by a lock or an event: whoever is woken looks
//! at the store, where epochs and fences decide. A service that lies or is down costs time, never work: the store's
//! own heartbeats and sweeps go on beneath.
//!
//! | URL | locks | events |
//! |---|---|---|
//! | `local:` | within this process | within this process |
//! | `sql:` | leases in the store, polled | rings in the store, polled |
//! | `zookeeper:` | ephemeral nodes, watched | – |
//! | `redis:` | keys that expire, renewed; releases are published | publish and subscribe |
//! | `hazelcast:` | not built yet | not built yet |

mod figures;
mod hold;
mod leases;
mod local;
mod presence;
mod redis;
mod sql;
mod topics;
mod url;
mod zookeeper;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use self::figures::{Figures, metrics};
pub use self::hold::{Held, Hold};
pub use self::local::LocalBus;
pub use self::presence::Presence;
pub use self::topics::{Notice, Subscription};
pub use self::url::{EventsUrl, LocksUrl, UrlError};
use crate::store::{Store, StoreError};

/// What a message says is at most so long, in bytes. What is longer is told as [`Notice::Missed`].
pub const PAYLOAD_MAX: usize = 512;
/// A name is at most so long, in bytes.
const NAME_MAX: usize = 100;

/// The name of a lock or of a topic: 1 to 100 characters of a-z, 0-9, `.` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks it; `None`: it is none.
    pub fn new(text: &str) -> Option<Self> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        // A name of dots alone means something else to services that have paths.
        let valid = !text.is_empty()
            && text.len() <= NAME_MAX
            && text.chars().all(valid)
            && text.chars().any(|c| c != '.');
        valid.then(|| Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a service did not do what it was asked. Nothing depends on it: ask again later.
#[derive(Debug, thiserror::Error)]
pub enum CoordinationError {
    /// It does not answer, or says no.
    #[error("{service} at {place} cannot be used: {detail}")]
    Service {
        /// Which kind.
        service: &'static str,
        /// Where, without passwords.
        place: String,
        /// What was seen.
        detail: String,
    },
    /// A file that its URL names cannot be used.
    #[error("{path}, which `{url}` names, cannot be used: {detail}")]
    File {
        /// The URL, without passwords.
        url: String,
        /// The file.
        path: String,
        /// Why.
        detail: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A lock service, as one process sees it.
///
/// A lock is held by one [`Held`] at a time, as far as the service can tell, which is not always: see the module.
pub trait Locks: Send + Sync {
    /// Takes a lock if nobody has it; `None`: somebody has.
    ///
    /// # Errors
    /// The service cannot be used, which is known within about [`Locks::lease`]. If it took the lock all the same,
    /// it is given back as soon as the service can be reached, or ends with its lease.
    fn try_acquire<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Held>, CoordinationError>>;

    /// Waits until nobody has the lock, without asking again and again where the service can tell. Somebody may
    /// have it again when this returns.
    ///
    /// # Errors
    /// The service cannot be used. Where it is away for a while, this may also wait on.
    fn vacant<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), CoordinationError>>;

    /// How long the service keeps the lock of a holder that says nothing.
    fn lease(&self) -> Duration;

    /// Whether it can be used now, and what it says it is, for people.
    ///
    /// # Errors
    /// It cannot, and why.
    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>>;

    /// What it counts, if it does.
    fn figures(&self) -> Option<Arc<Figures>> {
        None
    }
}

impl dyn Locks {
    /// Waits until the lock is taken.
    ///
    /// # Errors
    /// As [`Locks::try_acquire`] and [`Locks::vacant`].
    pub async fn acquire(&self, name: &Name) -> Result<Held, CoordinationError> {
        loop {
            if let Some(held) = self.try_acquire(name).await? {
                return Ok(held);
            }
            self.vacant(name).await?;
        }
    }
}

/// An event service, as one process sees it: what it publishes, the others hear.
pub trait Events: Send + Sync {
    /// Tells the others, some time soon; never waits. If it cannot be told, they hear [`Notice::Missed`] once the
    /// service is back.
    fn publish(&self, topic: &Name, payload: &[u8]);

    /// Hears what others publish from now on.
    fn subscribe(&self, topic: &Name) -> Subscription;

    /// Whether it can be used now, and what it says it is, for people.
    ///
    /// # Errors
    /// It cannot, and why.
    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>>;

    /// What it counts, if it does.
    fn figures(&self) -> Option<Arc<Figures>> {
        None
    }
}

/// The lock service that a URL names. A service that is away now is no error: it may come.
///
/// # Errors
/// [`CoordinationError::File`].
pub fn locks(url: &LocksUrl, store: &Store) -> Result<Arc<dyn Locks>, CoordinationError> {
    Ok(match (url, locks_of_their_own(url)?) {
        (_, Some(locks)) => locks,
        (LocksUrl::Sql, None) => Arc::new(sql::locks(store.clone())),
        (_, None) => LocalBus::default().locks(),
    })
}

/// The lock service that a URL names, for a program without a store; `None`: it is the store, or within one process. A
/// service that is away now is no error: it may come.
///
/// # Errors
/// [`CoordinationError::File`].
pub fn locks_of_their_own(url: &LocksUrl) -> Result<Option<Arc<dyn Locks>>, CoordinationError> {
    Ok(match url {
        LocksUrl::Local | LocksUrl::Sql => None,
        LocksUrl::Redis(target) => Some(Arc::new(redis::locks(target)?)),
        LocksUrl::ZooKeeper(target) => Some(Arc::new(zookeeper::ZooKeeper::new(target)?)),
    })
}

/// The event service that a URL names. A service that is away now is no error: it may come.
///
/// # Errors
/// [`CoordinationError::File`].
pub fn events(url: &EventsUrl, store: &Store) -> Result<Arc<dyn Events>, CoordinationError> {
    Ok(match url {
        EventsUrl::Local => LocalBus::default().events(),
        EventsUrl::Sql => Arc::new(sql::events(store.clone())),
        EventsUrl::Redis(target) => Arc::new(redis::events(target)?),
    })
}

/// Whether the lock service that a URL names can be used now, and what it says it is.
///
/// # Errors
/// It cannot, and why.
pub async fn look_at_locks(url: &LocksUrl) -> Result<String, CoordinationError> {
    match url {
        LocksUrl::Local => Ok(local::WORDS.to_owned()),
        LocksUrl::Sql => Ok(sql::WORDS.to_owned()),
        LocksUrl::Redis(target) => redis::locks(target)?.check().await,
        LocksUrl::ZooKeeper(target) => zookeeper::ZooKeeper::new(target)?.check().await,
    }
}

/// Whether the event service that a URL names can be used now, and what it says it is.
///
/// # Errors
/// It cannot, and why.
pub async fn look_at_events(url: &EventsUrl) -> Result<String, CoordinationError> {
    match url {
        EventsUrl::Local => Ok(local::WORDS.to_owned()),
        EventsUrl::Sql => Ok(sql::WORDS.to_owned()),
        EventsUrl::Redis(target) => redis::events(target)?.check().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        for fine in ["a", "process-server.7f", &"x".repeat(NAME_MAX)] {
            assert_eq!(Name::new(fine).unwrap().as_str(), fine);
        }
        for wrong in [
            "",
            ".",
            "..",
            "A",
            "a/b",
            "a b",
            "ä",
            &"x".repeat(NAME_MAX + 1),
        ] {
            assert_eq!(Name::new(wrong), None, "{wrong}");
        }
    }
}
