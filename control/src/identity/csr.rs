//! Certificate requests (PKCS #10, RFC 2986): the key is taken, everything else is ignored.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use protocol::identity::KeyHash;
use protocol::limits::ENROL_FRAME_BYTES_MAX;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256, Oid,
};
use x509_parser::prelude::FromDer;

/// Why a certificate request cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CsrError {
    /// Too many bytes.
    #[error("the certificate request is larger than {ENROL_FRAME_BYTES_MAX} bytes")]
    TooLarge,
    /// Not PKCS #10.
    #[error("the certificate request is not PKCS #10 in DER")]
    Malformed,
    /// Bytes after the request.
    #[error("bytes follow the certificate request")]
    TrailingBytes,
    /// Another kind of key.
    #[error("the certificate request's key is not an uncompressed P-256 point")]
    NotP256,
    /// Another kind of signature.
    #[error("the certificate request is not signed with ECDSA and SHA-256")]
    NotEcdsaSha256,
    /// The signature is not by the key in the request.
    #[error("the certificate request's signature does not fit its key")]
    BadSignature,
}

/// A P-256 key whose holder signed a request with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct P256PublicKey {
    /// SEC 1 §2.3.3, uncompressed: 0x04, x, y.
    point: [u8; 65],
}

impl P256PublicKey {
    /// Takes the key out of a request and checks that its holder signed the request.
    pub(super) fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > ENROL_FRAME_BYTES_MAX {
            return Err(CsrError::TooLarge);
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::TrailingBytes);
        }
        let info = &csr.certification_request_info;
        let algorithm = &info.subject_pki.algorithm;
        let curve = algorithm.parameters.as_ref().map(Oid::try_from);
        if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
            || !matches!(curve, Some(Ok(curve)) if curve == OID_EC_P256)
        {
            return Err(CsrError::NotP256);
        }
        let point: [u8; 65] = info
            .subject_pki
            .subject_public_key
            .data
            .as_ref()
            .try_into()
            .map_err(|_| CsrError::NotP256)?;
        if point[0] != 0x04 {
            return Err(CsrError::NotP256);
        }
        if csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(CsrError::NotEcdsaSha256);
        }
        // Also checks that the point is on the curve.
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(info.raw, &csr.signature_value.data)
            .map_err(|_| CsrError::BadSignature)?;
        Ok(Self { point })
    }

    /// Names the key, whatever form the request's SubjectPublicKeyInfo had.
    pub(super) fn hash(&self) -> KeyHash {
        KeyHash::of_spki(&self.subject_public_key_info())
    }
}

impl PublicKeyData for P256PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
