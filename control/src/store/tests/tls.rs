//! TLS with a store's server: who is spoken to, and what is said when it is somebody else.

use std::path::Path;

use super::super::{OpenError, Store};

/// How each kind of server is asked in a URL to prove who it is.
#[derive(Clone, Copy)]
struct Words {
    /// The mode in which the host's name counts too.
    full: &'static str,
    /// The mode in which anybody will do who speaks TLS.
    encrypted: &'static str,
    /// What names the file of authorities.
    authority: &'static str,
}

const POSTGRES: Words = Words {
    full: "sslmode=verify-full",
    encrypted: "sslmode=require",
    authority: "sslrootcert",
};
const MARIADB: Words = Words {
    full: "ssl-mode=VERIFY_IDENTITY",
    encrypted: "ssl-mode=REQUIRED",
    authority: "ssl-ca",
};

/// Why a store is not opened; no words: it is opened, and takes writes.
async fn opened(url: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    match Store::open(url, place.path()).await {
        Ok(store) => {
            store.probe().await.unwrap();
            store.close().await;
            String::new()
        }
        Err(error @ OpenError::Tls { .. }) => error.to_string(),
        Err(other) => panic!("{url}: {other}"),
    }
}

async fn proves_itself(url: &str, words: Words, authority: &Path, wrong: &Path) {
    let Words {
        full,
        encrypted,
        authority: file,
    } = words;
    let (right, wrong) = (authority.display(), wrong.display());
    assert_eq!(opened(&format!("{url}?{full}&{file}={right}")).await, "");
    assert_eq!(opened(&format!("{url}?{encrypted}")).await, "");
    let elsewhere = url.replace("127.0.0.1", "localhost");
    assert_eq!(
        opened(&format!("{elsewhere}?{encrypted}")).await,
        "",
        "as such it can be reached"
    );
    for (url, why) in [
        // Of the same name as the right one, with another key.
        (format!("{url}?{full}&{file}={wrong}"), "BadSignature"),
        (format!("{url}?{full}"), "UnknownIssuer"),
        (
            format!("{elsewhere}?{full}&{file}={right}"),
            "not valid for name",
        ),
        (format!("{url}?{full}&{file}=/nowhere.pem"), "No such file"),
    ] {
        let said = opened(&url).await;
        assert!(said.contains(why), "{url}: {said}");
        assert!(
            said.contains("sslrootcert") && said.contains("ssl-ca"),
            "{said}"
        );
    }
}

/// Who has no TLS is not spoken to by a URL that asks for it.
async fn is_refused(url: &str, words: Words, authority: &Path) {
    let with_file = format!("{}&{}={}", words.full, words.authority, authority.display());
    for mode in [with_file.as_str(), words.encrypted] {
        let said = opened(&format!("{url}?{mode}")).await;
        assert!(said.contains("does not support TLS"), "{said}");
    }
}

#[tokio::test]
async fn postgres_proves_who_it_is_and_another_is_refused_with_words() {
    let server = testkit::Postgres::start_with_tls().await.unwrap();
    let other = testkit::MariaDb::start_with_tls().await.unwrap();
    let plain = testkit::Postgres::start().await.unwrap();
    let url = server.database("drover").await.unwrap();
    let (authority, wrong) = (server.authority().unwrap(), other.authority().unwrap());
    proves_itself(&url, POSTGRES, authority, wrong).await;
    is_refused(&plain.url(), POSTGRES, authority).await;
}

#[tokio::test]
async fn mariadb_proves_who_it_is_and_another_is_refused_with_words() {
    let server = testkit::MariaDb::start_with_tls().await.unwrap();
    let other = testkit::Postgres::start_with_tls().await.unwrap();
    let plain = testkit::MariaDb::start().await.unwrap();
    let url = server.database("drover").await.unwrap();
    let (authority, wrong) = (server.authority().unwrap(), other.authority().unwrap());
    proves_itself(&url, MARIADB, authority, wrong).await;
    let url = plain.database("drover").await.unwrap();
    is_refused(&url, MARIADB, authority).await;
}
