//! Why a server could not be had.

use std::fmt;

/// Why a private server did not start, or did not do what it was told. `Debug` says the same as `Display`, so that
/// a test may simply unwrap.
#[derive(thiserror::Error)]
pub enum KitError {
    /// A package is not installed.
    #[error(
        "{what} is missing, and tests need it: apt-get install --no-install-recommends {package} \
         (.ci/services does so)"
    )]
    Missing {
        /// A program or a file.
        what: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// A server ended before it had answered, or a tool of it failed.
    #[error("{name} ended with {status}; the last that it said:\n{log}")]
    Ended {
        /// Which.
        name: &'static str,
        /// How.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// A server has not answered, or has not ended, in time.
    #[error("{name} did not {what} within {seconds} s; the last that it said:\n{log}")]
    Late {
        /// Which.
        name: &'static str,
        /// What it should have done.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// The machine refuses something.
    #[error("{what}: {error}")]
    Machine {
        /// What was tried.
        what: String,
        /// Its answer.
        error: std::io::Error,
    },
}

impl fmt::Debug for KitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names what was tried.
pub(crate) fn machine(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> KitError {
    let what = what.into();
    move |error| KitError::Machine { what, error }
}
