//! Certificates: their shape, their dates and their signing.

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use protocol::identity::{GATEWAY_SERVER_NAME, KeyHash};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::csr::CsrError;
use crate::clock::UnixMs;

const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// An authority with less than this left is renewed at the next start.
const RENEW_BEFORE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from a little before now: the other side's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is not usable.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The cryptographic library refused.
    #[error("the certificate could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
    /// No randomness.
    #[error("the system gave no random numbers; check /dev/urandom and seccomp rules")]
    Random,
    /// Dates outside what a certificate can say.
    #[error("the clock or the life of the certificate is out of range; check the system's date")]
    Dates,
    /// The signing certificate's life is over.
    #[error("the signing certificate has ended; restart the server to renew it")]
    AuthorityEnded,
}

/// Who may use a certificate for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Gateway,
    Agent,
    ProcessServer,
}

impl Purpose {
    fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Gateway => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Agent | Self::ProcessServer => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// What goes into a certificate that signs nothing.
pub(super) struct Leaf {
    pub(super) purpose: Purpose,
    pub(super) common_name: String,
    pub(super) uri: String,
    pub(super) life: Duration,
}

/// A key that signs certificates, and its own certificate.
pub(super) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: UnixMs,
}

/// Why a stored authority cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotAnAuthority(pub(super) &'static str);

impl Authority {
    /// Makes a root.
    pub(super) fn root(deployment: &str, now: UnixMs) -> Result<Self, IssueError> {
        let mut params = base(
            &format!("Drover root CA {deployment}"),
            ROOT_LIFE,
            now,
            UnixMs(u64::MAX),
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = generate_key()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            not_after: end(&params),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Makes an intermediate for one purpose.
    pub(super) fn intermediate(
        &self,
        purpose: Purpose,
        deployment: &str,
        now: UnixMs,
    ) -> Result<Self, IssueError> {
        let name = match purpose {
            Purpose::Gateway => format!("Drover gateway CA {deployment}"),
            Purpose::Agent => format!("Drover agent CA {deployment}"),
            Purpose::ProcessServer => format!("Drover process server CA {deployment}"),
        };
        self.sign_intermediate(purpose, &name, generate_key()?, now)
    }

    /// The same intermediate (key, subject, use) with new dates and a new serial.
    pub(super) fn renew_intermediate(
        &self,
        purpose: Purpose,
        old: &Self,
        now: UnixMs,
    ) -> Result<Self, IssueError> {
        let (_, parsed) = X509Certificate::from_der(&old.certificate)
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let key = KeyPair::try_from(old.key().serialized_der())?;
        self.sign_intermediate(purpose, name, key, now)
    }

    fn sign_intermediate(
        &self,
        purpose: Purpose,
        name: &str,
        key: KeyPair,
        now: UnixMs,
    ) -> Result<Self, IssueError> {
        let mut params = base(name, INTERMEDIATE_LIFE, now, self.not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![purpose.usage()];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Self {
            not_after: end(&params),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Puts a stored certificate and its key together again.
    pub(super) fn from_parts(
        certificate: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Self, NotAnAuthority> {
        let (rest, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| NotAnAuthority("it is not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(NotAnAuthority("bytes follow the certificate"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(NotAnAuthority("its key is not the one in the .key file"));
        }
        if !parsed.is_ca() {
            return Err(NotAnAuthority("it may not sign certificates"));
        }
        let not_after = from_seconds(parsed.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| NotAnAuthority("its names or uses cannot be read"))?;
        Ok(Self {
            certificate,
            issuer,
            not_after,
        })
    }

    /// Whether this authority's key signed `certificate`.
    pub(super) fn signed(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.issuer.key().public_key_raw())
            .verify(
                parsed.tbs_certificate.as_ref(),
                &parsed.signature_value.data,
            )
            .is_ok()
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    pub(super) fn key_hash(&self) -> KeyHash {
        KeyHash::of_spki(&self.issuer.key().subject_public_key_info())
    }

    /// When its certificate ends.
    pub(super) fn not_after(&self) -> UnixMs {
        self.not_after
    }

    /// Whether it is time to renew it.
    pub(super) fn near_end(&self, now: UnixMs) -> bool {
        now.plus(RENEW_BEFORE) > self.not_after
    }

    /// Signs a leaf; answers it and when it ends.
    pub(super) fn issue(
        &self,
        leaf: &Leaf,
        key: &impl PublicKeyData,
        now: UnixMs,
    ) -> Result<(CertificateDer<'static>, UnixMs), IssueError> {
        let mut params = base(&leaf.common_name, leaf.life, now, self.not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![leaf.purpose.usage()];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(leaf.uri.as_str())?)];
        if leaf.purpose == Purpose::Gateway {
            let name = Ia5String::try_from(GATEWAY_SERVER_NAME)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let certificate = params.signed_by(key, &self.issuer)?.der().clone();
        Ok((certificate, end(&params)))
    }
}

/// A new P-256 key.
pub(super) fn generate_key() -> Result<KeyPair, IssueError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// Fills `bytes` from the cryptographic library's generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), IssueError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| IssueError::Random)
}

pub(super) fn from_seconds(seconds: i64) -> UnixMs {
    UnixMs(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

fn end(params: &CertificateParams) -> UnixMs {
    from_seconds(params.not_after.unix_timestamp())
}

fn at(moment: UnixMs) -> Result<OffsetDateTime, IssueError> {
    let seconds = i64::try_from(moment.0 / 1000).map_err(|_| IssueError::Dates)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| IssueError::Dates)
}

/// Subject, serial and dates; never longer than the signer lives. Dates are plain seconds: no
/// calendar arithmetic that could stumble over a leap day.
fn base(
    common_name: &str,
    life: Duration,
    now: UnixMs,
    signer_ends: UnixMs,
) -> Result<CertificateParams, IssueError> {
    if now >= signer_ends {
        return Err(IssueError::AuthorityEnded);
    }
    let mut serial = [0; 16];
    fill_random(&mut serial)?;
    // RFC 5280 §4.1.2.2: positive; a first byte of 0x40–0x7f needs no padding and is never zero.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Drover");
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = at(now.minus(BACKDATED))?;
    let end = now.plus(life.max(Duration::from_secs(1)));
    params.not_after = at(end.min(signer_ends))?;
    Ok(params)
}

const _: () = assert!(RENEW_BEFORE.as_secs() < INTERMEDIATE_LIFE.as_secs());
const _: () = assert!(INTERMEDIATE_LIFE.as_secs() < ROOT_LIFE.as_secs());
