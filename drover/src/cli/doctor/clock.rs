//! The clock: whether somebody sets it, and whether it has jumped.

use std::process::Command;
use std::time::Duration;

use control::clock::UnixMs;
use control::store::{Inspection, ServerInspection};

use super::check::Check;
use crate::cli::top::format::span;

/// A row may be so much later than now: it was made while this was looking.
const AHEAD: Duration = Duration::from_secs(2);
/// A clock further behind than this makes people wait: backoffs, leases and deadlines count by it.
const AHEAD_MAX: Duration = Duration::from_secs(60);
/// A database's clock that differs by more shows that nobody sets one of the two.
const APART: Duration = Duration::from_secs(1);
/// By so much, deadlines, retries and the ends of tokens are not what people have set. Who is alive goes by the
/// database's clock alone.
const APART_MAX: Duration = Duration::from_secs(5);
/// A process server writes every two seconds; without a beat for so long it hangs, or time has jumped.
const BEHIND_MAX: Duration = Duration::from_secs(60);

/// Everything about the clock. `ready`: a server has been ready on the store.
pub(super) fn checks(store: Option<&Inspection>, ready: bool, now: UnixMs) -> Vec<Check> {
    let mut checks = vec![synchronised(asked().as_deref())];
    let newest = store.and_then(|store| store.newest);
    checks.extend(newest.map(|newest| against_store(newest, ready, now)));
    checks
}

/// What systemd says of the kernel's clock, whoever sets it: `yes`, `no`, or nothing where it is not there.
fn asked() -> Option<String> {
    let output = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn synchronised(answer: Option<&str>) -> Check {
    let name = "clock.synchronised";
    match answer {
        Some("yes") => Check::ok(name, "the kernel's clock is synchronised"),
        Some("no") => Check::warning(
            name,
            "nobody synchronises this machine's clock: certificates, deadlines and tokens go by it",
            "timedatectl set-ntp true, or run chrony",
        ),
        _ => Check::warning(
            name,
            "whether the clock is synchronised cannot be told here: there is no timedatectl that answers",
            "look where the clock is set: on the container's host, or `chronyc tracking`",
        ),
    }
}

/// This machine's clock beside that of the store's server.
pub(super) fn against_server(server: &ServerInspection) -> Check {
    let name = "clock.store";
    let apart = Duration::from_millis(server.clock_ahead.unsigned_abs());
    let way = match server.clock_ahead < 0 {
        true => "behind",
        false => "ahead of",
    };
    if apart <= APART {
        return Check::ok(
            name,
            "the database's clock and this machine's differ by 1 s at most",
        );
    }
    let found = format!(
        "the database's clock is {}.{} s {way} this machine's",
        apart.as_secs(),
        apart.subsec_millis() / 100
    );
    let advice = "synchronise both machines by NTP (timedatectl set-ntp true, or run chrony), and those of the other \
                  servers: deadlines, retries and tokens go by their clocks";
    match apart > APART_MAX {
        true => Check::failure(name, found, advice),
        false => Check::warning(name, found, advice),
    }
}

fn against_store(newest: UnixMs, ready: bool, now: UnixMs) -> Check {
    let name = "clock.store";
    let (ahead, behind) = (now.until(newest), newest.until(now));
    let told = |time: Duration| span(time.as_secs());
    if ahead > AHEAD {
        let found = format!(
            "the newest row of the store is {} in the future: the clock was set back",
            told(ahead)
        );
        return match ahead > AHEAD_MAX {
            true => Check::failure(
                name,
                found,
                "look at `date`: set the clock right before the start, or what waits will wait so much longer",
            ),
            false => Check::warning(name, found, "look at `date`; if it is right, wait as long"),
        };
    }
    if ready && behind > BEHIND_MAX {
        return Check::warning(
            name,
            format!("the running server wrote its last row {} ago", told(behind)),
            "look at `date` and at `drover health`: the clock jumped ahead, or the process server hangs",
        );
    }
    Check::ok(
        name,
        format!("the newest row of the store is {} old", told(behind)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_512_600_000);

    #[test]
    fn a_clock_that_nobody_sets_is_warned_of() {
        assert_eq!(synchronised(Some("yes")).status, Status::Ok);
        assert_eq!(synchronised(Some("no")).status, Status::Warning);
        let unknown = synchronised(None);
        assert_eq!(unknown.status, Status::Warning);
        assert!(unknown.found.contains("cannot be told"));
    }

    #[test]
    fn a_database_with_another_time_is_told() {
        let at = |clock_ahead| {
            against_server(&ServerInspection {
                clock_ahead,
                ..super::super::store::tests::server()
            })
        };
        for (ahead, status) in [
            (0, Status::Ok),
            (1000, Status::Ok),
            (-1001, Status::Warning),
            (5000, Status::Warning),
            (5001, Status::Failure),
            (-3_600_000, Status::Failure),
        ] {
            assert_eq!(at(ahead).status, status, "{ahead}");
        }
        let behind = at(-2300);
        assert!(behind.found.contains("2.3 s behind"), "{behind:?}");
        assert!(behind.advice.unwrap().contains("NTP"));
    }

    #[test]
    fn a_jump_shows_against_the_newest_row() {
        let second = Duration::from_secs(1);
        let at = |newest, ready| against_store(newest, ready, NOW).status;
        assert_eq!(at(NOW.plus(AHEAD), true), Status::Ok);
        assert_eq!(at(NOW.plus(AHEAD + second), true), Status::Warning);
        assert_eq!(at(NOW.plus(AHEAD_MAX), false), Status::Warning);
        assert_eq!(at(NOW.plus(AHEAD_MAX + second), false), Status::Failure);
        assert_eq!(at(NOW.minus(BEHIND_MAX), true), Status::Ok);
        assert_eq!(at(NOW.minus(BEHIND_MAX + second), true), Status::Warning);
        assert_eq!(at(NOW.minus(BEHIND_MAX + second), false), Status::Ok);
    }
}
