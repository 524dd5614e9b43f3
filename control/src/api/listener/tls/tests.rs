//! What files are taken and what is said of others. Over real sockets: `control/tests/api/listeners.rs`.

use std::fs;

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};

use super::*;

/// A folder with a certificate and its key.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let (certificate, key) = pair();
        site.write(&certificate, &key);
        site
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.dir.path().join("tls.crt"),
            key: self.dir.path().join("tls.key"),
        }
    }

    fn write(&self, certificate: &str, key: &str) {
        fs::write(self.files().certificate, certificate).unwrap();
        fs::write(self.files().key, key).unwrap();
    }

    fn open(&self) -> Certificate {
        Certificate::open("ui", self.files()).unwrap()
    }

    fn error(&self) -> String {
        let opened = Certificate::open("ui", self.files());
        opened.err().expect("it must not be taken").to_string()
    }
}

/// A certificate and its key in PEM.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_give_instead() {
    let (certificate, key) = pair();
    let (other, other_key) = pair();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let long = " ".repeat((1 << 20) + 1);
    for (certificate, key, words) in [
        (
            "",
            &*key,
            "tls.crt holds no certificate in PEM; give the server's own",
        ),
        (&*key, &*key, "tls.crt holds no certificate in PEM"),
        (
            &*certificate,
            "",
            "tls.key holds no private key in PEM; give one that is not",
        ),
        (
            &*certificate,
            encrypted,
            "tls.key holds no private key in PEM",
        ),
        (
            &*certificate,
            &*other_key,
            "is not that of the first certificate in",
        ),
        (
            &*format!("{other}{certificate}"),
            &*key,
            "before its intermediates",
        ),
        (broken, &*key, "cannot be used:"),
        (&*certificate, broken_key, "cannot be used:"),
        (
            &*long,
            &*key,
            "tls.crt cannot be read: it is larger than 1 MiB",
        ),
    ] {
        let site = Site::new();
        site.write(certificate, key);
        let error = site.error();
        assert!(error.contains(words), "{error}");
        assert!(
            error.contains("; give") || error.contains("; name"),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_is_not_there_or_is_none_is_named() {
    let site = Site::new();
    fs::remove_file(site.files().key).unwrap();
    let error = site.error();
    assert!(
        error.contains("tls.key cannot be read: No such file"),
        "{error}"
    );
    fs::create_dir(site.files().key).unwrap();
    let error = site.error();
    assert!(
        error.contains("tls.key cannot be read: it is not a file"),
        "{error}"
    );
}

#[test]
fn keys_of_other_kinds_are_taken() {
    let site = Site::new();
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    site.write(&certificate.pem(), &key.serialize_pem());
    site.open();
}

#[test]
fn a_change_is_taken_when_two_looks_have_seen_it() {
    let site = Site::new();
    let shown = site.open();
    let before = shown.config();
    shown.look(false);
    let (certificate, key) = pair();
    // Whoever renews writes one file after the other.
    fs::write(site.files().certificate, certificate).unwrap();
    shown.look(false);
    fs::write(site.files().key, key).unwrap();
    shown.look(false);
    assert!(Arc::ptr_eq(&before, &shown.config()), "seen only once");
    assert_eq!(shown.changes(), [0, 0], "half a change is no mistake");
    shown.look(false);
    assert!(!Arc::ptr_eq(&before, &shown.config()));
    shown.look(false);
    assert_eq!(shown.changes(), [1, 0]);
}

#[test]
fn what_is_asked_for_is_judged_at_once_and_a_bad_change_leaves_the_old() {
    let site = Site::new();
    let shown = site.open();
    let before = shown.config();
    site.write(&pair().0, &pair().1);
    shown.look(true);
    assert_eq!(shown.changes(), [0, 1]);
    // It is said once, not at every look.
    shown.look(false);
    shown.look(false);
    assert_eq!(shown.changes(), [0, 1]);
    fs::remove_file(site.files().certificate).unwrap();
    shown.look(false);
    shown.look(false);
    assert_eq!(shown.changes(), [0, 2]);
    assert!(Arc::ptr_eq(&before, &shown.config()));
    let (certificate, key) = pair();
    site.write(&certificate, &key);
    shown.look(true);
    assert_eq!(shown.changes(), [1, 2]);
    assert!(!Arc::ptr_eq(&before, &shown.config()));
}

#[test]
fn an_expired_certificate_is_served_and_its_end_is_told() {
    let site = Site::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 2);
    let certificate = params.self_signed(&key).unwrap();
    site.write(&certificate.pem(), &key.serialize_pem());
    assert_eq!(site.open().expires(), UnixMs(978_393_600_000));
}
