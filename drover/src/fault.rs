//! What a person reads when a command fails: one line what, one line what to do, and an exit code
//! that scripts can rely on.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

/// Exit codes of `drover`, as documented in `docs/OPERATIONS.md`. `drover run` adds the program's
/// own exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// It did what was asked.
    Success,
    /// It failed: the message says why.
    Failure,
    /// The command line or the configuration is wrong; nothing was started.
    Usage,
    /// The server did not answer.
    Unreachable,
    /// The server knows no such token, or the token's role is too low.
    Denied,
    /// The server knows nothing by that name or id.
    NotFound,
    /// `drover run`: the process reached its deadline.
    DeadlineExceeded,
    /// `drover run`: the process ended without an exit status of its program.
    NotRun,
    /// `drover run`: the process was cancelled.
    Cancelled,
    /// `drover run`: the program's own exit status.
    Program(u8),
    /// `drover top`: a signal ended it; 128 and its number.
    Signal(u8),
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::NotFound => 5,
            Self::DeadlineExceeded => 124,
            Self::NotRun => 125,
            Self::Cancelled => 130,
            Self::Program(code) | Self::Signal(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A failure, told to a person.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Fault {
    /// What happened, in one line.
    pub(crate) what: String,
    /// What to do about it, in one line.
    pub(crate) advice: Option<String>,
    /// How the program ends.
    pub(crate) exit: Exit,
    /// The field of a request that the server could not use, where it named one.
    pub(crate) field: Option<String>,
}

impl Fault {
    /// A failure with [`Exit::Failure`] and no advice yet.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            advice: None,
            exit: Exit::Failure,
            field: None,
        }
    }

    /// A wrong command line or configuration.
    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::new(what)
        }
    }

    /// The same with a line that says what to do.
    pub(crate) fn advise(mut self, advice: impl fmt::Display) -> Self {
        self.advice = Some(advice.to_string());
        self
    }

    /// The same with another exit code.
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// A failed action on a file or directory.
    pub(crate) fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(format_args!("cannot {action} {}: {error}", path.display()))
    }

    /// Prints it on standard error: two lines for people, one JSON object for programs.
    pub(crate) fn report(&self, json: bool) {
        #[derive(Serialize)]
        struct Report<'a> {
            error: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            advice: Option<&'a str>,
            exit_code: u8,
        }
        if json {
            let report = Report {
                error: &self.what,
                advice: self.advice.as_deref(),
                exit_code: self.exit.code(),
            };
            match serde_json::to_string(&report) {
                Ok(line) => eprintln!("{line}"),
                Err(_) => eprintln!("error: {}", self.what),
            }
            return;
        }
        eprintln!("error: {}", self.what);
        if let Some(advice) = &self.advice {
            eprintln!("  try: {advice}");
        }
    }
}

/// Puts an error and everything beneath it into one line: `a: b: c`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors have their cause in their own words already.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen: {source}; stop who uses it")]
    struct Outer {
        source: Inner,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("in use")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn a_cause_is_told_once_wherever_it_stands() {
        let error = Outer {
            source: Inner(std::io::Error::other("port 7443")),
        };
        assert_eq!(
            chain(&error),
            "cannot listen: in use; stop who uses it: port 7443"
        );
    }
}
