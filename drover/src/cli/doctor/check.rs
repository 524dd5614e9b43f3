//! One check: what was found, and what to do about it.

use serde::Serialize;

use crate::cli::print;
use crate::fault::Fault;

/// How a check ended. The order is that of badness.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Status {
    /// As it should be.
    Ok,
    /// The server runs, but not as well or as safely as it could.
    Warning,
    /// The server does not start, or something is lost already or will be.
    Failure,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::cli) struct Check {
    /// What was looked at, such as `store.pages`. Names stay: programs go by them.
    pub(in crate::cli) name: &'static str,
    /// How it ended.
    pub(in crate::cli) status: Status,
    /// What was found, in one line.
    pub(in crate::cli) found: String,
    /// What to do, in one line; there whenever something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) advice: Option<String>,
}

impl Check {
    /// As it should be.
    pub(in crate::cli) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    /// Worth a change.
    pub(in crate::cli) fn warning(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warning,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }

    /// Must be changed.
    pub(in crate::cli) fn failure(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Failure,
            ..Self::warning(name, found, advice)
        }
    }

    /// What would have kept a server from starting.
    pub(in crate::cli) fn of_fault(name: &'static str, fault: &Fault) -> Self {
        let advice = fault.advice.as_deref();
        Self::failure(
            name,
            fault.what.clone(),
            advice.unwrap_or("`drover serve --print-config` shows what is read and from where"),
        )
    }
}

/// The worst of all.
pub(in crate::cli) fn worst(checks: &[Check]) -> Status {
    let statuses = checks.iter().map(|check| check.status);
    statuses.max().unwrap_or(Status::Ok)
}

/// For people: a line each and what to do below it, then the sum.
pub(in crate::cli) fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let status = print::word(&check.status);
        let found = print::harmless(&check.found);
        text.push_str(&format!("{status:7}  {:width$}  {found}\n", check.name));
        if let Some(advice) = &check.advice {
            text.push_str(&format!("         try: {}\n", print::harmless(advice)));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    text.push_str(&format!(
        "\n{} checks; ok: {}, warning: {}, failure: {}\n",
        checks.len(),
        count(Status::Ok),
        count(Status::Warning),
        count(Status::Failure)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_decides() {
        let ok = Check::ok("a", "fine");
        let warning = Check::warning("b", "so so", "mend it");
        let failure = Check::failure("c", "bad", "mend it now");
        assert_eq!(worst(&[]), Status::Ok);
        assert_eq!(worst(&[ok.clone(), warning.clone()]), Status::Warning);
        assert_eq!(worst(&[failure, warning, ok]), Status::Failure);
    }

    #[test]
    fn each_check_is_a_line_and_what_to_do_stands_below() {
        let checks = [
            Check::ok("kernel", "6.18"),
            Check::warning("io_uring", "refused\u{1b}[2J", "allow it"),
        ];
        assert_eq!(
            text(&checks),
            "ok       kernel    6.18\n\
             warning  io_uring  refused\u{fffd}[2J\n         try: allow it\n\
             \n2 checks; ok: 1, warning: 1, failure: 0\n"
        );
    }
}
