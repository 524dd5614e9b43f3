//! The configuration: whether `serve` takes it, and what of it should not stay so.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::check::Check;
use super::link;
use crate::config::{self, Config, Loaded};
use crate::profile::Server;
use crate::serve;

/// The bit of a file's mode by which everybody reads it.
const READ_BY_OTHERS: u32 = 0o004;

const NAME: &str = "configuration";

/// What was read, and what of it should not stay so.
pub(super) fn checks(loaded: &Loaded) -> Vec<Check> {
    let mut checks = refused(&loaded.config);
    if checks.iter().all(|check| check.name != NAME) {
        let found = match &loaded.file {
            Some(file) => format!("valid; {} was read", file.display()),
            None => "valid; no file was read".to_owned(),
        };
        checks.insert(0, Check::ok(NAME, found));
    }
    checks.extend(loaded.file.as_deref().and_then(exposed));
    checks.extend(loaded.warnings.iter().map(|warning| {
        let advice = "unset it, or name the key that was meant";
        Check::warning("configuration.variables", warning.as_str(), advice)
    }));
    checks.extend(for_tests(&loaded.config));
    if let Some(path) = &loaded.config.webhooks.ca_file
        && let Err(error) = File::open(path)
    {
        checks.push(Check::failure(
            "configuration.webhooks",
            format!(
                "webhooks.ca_file: {} cannot be read: {error}",
                path.display()
            ),
            "name a PEM file that the server's user can read, or leave the key out",
        ));
    }
    checks
}

/// What `serve` would refuse of it.
fn refused(config: &Config) -> Vec<Check> {
    if !config.profile.has_store() {
        return Vec::new();
    }
    let refused = serve::refusals(config).into_iter();
    let check = |(key, fault)| match key {
        "link.connect" => Check::of_fault(link::NAME, &fault),
        _ => Check::of_fault(NAME, &fault),
    };
    let mut checks: Vec<_> = refused.map(check).collect();
    if config.profile.runs(Server::Api)
        && let Err(error) = control::api::check_tls(&config.api)
    {
        checks.push(Check::of_fault(NAME, &serve::api_fault(&error)));
    }
    checks
}

/// A file with a password that everybody on this machine may read.
fn exposed(path: &Path) -> Option<Check> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let text = std::fs::read_to_string(path).ok()?;
    let line = 1 + text.lines().position(has_password)?;
    (mode & READ_BY_OTHERS != 0).then(|| {
        Check::warning(
            "configuration.file",
            format!(
                "line {line} of {} has a password in a URL, and every user of this machine may read it",
                path.display()
            ),
            format!(
                "chmod o-rwx {}, which the server's user must own or share a group with",
                path.display()
            ),
        )
    })
}

/// Whether a line of a file has a URL with a password in it.
fn has_password(line: &str) -> bool {
    let is_remark = line.trim_start().starts_with('#');
    let ends = |c: char| c == '"' || c == '\'' || c.is_whitespace();
    let of_url = |rest: &str| {
        let url = rest.split(ends).next().unwrap_or_default();
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        // All that is before the last `@`, as the store reads it: a password may have one too.
        let user = place.rsplit_once('@').map(|(user, _)| user);
        let password = user.and_then(|user| user.split_once(':'));
        password.is_some_and(|(_, password)| !password.is_empty())
            || query.split('&').any(|word| word.starts_with("password="))
    };
    !is_remark && line.split("://").skip(1).any(of_url)
}

/// Keys that are for tests and labs.
fn for_tests(config: &Config) -> Vec<Check> {
    let name = "configuration.tests";
    let mut checks = Vec::new();
    if config.faults != config::FaultSettings::default() {
        let found = "faults.… has process servers hang or die on purpose";
        checks.push(Check::warning(name, found, "remove the section [faults]"));
    }
    if config.webhooks.allow_insecure {
        let found = "webhooks.allow_insecure lets webhooks reach whatever the server can reach";
        checks.push(Check::warning(name, found, "set it to false"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::super::check::Status;
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn what_serve_refuses_is_a_failure() {
        let names = |config: &Config| -> Vec<_> {
            let checks = refused(config).into_iter();
            checks.map(|check| (check.name, check.status)).collect()
        };
        let mut config = Config::default();
        assert_eq!(names(&config), []);
        let (all, link) = ((NAME, Status::Failure), (link::NAME, Status::Failure));
        for (profile, alone, named) in [
            ("api-server", vec![link, all], vec![all]),
            ("process-server", vec![link, all], vec![all]),
            ("api-server,process-server", vec![link], vec![]),
            ("agent-server", vec![], vec![]),
        ] {
            config.profile = Profile::parse(profile).unwrap();
            config.link.connect.clear();
            assert_eq!(names(&config), alone, "{profile}");
            config.link.connect.push("a:7444".to_owned());
            assert_eq!(names(&config), named, "{profile}");
        }
    }

    #[test]
    fn a_listener_that_cannot_speak_its_tls_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.pem");
        std::fs::write(&file, "no certificate").unwrap();
        let told = |config: &Config| {
            let checks = refused(config).into_iter();
            checks.map(|check| check.found).collect::<Vec<_>>()
        };
        let mut config = Config::default();
        config.api.ui.certificate = Some(file.clone());
        assert!(
            told(&config)[0].contains("api.ui.key"),
            "{:?}",
            told(&config)
        );
        config.api.ui.key = Some(file);
        assert!(
            told(&config)[0].contains("server.pem"),
            "{:?}",
            told(&config)
        );
        config.profile = Profile::parse("process-server").unwrap();
        config.link.connect.push("a:7444".to_owned());
        let others = told(&config);
        assert!(
            others.iter().all(|found| !found.contains("server.pem")),
            "{others:?}"
        );
    }

    #[test]
    fn a_password_is_known_by_its_place_in_a_url() {
        for with in [
            "store = \"postgres://drover:secret@db/drover\"",
            "url = 'redis://:secret@10.0.0.1'",
            "read = [\"mysql://a/b\", \"mysql://u:p@a/b\"]",
            "store = \"postgres://db/drover?sslmode=require&password=x\"",
            "store = \"mysql://u:p@ss/w@db/drover\"",
        ] {
            assert!(has_password(with), "{with}");
        }
        for without in [
            "# store = \"postgres://drover:secret@db/drover\"",
            "store = \"postgres://drover@db:5432/drover\"",
            "url = \"zookeeper://a:2181,b:2181/drover\"",
            "listen = \"0.0.0.0:7443\" # see https://a/b",
        ] {
            assert!(!has_password(without), "{without}");
        }
    }

    #[test]
    fn a_file_with_a_password_is_for_its_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drover.toml");
        let look = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            exposed(&path)
        };
        let with = "domain = \"a.b\"\nstore = \"postgres://drover:secret@db/drover\"\n";
        let told = look(with, 0o644).unwrap();
        assert_eq!(told.status, Status::Warning);
        assert!(told.found.contains("line 2") && !told.found.contains("secret"));
        assert_eq!(look(with, 0o640), None);
        assert_eq!(look("store = \"sqlite:\"\n", 0o644), None);
    }

    #[test]
    fn keys_that_are_for_tests_are_warned_of() {
        let mut config = Config::default();
        assert_eq!(for_tests(&config), Vec::new());
        config.webhooks.allow_insecure = true;
        config.faults.die_every = Some(std::time::Duration::from_secs(5));
        assert_eq!(for_tests(&config).len(), 2);
    }
}
