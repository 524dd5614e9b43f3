//! Servers that do not answer: which errors say so, wherever they come to, and that the log says so once.
//!
//! Only connections to servers mark errors. What the embedded backend says of its file stays an error of the store.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::Error;
use sqlx::mysql::MySqlDatabaseError;

/// A driver's words for a server, or a way to it, that is gone. Within an [`Error::Io`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Gone(String);

/// Whether an error says that the server, or the way to it, is gone, or that it is no longer the one to be asked.
pub(super) fn is_of_the_connection(error: &Error) -> bool {
    match error {
        Error::Database(error) => {
            let of_mysql = error.try_downcast_ref::<MySqlDatabaseError>();
            let number = of_mysql.map(MySqlDatabaseError::number);
            let code = error.code();
            code.is_some_and(|code| is_state_of_the_connection(&code))
                || number.is_some_and(is_number_of_the_connection)
        }
        Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed => true,
        _ => false,
    }
}

/// PostgreSQL's class 57P is of a server that ends, 08 of connections, 25P03 of a transaction in which nothing was
/// asked for too long. 25006 is of a server that takes no writes, as the next one also is for MySQL: after a switchover
/// the address leads to another one, and only a new connection gets there.
fn is_state_of_the_connection(code: &str) -> bool {
    code.starts_with("57P") || code.starts_with("08") || matches!(code, "25P03" | "25006")
}

/// Of MySQL and MariaDB: `read_only` is set (1290, whose SQLSTATE says nothing), or the engine takes no writes (1836).
fn is_number_of_the_connection(number: u16) -> bool {
    matches!(number, 1290 | 1836)
}

/// The error of a server that is gone, for these words.
pub(super) fn gone(words: String) -> Error {
    let kind = std::io::ErrorKind::NotConnected;
    Error::Io(std::io::Error::new(kind, Gone(words)))
}

/// Whether a server is gone, by an error that one of its connections, or its pool, has given.
pub(in crate::store) fn is_gone(error: &Error) -> bool {
    let Error::Io(error) = error else {
        return false;
    };
    error.get_ref().is_some_and(|inner| inner.is::<Gone>())
}

/// Whether a store's server does not answer, so that the log says why once and not for every request.
#[derive(Default)]
pub(super) struct Silence(AtomicBool);

impl Silence {
    /// It does not answer: the error as callers get it.
    pub(super) fn begins(&self, error: &Error) -> Error {
        let words = words(error);
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::debug!(cause = words, "a server of the store does not answer");
        }
        gone(words)
    }

    /// It answers.
    pub(super) fn ends(&self) {
        if self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed) {
            tracing::debug!("a server of the store answers again");
        }
    }
}

/// Without what is said again by whatever they are put into.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::PoolTimedOut => "no connection came free, and none could be made in time".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    fn refused() -> Error {
        Error::Io(std::io::ErrorKind::ConnectionRefused.into())
    }

    /// As a connection to a server, or its pool, gives it.
    fn of_a_server(error: &Error) -> StoreError {
        assert!(is_of_the_connection(error) || matches!(error, Error::PoolTimedOut));
        Silence::default().begins(error).into()
    }

    #[test]
    fn a_server_that_is_gone_is_told_from_a_store_that_has_failed() {
        for error in [
            refused(),
            Error::Protocol("an end in the middle".to_owned()),
            Error::PoolTimedOut,
        ] {
            let told = of_a_server(&error);
            assert!(matches!(told, StoreError::Unreachable), "{error}: {told:?}");
        }
        // Whoever gives it on marks it again.
        let again = of_a_server(&gone("of before".to_owned()));
        assert!(matches!(again, StoreError::Unreachable), "{again:?}");
        assert_eq!(
            gone("of before".to_owned()).to_string(),
            refused()
                .to_string()
                .replace("connection refused", "of before"),
        );
    }

    #[test]
    fn a_server_that_takes_no_writes_any_more_is_not_the_one_to_be_asked() {
        for code in ["25006", "25P03", "57P01", "08006"] {
            assert!(is_state_of_the_connection(code), "{code}");
        }
        // A row that does not fit, a lock that was not had in time, and MySQL's word for anything.
        for code in ["22001", "55P03", "25P02", "HY000", "42000"] {
            assert!(!is_state_of_the_connection(code), "{code}");
        }
        assert!([1290, 1836].into_iter().all(is_number_of_the_connection));
        // A lock that was not had in time, a deadlock, a duplicate.
        let others = [1205, 1213, 1062];
        assert!(!others.into_iter().any(is_number_of_the_connection));
    }

    #[test]
    fn what_the_embedded_backend_says_stays_what_it_is() {
        for (error, wanted) in [
            (Error::PoolTimedOut, StoreError::Busy),
            (Error::PoolClosed, StoreError::Stopped),
        ] {
            let (told, wanted) = (StoreError::from(error).to_string(), wanted.to_string());
            assert_eq!(told, wanted);
        }
        for error in [refused(), Error::WorkerCrashed, Error::RowNotFound] {
            let told = StoreError::from(error);
            assert!(matches!(told, StoreError::Sql(_)), "{told:?}");
        }
    }

    #[test]
    fn a_silence_begins_once_and_ends_once() {
        let silence = Silence::default();
        silence.ends();
        assert!(!silence.0.load(Ordering::Relaxed));
        for _ in 0..2 {
            assert!(is_gone(&silence.begins(&refused())));
            assert!(silence.0.load(Ordering::Relaxed));
        }
        silence.ends();
        assert!(!silence.0.load(Ordering::Relaxed));
    }
}
