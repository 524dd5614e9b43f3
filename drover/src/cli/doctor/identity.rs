//! The certificate authority, and the certificate that a running server shows.

use std::path::Path;
use std::time::{Duration, SystemTime};

use control::clock::UnixMs;
use control::identity::{
    self, AgentServerIdentity, GATEWAY_CERTIFICATE_LIFE, IdentityError, Validity,
};

use super::check::Check;
use super::store::of_agents;
use crate::cli::top::format::span;
use crate::data_dir::IDENTITY;
use crate::fault::chain;

/// A server whose certificate has less than this left should be restarted: it makes a new one then.
const RESTART_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a store knows of the identity of its deployment.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// How many agents have certificates of it.
    pub(super) agents: u64,
    /// Other servers have it: on this store no other one may be made.
    pub(super) is_elsewhere: bool,
}

/// What there is to say of the identity in `directory`. `since`: since when a server has been ready.
pub(super) fn checks(
    directory: &Path,
    domain: &str,
    known: Known,
    since: Option<SystemTime>,
    now: UnixMs,
) -> Vec<Check> {
    let place = directory.join(IDENTITY);
    let running = since.is_some();
    let mut checks = match identity::inspect(&place, domain, now) {
        Err(error) => vec![Check::failure("identity", chain(&error), advice(&error))],
        Ok(None) => vec![none(known)],
        Ok(Some(all)) => all.iter().map(|one| authority(one, running, now)).collect(),
    };
    checks.extend(since.map(|since| of_server(since, now)));
    checks
}

/// What there is to say of the identity of an agent server on its own in `directory`.
pub(super) fn of_agent_server(directory: &Path, domain: &str, now: UnixMs) -> Check {
    let name = "identity.agent_server";
    match AgentServerIdentity::load(&directory.join(IDENTITY), domain) {
        Err(error) => Check::failure(name, chain(&error), advice(&error)),
        Ok(identity) => ends(name, now.until(identity.not_after)),
    }
}

/// A certificate of an agent server, which is not renewed while it runs.
fn ends(name: &'static str, left: Duration) -> Check {
    let found = format!("its certificate ends in {}", span(left.as_secs()));
    match left < RESTART_BEFORE {
        true => Check::warning(
            name,
            found,
            "`drover identity agent-server DIR` where the deployment's identity is makes another; put it \
             in this one's place, and restart",
        ),
        false => Check::ok(name, found),
    }
}

fn none(known: Known) -> Check {
    let agents = known.agents;
    if known.is_elsewhere {
        return Check::failure(
            "identity",
            "there is none, and the store is in use by a deployment that has one",
            "copy the folder `identity` from the data directory of one of its servers, or from a backup",
        );
    }
    if agents == 0 {
        return Check::ok("identity", "none yet: the first start makes it");
    }
    Check::failure(
        "identity",
        format!("there is none, and the store knows {}", of_agents(agents)),
        "restore DATA/identity from a backup before the next start: a new one locks all of them out",
    )
}

fn authority(of: &Validity, running: bool, now: UnixMs) -> Check {
    let name = match of.name {
        "root" => "identity.root",
        "gateway-ca" => "identity.gateway_ca",
        "process-ca" => "identity.process_ca",
        _ => "identity.agent_ca",
    };
    let left = now.until(of.not_after);
    let found = match left.is_zero() {
        true => "has ended".to_owned(),
        false => format!("ends in {}", span(left.as_secs())),
    };
    match (name, left.is_zero(), of.near_end) {
        ("identity.root", true, _) => Check::failure(
            name,
            found,
            "begin a new deployment: a new data directory, and every agent joins again",
        ),
        ("identity.root", false, true) => Check::warning(
            name,
            found,
            "plan a new deployment before: a root cannot be renewed",
        ),
        (_, true, _) if running => {
            Check::failure(name, found, "restart the server, which renews it")
        }
        (_, false, true) if running => {
            Check::warning(name, found, "restart the server before, which renews it")
        }
        (_, _, true) => Check::ok(name, format!("{found}; the next start renews it")),
        (_, _, false) => Check::ok(name, found),
    }
}

/// The server's own certificate is made at its start and never written to disk: it is as old as the server.
fn of_server(since: SystemTime, now: UnixMs) -> Check {
    let name = "identity.server";
    let started = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let ends = UnixMs(0).plus(started).plus(GATEWAY_CERTIFICATE_LIFE);
    let left = now.until(ends);
    if left.is_zero() {
        let found = "the running server's certificate has ended";
        return Check::failure(name, found, "restart the server, which makes a new one");
    }
    let found = format!(
        "the running server's certificate ends in {}",
        span(left.as_secs())
    );
    match left < RESTART_BEFORE {
        true => Check::warning(
            name,
            found,
            "restart the server before, which makes a new one",
        ),
        false => Check::ok(name, found),
    }
}

fn advice(error: &IdentityError) -> String {
    match error {
        IdentityError::Domain(_) => "set domain to a name such as cloud.example".to_owned(),
        IdentityError::OtherDomain { stored, .. } => format!("set domain = \"{stored}\""),
        IdentityError::Exposed { path, .. } => format!("chmod go-rwx {}", path.display()),
        IdentityError::Io { path, .. } => {
            format!(
                "run this as the server's user; look at it: `ls -ld {}`",
                path.display()
            )
        }
        IdentityError::Incomplete { .. } | IdentityError::Damaged { .. } => {
            "restore DATA/identity from a backup; it cannot be made again".to_owned()
        }
        IdentityError::Missing(_) | IdentityError::Exists(_) => "name another data_dir".to_owned(),
        IdentityError::NotExported(_) | IdentityError::Ended(_) => {
            "`drover identity agent-server DIR` where the deployment's identity is makes one"
                .to_owned()
        }
        IdentityError::Issue(_) => "look at the system's date: `date`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Status, worst};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NOW: UnixMs = UnixMs(1_795_512_600_000);

    fn said(name: &'static str, left: Duration, near_end: bool, running: bool) -> Status {
        let not_after = NOW.plus(left);
        let validity = Validity {
            name,
            not_after,
            near_end,
        };
        authority(&validity, running, NOW).status
    }

    #[test]
    fn a_root_near_its_end_is_warned_of_and_an_intermediate_only_under_a_running_server() {
        assert_eq!(said("root", 400 * DAY, false, true), Status::Ok);
        assert_eq!(said("root", 100 * DAY, true, false), Status::Warning);
        assert_eq!(said("root", Duration::ZERO, true, false), Status::Failure);
        for name in ["gateway-ca", "agent-ca", "process-ca"] {
            assert_eq!(said(name, 100 * DAY, true, false), Status::Ok, "{name}");
            assert_eq!(said(name, 100 * DAY, true, true), Status::Warning, "{name}");
            assert_eq!(
                said(name, Duration::ZERO, true, true),
                Status::Failure,
                "{name}"
            );
        }
    }

    #[test]
    fn a_servers_certificate_is_as_old_as_the_server() {
        let status = |age: Duration| {
            let since = SystemTime::UNIX_EPOCH + Duration::from_millis(NOW.0) - age;
            of_server(since, NOW).status
        };
        assert_eq!(status(DAY), Status::Ok);
        assert_eq!(status(336 * DAY), Status::Warning);
        assert_eq!(status(366 * DAY), Status::Failure);
    }

    #[test]
    fn an_agent_servers_certificate_is_renewed_by_hand_and_in_time() {
        let parent = tempfile::tempdir().unwrap();
        let (control, agents) = (parent.path().join("control"), parent.path().join("agents"));
        let now = control::clock::now();
        let look = |now| of_agent_server(&agents, "cloud.example", now);
        let missing = look(now);
        assert_eq!(missing.status, Status::Failure);
        let advice = missing.advice.unwrap();
        assert!(advice.contains("drover identity agent-server"), "{advice}");
        let made = identity::Identity::open_or_create(&control, "cloud.example").unwrap();
        std::fs::create_dir(&agents).unwrap();
        made.make_agent_server(&agents.join(IDENTITY)).unwrap();
        assert_eq!(look(now).status, Status::Ok);
        assert_eq!(look(now.plus(336 * DAY)).status, Status::Warning);
    }

    #[test]
    fn a_lost_identity_is_told_from_one_that_never_was() {
        let directory = tempfile::tempdir().unwrap();
        let known = |known| checks(directory.path(), "drover.internal", known, None, NOW);
        let look = |agents| {
            known(Known {
                agents,
                is_elsewhere: false,
            })
        };
        assert_eq!(worst(&look(0)), Status::Ok);
        let lost = look(1200);
        assert_eq!(worst(&lost), Status::Failure);
        assert!(lost[0].found.contains("1,200 agents"), "{lost:?}");
        let elsewhere = known(Known {
            agents: 0,
            is_elsewhere: true,
        });
        assert_eq!(worst(&elsewhere), Status::Failure);
        assert!(elsewhere[0].advice.as_ref().unwrap().contains("copy"));
        assert!(!directory.path().join("identity").exists());
    }

    #[test]
    fn an_identity_of_another_domain_is_told_with_the_line_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("identity");
        identity::Identity::open_or_create(&place, "cloud.example").unwrap();
        let now = control::clock::now();
        let found = checks(
            directory.path(),
            "cloud.example",
            Known::default(),
            None,
            now,
        );
        assert_eq!((found.len(), worst(&found)), (4, Status::Ok), "{found:?}");
        let found = checks(
            directory.path(),
            "other.example",
            Known::default(),
            None,
            now,
        );
        let advice = found[0].advice.as_deref();
        assert_eq!(advice, Some("set domain = \"cloud.example\""));
    }
}
