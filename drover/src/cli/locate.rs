//! Finds the API and a token: flags and variables first, then what the local server wrote.

use super::Global;
use super::client::Client;
use super::tls::Trust;
use crate::data_dir::{self, Ready};
use crate::fault::{Exit, Fault};

/// A client for the API that was named, or the local one.
pub(crate) fn client(global: &Global) -> Result<Client, Fault> {
    let directory = data_dir::path(global.data_dir.as_deref());
    let ready = data_dir::read_ready(&directory);
    let local = ready.as_ref().and_then(|ready| ready.api.clone());
    let url = match (global.api.clone(), local, &ready) {
        (Some(url), _, _) | (None, Some(url), _) => url,
        (None, None, Some(ready)) => return Err(no_api(ready)),
        (None, None, None) => {
            return Err(Fault::new(format_args!(
                "no server was named, and {} shows none on this machine",
                directory.display()
            ))
            .advise(
                "start one with `drover serve`, or name one: by its data directory, as root or its user, with \
                 --data-dir DIR or DROVER_DATA_DIR (a service's is /var/lib/drover), or with --api URL --token TOKEN",
            )
            .exit(Exit::Unreachable));
        }
    };
    let token = match &global.token {
        Some(token) => Some(token.clone()),
        None => local_token(ready.as_ref(), &url),
    };
    Client::new(&url, token, &trust(global, ready.as_ref(), &url))
}

/// The same for whoever only asks how it is: a server without an API tells that as well.
pub(crate) fn health(global: &Global) -> Result<Client, Fault> {
    let ready = data_dir::read_ready(&data_dir::path(global.data_dir.as_deref()));
    let admin = ready.filter(|ready| global.api.is_none() && ready.api.is_none());
    match admin.and_then(|ready| ready.admin) {
        Some(url) => Client::new(&url, None, &Trust::Authorities(None)),
        None => client(global),
    }
}

/// A server that others order about.
fn no_api(ready: &Ready) -> Fault {
    Fault::new(format_args!(
        "the server of {} has no API: its profile is {}",
        ready.data_dir.display(),
        ready.profile
    ))
    .advise(
        "name one that has: --api URL --token TOKEN; `drover health` works here where admin.listen is set",
    )
    .exit(Exit::Unreachable)
}

/// The server on this machine is known by its certificate; another one must be vouched for.
fn trust(global: &Global, ready: Option<&Ready>, url: &str) -> Trust {
    let here = ready.filter(|ready| ready.api.as_deref() == Some(url));
    match here.and_then(|ready| ready.api_certificate.as_ref()) {
        Some(certificate) if global.ca_file.is_none() => Trust::Shown(certificate.clone()),
        _ => Trust::Authorities(global.ca_file.clone()),
    }
}

/// The local admin token, but only for the local server: it is not shown to another one.
fn local_token(ready: Option<&Ready>, url: &str) -> Option<String> {
    let ready = ready.filter(|ready| ready.api.as_deref() == Some(url))?;
    let text = std::fs::read_to_string(ready.admin_token_file.as_ref()?).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Output;

    fn global(directory: &std::path::Path) -> Global {
        Global {
            api: None,
            token: None,
            ca_file: None,
            data_dir: Some(directory.to_owned()),
            output: Output::Human,
        }
    }

    #[test]
    fn without_a_server_the_advice_is_to_start_one_or_to_say_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let fault = client(&global(directory.path())).unwrap_err();
        assert_eq!(fault.exit, Exit::Unreachable);
        let advice = fault.advice.unwrap();
        for way in ["drover serve", "--data-dir", "DROVER_DATA_DIR", "--api URL"] {
            assert!(advice.contains(way), "{advice}");
        }
    }

    #[test]
    fn a_server_without_api_says_how_it_is_and_is_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let data = data_dir::DataDir::open(&directory.path().join("data")).unwrap();
        let ready = Ready {
            api: None,
            profile: "agent-server".to_owned(),
            ..Ready::example()
        };
        data.write_ready(&ready).unwrap();
        let global = global(data.path());
        let fault = client(&global).unwrap_err();
        assert!(fault.what.contains("has no API"), "{fault:?}");
        assert_eq!(health(&global).unwrap().address(), "127.0.0.1:7441");
    }

    #[test]
    fn the_local_token_is_not_shown_to_another_server() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let ready = Ready {
            api: Some("http://127.0.0.1:1".to_owned()),
            public: None,
            api_certificate: Some("/tls.crt".into()),
            admin: None,
            agents: Some("127.0.0.1:2".to_owned()),
            link: None,
            admin_token_file: Some(file),
            data_dir: directory.path().to_owned(),
            pid: 1,
            profile: "all".to_owned(),
            version: "0".to_owned(),
        };
        assert_eq!(
            local_token(Some(&ready), "http://127.0.0.1:1").as_deref(),
            Some("secret")
        );
        assert_eq!(local_token(Some(&ready), "http://other.example"), None);
        let mut global = global(directory.path());
        let trusted = |global: &Global, url| trust(global, Some(&ready), url);
        assert_eq!(
            trusted(&global, "http://127.0.0.1:1"),
            Trust::Shown("/tls.crt".into())
        );
        let others = Trust::Authorities(None);
        assert_eq!(trusted(&global, "https://other.example"), others);
        global.ca_file = Some("/ca.crt".into());
        let named = Trust::Authorities(Some("/ca.crt".into()));
        assert_eq!(trusted(&global, "http://127.0.0.1:1"), named);
    }
}
