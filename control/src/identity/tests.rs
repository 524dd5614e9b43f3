use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::*;

const DOMAIN: &str = "cloud.example";
/// 2026-11-24T09:30:00Z.
const NOW: UnixMs = UnixMs(1_795_512_600_000);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct Place {
    _temp: tempfile::TempDir,
    dir: std::path::PathBuf,
}

fn place() -> Place {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data/identity");
    Place { _temp: temp, dir }
}

fn open(place: &Place) -> Identity {
    Identity::open_or_create_at(&place.dir, DOMAIN, NOW).unwrap()
}

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => format!("URI {uri}"),
        GeneralName::DNSName(dns) => format!("DNS {dns}"),
        other => format!("{other:?}"),
    };
    names.value.general_names.iter().map(name).collect()
}

/// `(serverAuth, clientAuth, anything else)`.
fn uses(certificate: &X509Certificate<'_>) -> (bool, bool, bool) {
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    let other = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    (usage.server_auth, usage.client_auth, other)
}

fn p256_csr(shape: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    csr_with(&authority::generate_key().unwrap(), shape)
}

fn csr_with(key: &KeyPair, shape: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    shape(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn agent() -> AgentId {
    AgentId(Uuid::from_u128(0x0190_b6b8_0000_7000_8000_0000_0000_0001))
}

fn issue(identity: &Identity, csr: &[u8]) -> Result<AgentCertificate, IssueError> {
    identity.issue_agent(agent(), csr, AGENT_CERTIFICATE_LIFE, NOW)
}

#[test]
fn an_identity_made_once_is_the_same_at_the_next_start() {
    let place = place();
    let first = open(&place);
    let again = open(&place);
    assert_eq!(first.root_key(), again.root_key());
    assert_eq!(first.root(), again.root());
    assert_eq!(first.gateway_secrets(), again.gateway_secrets());
    assert_eq!(first.agents.certificate(), again.agents.certificate());
    assert_eq!(first.gateways.certificate(), again.gateways.certificate());
    assert_eq!(
        KeyHash::of_spki(parse(first.root()).public_key().raw),
        first.root_key()
    );
    assert_ne!(first.secrets.reset_key, first.secrets.token_key);
}

#[test]
fn only_the_owner_can_read_the_keys() {
    let place = place();
    open(&place);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.dir), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(&place.dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 10);
    let siblings = fs::read_dir(place.dir.parent().unwrap()).unwrap().count();
    assert_eq!(siblings, 1, "no draft stays behind");
}

#[test]
fn the_gateway_chain_leads_from_the_leaf_to_the_root_and_serves_only() {
    let place = place();
    let identity = open(&place);
    let tls = identity.gateway_tls_at(NOW).unwrap();
    let [leaf, intermediate, root] = &tls.chain[..] else {
        panic!("leaf, intermediate, root");
    };
    let leaf = parse(leaf);
    assert_eq!(
        names(&leaf),
        [
            format!("URI spiffe://cloud.example/gateway/{}", tls.gateway),
            "DNS gateway.drover.internal".to_owned(),
        ]
    );
    assert_eq!(uses(&leaf), (true, false, false));
    assert_eq!(uses(&parse(intermediate)), (true, false, false));
    assert!(!leaf.is_ca());
    assert_eq!(leaf.issuer(), parse(intermediate).subject());
    assert_eq!(parse(intermediate).issuer(), parse(root).subject());
    assert_eq!(
        KeyHash::of_spki(parse(root).public_key().raw),
        identity.root_key()
    );
    let again = identity.gateway_tls_at(NOW).unwrap();
    assert_ne!(
        tls.gateway, again.gateway,
        "every start is an instance of its own"
    );
    assert_ne!(tls.key, again.key);
}

#[test]
fn an_agent_certificate_is_for_clients_only_and_says_who_it_is() {
    let place = place();
    let identity = open(&place);
    let key = authority::generate_key().unwrap();
    let issued = issue(&identity, &csr_with(&key, |_| {})).unwrap();
    let leaf = parse(&issued.chain[0]);
    assert_eq!(
        names(&leaf),
        [format!("URI spiffe://cloud.example/agent/{}", agent())]
    );
    assert_eq!(uses(&leaf), (false, true, false));
    assert!(
        leaf.basic_constraints()
            .unwrap()
            .is_some_and(|constraints| !constraints.value.ca)
    );
    assert!(
        leaf.key_usage().unwrap().is_some_and(|usage| {
            usage.value.digital_signature() && !usage.value.key_cert_sign()
        })
    );
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(issued.key, KeyHash::of_spki(leaf.public_key().raw));
    assert_eq!(uses(&parse(&issued.chain[1])), (false, true, false));
    let seconds = i64::try_from(NOW.0 / 1000).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), seconds - 300);
    assert_eq!(
        leaf.validity().not_after.timestamp(),
        seconds + 30 * 24 * 3600
    );
    assert_eq!(issued.not_after, NOW.plus(AGENT_CERTIFICATE_LIFE));
    assert!(identity.agents.signed(&issued.chain[0].clone().into()));
    assert!(!identity.gateways.signed(&issued.chain[0].clone().into()));
}

/// rustls itself decides: the very checks that gateways and agents make.
mod separation {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{CertificateError, Error, RootCertStore};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    fn trust(anchors: &[CertificateDer<'_>]) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        for anchor in anchors {
            store.add(anchor.clone().into_owned()).unwrap();
        }
        Arc::new(store)
    }

    fn at(moment: UnixMs) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(moment.0))
    }

    fn as_gateway(
        identity: &Identity,
        chain: &[CertificateDer<'_>],
        now: UnixMs,
    ) -> Result<(), Error> {
        as_server(&[identity.root().clone()], chain, now)
    }

    fn as_server(
        roots: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        now: UnixMs,
    ) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(trust(roots), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(protocol::identity::GATEWAY_SERVER_NAME).unwrap();
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], at(now))
            .map(drop)
    }

    fn as_agent(tls: &GatewayTls, chain: &[CertificateDer<'_>], now: UnixMs) -> Result<(), Error> {
        as_client(&tls.agent_roots, chain, now)
    }

    fn as_client(
        roots: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        now: UnixMs,
    ) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(trust(roots), provider)
            .build()
            .unwrap();
        verifier
            .verify_client_cert(&chain[0], &chain[1..], at(now))
            .map(drop)
    }

    fn agent_chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
        let issued = issue(identity, &p256_csr(|_| {})).unwrap();
        issued.chain.into_iter().map(CertificateDer::from).collect()
    }

    #[test]
    fn each_kind_of_certificate_is_good_for_its_own_side_only() {
        let place = place();
        let identity = open(&place);
        let tls = identity.gateway_tls_at(NOW).unwrap();
        let agent = agent_chain(&identity);
        assert_eq!(as_gateway(&identity, &tls.chain, NOW), Ok(()));
        assert_eq!(as_agent(&tls, &agent, NOW), Ok(()));
        assert!(as_gateway(&identity, &agent, NOW).is_err());
        assert!(as_agent(&tls, &tls.chain, NOW).is_err());
    }

    #[test]
    fn process_servers_and_agent_servers_know_each_other_and_nobody_else_for_one() {
        let place = place();
        let identity = open(&place);
        let dir = place.dir.with_file_name("elsewhere");
        identity.make_agent_server_at(&dir, NOW).unwrap();
        let elsewhere = AgentServerIdentity::load_at(&dir, DOMAIN, NOW).unwrap();
        // In the process that has the authorities, and elsewhere.
        let here = identity.agent_server_at(NOW).unwrap();
        assert!(here.secrets == elsewhere.secrets && here.not_after == elsewhere.not_after);
        for agent_server in [here, elsewhere] {
            know_each_other(&identity, &agent_server);
        }
    }

    fn know_each_other(identity: &Identity, agent_server: &AgentServerIdentity) {
        let (tls, roots) = (&agent_server.tls, &agent_server.process_roots);
        let process = identity.process_server_tls_at(NOW).unwrap();
        let name = names(&parse(&process.chain[0])).join(" ");
        assert!(
            name.starts_with("URI spiffe://cloud.example/process-server/"),
            "{name}"
        );
        assert_eq!(as_client(roots, &process.chain, NOW), Ok(()));
        assert_eq!(as_server(&process.gateway_roots, &tls.chain, NOW), Ok(()));
        assert_eq!(
            as_gateway(identity, &tls.chain, NOW),
            Ok(()),
            "agents take it for a gateway"
        );
        assert_eq!(as_agent(tls, &agent_chain(identity), NOW), Ok(()));

        assert!(as_agent(tls, &process.chain, NOW).is_err());
        assert!(as_client(roots, &agent_chain(identity), NOW).is_err());
        assert!(as_client(roots, &tls.chain, NOW).is_err());
        assert!(as_gateway(identity, &process.chain, NOW).is_err());
        assert!(as_server(&process.gateway_roots, &agent_chain(identity), NOW).is_err());
    }

    #[test]
    fn another_deployments_certificates_are_strangers() {
        let (ours, theirs) = (place(), place());
        let (ours, theirs) = (open(&ours), open(&theirs));
        let tls = ours.gateway_tls_at(NOW).unwrap();
        let unknown = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert_eq!(as_agent(&tls, &agent_chain(&theirs), NOW), unknown);
        let foreign = theirs.gateway_tls_at(NOW).unwrap();
        assert_eq!(as_gateway(&ours, &foreign.chain, NOW), unknown);
    }

    #[test]
    fn certificates_hold_from_a_little_before_to_their_end() {
        let place = place();
        let identity = open(&place);
        let tls = identity.gateway_tls_at(NOW).unwrap();
        let agent = agent_chain(&identity);
        let minute = Duration::from_secs(60);
        assert_eq!(as_agent(&tls, &agent, NOW.minus(minute)), Ok(()));
        assert!(as_agent(&tls, &agent, NOW.minus(minute * 10)).is_err());
        let end = NOW.plus(AGENT_CERTIFICATE_LIFE);
        assert_eq!(as_agent(&tls, &agent, end.minus(minute)), Ok(()));
        assert!(as_agent(&tls, &agent, end.plus(minute)).is_err());
    }

    #[test]
    fn an_agent_of_before_the_intermediate_was_renewed_is_still_known() {
        let place = place();
        let first = open(&place);
        let later = NOW.plus(9 * YEAR).plus(Duration::from_secs(24 * 3600));
        let issued = first
            .issue_agent(agent(), &p256_csr(|_| {}), YEAR, later.minus(YEAR / 2))
            .unwrap();
        let old: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let renewed = Identity::open_or_create_at(&place.dir, DOMAIN, later).unwrap();
        let tls = renewed.gateway_tls_at(later).unwrap();
        assert_eq!(as_agent(&tls, &old, later), Ok(()));
        assert_eq!(as_gateway(&first, &tls.chain, later), Ok(()));
    }
}

#[test]
fn every_certificate_has_a_subject_and_a_serial_of_its_own() {
    let place = place();
    let identity = open(&place);
    let tls = identity.gateway_tls_at(NOW).unwrap();
    let agents: Vec<_> = (1..50_u128)
        .map(|n| {
            identity
                .issue_agent(AgentId(Uuid::from_u128(n)), &p256_csr(|_| {}), YEAR, NOW)
                .unwrap()
        })
        .collect();
    let mut all: Vec<&[u8]> = tls.chain.iter().map(AsRef::as_ref).collect();
    all.push(tls.agent_roots[0].as_ref());
    all.extend(agents.iter().map(|agent| agent.chain[0].as_slice()));
    let serials: HashSet<_> = all
        .iter()
        .map(|der| parse(der).raw_serial().to_vec())
        .collect();
    let subjects: HashSet<_> = all
        .iter()
        .map(|der| parse(der).subject().to_string())
        .collect();
    assert_eq!((serials.len(), subjects.len()), (all.len(), all.len()));
    assert!(
        serials
            .iter()
            .all(|serial| serial.len() == 16 && (0x40..0x80).contains(&serial[0]))
    );
}

#[test]
fn names_and_extensions_in_a_request_are_ignored() {
    let place = place();
    let identity = open(&place);
    let csr = p256_csr(|params| {
        params
            .distinguished_name
            .push(DnType::CommonName, "root of all evil");
        params.subject_alt_names = vec![
            SanType::DnsName("gateway.drover.internal".try_into().unwrap()),
            SanType::URI(
                "spiffe://cloud.example/gateway/0190b6b8-0000-7000-8000-000000000009"
                    .try_into()
                    .unwrap(),
            ),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::Any,
        ];
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(
            &[1, 3, 6, 1, 4, 1, 99999, 1],
            vec![5, 0],
        )];
    });
    let issued = issue(&identity, &csr).unwrap();
    let leaf = parse(&issued.chain[0]);
    assert_eq!(
        names(&leaf),
        [format!("URI spiffe://cloud.example/agent/{}", agent())]
    );
    assert_eq!(uses(&leaf), (false, true, false));
    assert!(!leaf.is_ca());
    assert!(
        leaf.key_usage()
            .unwrap()
            .is_some_and(|usage| !usage.value.key_cert_sign())
    );
    assert!(!leaf.subject().to_string().contains("evil"));
    assert!(leaf.extensions().iter().all(|extension| {
        !extension
            .oid
            .to_id_string()
            .starts_with("1.3.6.1.4.1.99999")
    }));
}

#[test]
fn requests_that_cannot_be_used_are_told_apart() {
    let place = place();
    let identity = open(&place);
    let good = p256_csr(|_| {});
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let sha384 = {
        // The OID ecdsa-with-SHA256 … .3.2 becomes ecdsa-with-SHA384 … .3.3 in the last place.
        let mut csr = good.clone();
        let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        let at = csr.windows(8).rposition(|window| window == oid).unwrap();
        csr[at + 7] = 0x03;
        csr
    };
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    let swapped = {
        // Another key in the place of the signer's: possession is not proved.
        let (mine, theirs) = (
            authority::generate_key().unwrap(),
            authority::generate_key().unwrap(),
        );
        let mut csr = csr_with(&mine, |_| {});
        let point = mine.public_key_raw().to_vec();
        let at = csr.windows(65).position(|window| window == point).unwrap();
        csr[at..at + 65].copy_from_slice(theirs.public_key_raw());
        csr
    };
    let cases: [(&str, Vec<u8>, CsrError); 11] = [
        ("empty", Vec::new(), CsrError::Malformed),
        ("garbage", vec![0x30; 200], CsrError::Malformed),
        ("64 KiB of zeros", vec![0; 64 << 10], CsrError::Malformed),
        (
            "over 64 KiB",
            vec![0x30; (64 << 10) + 1],
            CsrError::TooLarge,
        ),
        (
            "cut short",
            good[..good.len() - 1].to_vec(),
            CsrError::Malformed,
        ),
        ("trailing garbage", trailing, CsrError::TrailingBytes),
        ("P-384", csr_with(&p384, |_| {}), CsrError::NotP256),
        ("Ed25519", csr_with(&ed25519, |_| {}), CsrError::NotP256),
        ("RSA", csr_with(&rsa, |_| {}), CsrError::NotP256),
        ("forged signature", forged, CsrError::BadSignature),
        ("another's key", swapped, CsrError::BadSignature),
    ];
    for (name, csr, expected) in cases {
        match issue(&identity, &csr) {
            Err(IssueError::Csr(error)) => assert_eq!(error, expected, "{name}"),
            other => panic!("{name}: {:?}", other.map(|issued| issued.key)),
        }
    }
    assert!(matches!(
        issue(&identity, &sha384),
        Err(IssueError::Csr(CsrError::NotEcdsaSha256))
    ));
    assert!(issue(&identity, &good).is_ok());
}

#[test]
fn a_request_of_almost_64_kib_is_fine_when_it_is_sound() {
    let place = place();
    let identity = open(&place);
    let csr = p256_csr(|params| {
        params.subject_alt_names = (0..1500)
            .map(|n| SanType::DnsName(format!("host-{n:04}.evil.example").try_into().unwrap()))
            .collect();
    });
    assert!(csr.len() > 30_000);
    let issued = issue(&identity, &csr).unwrap();
    assert!(
        issued.chain[0].len() < 1000,
        "nothing of it reaches the certificate"
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_request_reader_panic(
        flips in proptest::collection::vec((0_usize..400, 0_u8..=255), 1..8),
    ) {
        let mut csr = p256_csr(|_| {});
        for (at, value) in flips {
            let at = at % csr.len();
            csr[at] = value;
        }
        drop(P256PublicKey::from_csr(&csr));
    }
}

#[test]
fn a_half_made_identity_is_refused_and_never_replaced() {
    for file in [
        "root.pem",
        "root.key",
        "agent-ca.pem",
        "gateway-ca.key",
        "secrets.json",
        "identity.json",
    ] {
        let place = place();
        open(&place);
        fs::remove_file(place.dir.join(file)).unwrap();
        let error = Identity::open_or_create_at(&place.dir, DOMAIN, NOW).unwrap_err();
        assert!(
            matches!(&error, IdentityError::Incomplete { missing, .. } if missing == file),
            "{file}: {error}"
        );
        assert!(error.to_string().contains("backup"), "{error}");
        assert!(!place.dir.join(file).exists());
    }
}

#[test]
fn a_draft_that_a_crash_left_behind_is_not_an_identity() {
    let place = place();
    let parent = place.dir.parent().unwrap();
    let draft = parent.join(".identity.00000000.new");
    fs::create_dir_all(&draft).unwrap();
    fs::write(draft.join("root.key"), "half").unwrap();
    fs::create_dir(&place.dir).unwrap();
    let made = open(&place);
    assert_eq!(made.root_key(), open(&place).root_key());
}

#[test]
fn damage_is_told_with_the_file_that_has_it() {
    type Harm = fn(&Path);
    let cases: [(&str, Harm); 6] = [
        ("root.pem", |dir| {
            fs::write(dir.join("root.pem"), "nonsense").unwrap()
        }),
        ("agent-ca.key", |dir| {
            fs::write(dir.join("agent-ca.key"), [0xff; 40]).unwrap()
        }),
        ("agent-ca.pem", |dir| {
            fs::copy(dir.join("gateway-ca.pem"), dir.join("agent-ca.pem")).unwrap();
        }),
        ("secrets.json", |dir| {
            fs::write(dir.join("secrets.json"), "{\"cid_key\":\"AA\"").unwrap();
        }),
        ("identity.json", |dir| {
            fs::write(dir.join("identity.json"), "{\"format\":9,\"domain\":\"x\"}").unwrap();
        }),
        ("root.key", |dir| {
            fs::write(dir.join("root.key"), vec![b'a'; 1 << 20]).unwrap()
        }),
    ];
    for (file, harm) in cases {
        let place = place();
        open(&place);
        harm(&place.dir);
        let error = Identity::open_or_create_at(&place.dir, DOMAIN, NOW).unwrap_err();
        assert!(
            matches!(&error, IdentityError::Damaged { path, .. } if path.ends_with(file)),
            "{file}: {error}"
        );
    }
}

#[test]
fn an_intermediate_of_another_root_is_damage() {
    let (ours, theirs) = (place(), place());
    open(&ours);
    open(&theirs);
    for file in ["agent-ca.pem", "agent-ca.key"] {
        fs::copy(theirs.dir.join(file), ours.dir.join(file)).unwrap();
    }
    let error = Identity::open_or_create_at(&ours.dir, DOMAIN, NOW).unwrap_err();
    assert!(
        error.to_string().contains("not signed by the root"),
        "{error}"
    );
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let place = place();
    open(&place);
    let key = place.dir.join("root.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::open_or_create_at(&place.dir, DOMAIN, NOW).unwrap_err();
    assert!(error.to_string().contains("chmod go-rwx"), "{error}");
}

#[test]
fn another_domain_is_another_deployment() {
    let place = place();
    open(&place);
    let error = Identity::open_or_create_at(&place.dir, "other.example", NOW).unwrap_err();
    assert!(error.to_string().contains("`cloud.example`"), "{error}");
    for bad in ["", "Cloud.example", "a/b", "a b", "ü.example"] {
        let error = Identity::open_or_create_at(&place.dir, bad, NOW).unwrap_err();
        assert!(matches!(error, IdentityError::Domain(_)), "{bad}: {error}");
    }
}

#[test]
fn intermediates_are_renewed_with_the_same_key_before_they_end() {
    let place = place();
    let first = open(&place);
    let later = NOW.plus(9 * YEAR).plus(Duration::from_secs(24 * 3600));
    let renewed = Identity::open_or_create_at(&place.dir, DOMAIN, later).unwrap();
    let (old, new) = (
        parse(first.agents.certificate()),
        parse(renewed.agents.certificate()),
    );
    assert_eq!(old.public_key().raw, new.public_key().raw);
    assert_eq!(old.subject(), new.subject());
    assert_ne!(old.raw_serial(), new.raw_serial());
    assert_eq!(uses(&new), (false, true, false));
    assert_eq!(
        uses(&parse(renewed.gateways.certificate())),
        (true, false, false)
    );
    assert_eq!(first.root(), renewed.root());
    let again = Identity::open_or_create_at(&place.dir, DOMAIN, later).unwrap();
    assert_eq!(renewed.agents.certificate(), again.agents.certificate());
}

#[test]
fn no_certificate_outlives_its_signer() {
    let place = place();
    let identity = open(&place);
    let late = NOW.plus(10 * YEAR).minus(Duration::from_secs(3600));
    let issued = identity
        .issue_agent(agent(), &p256_csr(|_| {}), YEAR, late)
        .unwrap();
    assert_eq!(issued.not_after, identity.agents.not_after());
    let after = NOW.plus(11 * YEAR);
    assert!(matches!(
        identity.issue_agent(agent(), &p256_csr(|_| {}), YEAR, after),
        Err(IssueError::AuthorityEnded)
    ));
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let place = place();
    let identity = open(&place);
    assert_eq!(
        format!("{:?}", identity.gateway_secrets()),
        "GatewaySecrets([hidden])"
    );
    assert!(!format!("{identity:?}").contains("secrets"));
}

#[test]
fn a_look_tells_when_authorities_end_and_neither_makes_nor_renews() {
    let place = place();
    assert!(inspect(&place.dir, DOMAIN, NOW).unwrap().is_none());
    assert!(!place.dir.exists());
    let identity = open(&place);
    let late = NOW.plus(10 * YEAR).minus(YEAR / 2);
    let near = |now| inspect(&place.dir, DOMAIN, now).unwrap().unwrap();
    assert!(near(NOW).iter().all(|validity| !validity.near_end));
    let authorities = near(late);
    let names: Vec<_> = authorities.iter().map(|of| of.name).collect();
    assert_eq!(names, ["root", "gateway-ca", "agent-ca", "process-ca"]);
    let ends: Vec<_> = authorities.iter().map(|of| of.near_end).collect();
    assert_eq!(ends, [false, true, true, true]);
    assert_eq!(authorities[2].not_after, identity.agents.not_after());
    for file in ["process-ca.pem", "process-ca.key"] {
        fs::remove_file(place.dir.join(file)).unwrap();
    }
    assert_eq!(
        near(NOW).len(),
        3,
        "an older identity is looked at as it is"
    );
    assert!(!place.dir.join("process-ca.pem").exists());
    let error = inspect(&place.dir, "other.example", NOW).unwrap_err();
    assert!(matches!(error, IdentityError::OtherDomain { .. }));
}

#[test]
fn an_identity_of_before_process_servers_had_one_is_given_it_once() {
    let place = place();
    let first = open(&place);
    for file in ["process-ca.pem", "process-ca.key"] {
        fs::remove_file(place.dir.join(file)).unwrap();
    }
    // A crash may leave a key behind that has signed nothing.
    fs::write(place.dir.join("process-ca.key"), "half").unwrap();
    let second = open(&place);
    let third = open(&place);
    let of = |identity: &Identity| identity.process_servers.certificate().clone();
    assert_ne!(of(&first), of(&second));
    assert_eq!(of(&second), of(&third));
    assert_eq!(first.root(), third.root());
    fs::remove_file(place.dir.join("process-ca.key")).unwrap();
    let error = Identity::open_or_create_at(&place.dir, DOMAIN, NOW).unwrap_err();
    assert!(matches!(error, IdentityError::Incomplete { .. }), "{error}");
}

#[test]
fn an_agent_server_is_given_no_key_of_an_authority() {
    let place = place();
    let identity = open(&place);
    let dir = place.dir.with_file_name("elsewhere");
    identity.make_agent_server_at(&dir, NOW).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600);
        found.push(entry.file_name().into_string().unwrap());
    }
    found.sort();
    let expected = [
        "agent-ca.pem",
        "agent-server.json",
        "agent-server.key",
        "agent-server.pem",
        "process-ca.pem",
        "secrets.json",
    ];
    assert_eq!(found, expected);
    let loaded = AgentServerIdentity::load_at(&dir, DOMAIN, NOW).unwrap();
    let again = AgentServerIdentity::load_at(&dir, DOMAIN, NOW).unwrap();
    assert_eq!(&loaded.secrets, identity.gateway_secrets());
    assert_eq!(loaded.tls.chain, again.tls.chain);
    assert_ne!(loaded.tls.gateway, again.tls.gateway, "each run is its own");
}

#[test]
fn what_is_wrong_with_an_agent_servers_identity_is_told() {
    let place = place();
    let identity = open(&place);
    let dir = place.dir.with_file_name("elsewhere");
    let load = |domain, now| match AgentServerIdentity::load_at(&dir, domain, now) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    assert!(load(DOMAIN, NOW).contains("drover identity agent-server"));
    identity.make_agent_server_at(&dir, NOW).unwrap();
    let twice = identity.make_agent_server_at(&dir, NOW).unwrap_err();
    assert!(matches!(twice, IdentityError::Exists(_)), "{twice}");
    assert_eq!(load(DOMAIN, NOW), "");
    assert!(load("other.example", NOW).contains("`cloud.example`"));
    assert!(load(DOMAIN, NOW.plus(YEAR)).contains("has ended"));
    let key = dir.join("agent-server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load(DOMAIN, NOW).contains("chmod go-rwx"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("process-ca.pem"), "nonsense").unwrap();
    assert!(load(DOMAIN, NOW).contains("not PEM certificates"));
    fs::remove_file(&key).unwrap();
    assert!(load(DOMAIN, NOW).contains("`agent-server.key` is missing"));
}
