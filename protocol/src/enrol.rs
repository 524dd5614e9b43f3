//! Enrolment: how a machine with a one-time token becomes an agent. Spoken on an ALPN of its own,
//! on one bidirectional stream: one request, one reply, close.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::identity::KeyHash;
use crate::ids::{AgentId, GroupId, Slot};

/// Asks for a certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolRequest {
    /// The token's secret half; the server knows only its hash.
    pub secret: [u8; 32],
    /// PKCS #10 request, DER. Only its key is used: names and extensions in it are ignored.
    pub csr: Vec<u8>,
    /// For people: the host's name.
    pub hostname: String,
    /// For people: the agent's software version.
    pub software: String,
}

impl fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("secret", &"[hidden]")
            .field("csr_bytes", &self.csr.len())
            .field("hostname", &self.hostname)
            .field("software", &self.software)
            .finish()
    }
}

/// Answers an [`EnrolRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EnrolReply {
    /// Enrolled.
    Enrolled(Box<Enrolment>),
    /// Not enrolled.
    Refused(EnrolRefusal),
}

/// What a new agent keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolment {
    /// Its identity.
    pub agent: AgentId,
    /// Its group.
    pub group: GroupId,
    /// Its group's slot.
    pub slot: Slot,
    /// The trust domain.
    pub domain: String,
    /// Its certificate and the intermediate, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Roots that its gateways' certificates lead to, DER.
    pub roots: Vec<Vec<u8>>,
    /// `host:port` of gateways; may be empty: go on with the address used for enrolment.
    pub addresses: Vec<String>,
}

/// Why an enrolment was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum EnrolRefusal {
    /// No such token.
    #[error("the token is not known here; make one with `drover tokens create`")]
    UnknownToken,
    /// It was used before.
    #[error("the token was used before; make a new one with `drover tokens create`")]
    UsedToken,
    /// It is too old.
    #[error("the token has expired; make a new one with `drover tokens create`")]
    ExpiredToken,
    /// The certificate request could not be used.
    #[error(
        "the certificate request could not be used: it must carry a P-256 key and its signature"
    )]
    BadRequest,
    /// Too many enrolments at once.
    #[error("too many enrolments at once; try again in a few seconds")]
    Busy,
    /// The control plane did not answer in time.
    #[error("the control plane did not answer; try again in a few seconds")]
    Unavailable,
}

/// A join token as people carry it: `drover1.<CA key hash>.<secret>`, both base64url of 32 bytes.
///
/// The hash lets the agent check the server before it shows the secret: there is no trust on
/// first use.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root CA's key.
    pub ca_key: KeyHash,
    /// 256 random bits.
    pub secret: [u8; 32],
}

/// The text is not a join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseJoinTokenError {
    /// Wrong first part.
    #[error("this is not a Drover join token: it does not start with `drover1.`")]
    Prefix,
    /// Wrong number of parts, or not base64url of 32 bytes.
    #[error("the join token is damaged: copy it again whole (drover1.HASH.SECRET, 95 characters)")]
    Damaged,
}

const TOKEN_PREFIX: &str = "drover1.";

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |bytes: &[u8; 32]| URL_SAFE_NO_PAD.encode(bytes);
        write!(
            f,
            "{TOKEN_PREFIX}{}.{}",
            encode(&self.ca_key.0),
            encode(&self.secret)
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "JoinToken {{ ca_key: {}, secret: [hidden] }}",
            self.ca_key
        )
    }
}

impl FromStr for JoinToken {
    type Err = ParseJoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text
            .trim()
            .strip_prefix(TOKEN_PREFIX)
            .ok_or(ParseJoinTokenError::Prefix)?;
        let (ca_key, secret) = rest.split_once('.').ok_or(ParseJoinTokenError::Damaged)?;
        let decode = |part: &str| -> Result<[u8; 32], ParseJoinTokenError> {
            let bytes = URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| ParseJoinTokenError::Damaged)?;
            bytes.try_into().map_err(|_| ParseJoinTokenError::Damaged)
        };
        Ok(Self {
            ca_key: KeyHash(decode(ca_key)?),
            secret: decode(secret)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_survives_its_text_form_and_hides_its_secret() {
        let token = JoinToken {
            ca_key: KeyHash([7; 32]),
            secret: [9; 32],
        };
        let text = token.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("CQkJ"));
        let request = EnrolRequest {
            secret: token.secret,
            csr: Vec::new(),
            hostname: "hv-17".to_owned(),
            software: String::new(),
        };
        assert!(!format!("{request:?}").contains("9, 9"));
    }

    #[test]
    fn damaged_tokens_say_what_is_wrong() {
        assert_eq!("abc".parse::<JoinToken>(), Err(ParseJoinTokenError::Prefix));
        assert_eq!(
            "drover1.abc".parse::<JoinToken>(),
            Err(ParseJoinTokenError::Damaged)
        );
        assert_eq!(
            "drover1.abc.def".parse::<JoinToken>(),
            Err(ParseJoinTokenError::Damaged)
        );
    }
}
