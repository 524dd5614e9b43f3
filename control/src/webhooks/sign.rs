//! Secrets and signatures, as Standard Webhooks 1.0 has them
//! (<https://github.com/standard-webhooks/standard-webhooks>, spec/standard-webhooks.md).
//!
//! ```text
//!   whsec_BASE64(24 to 64 bytes)           the secret as people see it
//!   HMAC-SHA256(secret, "ID.SECONDS.BODY") ─▶ v1,BASE64      one for each secret, blank between
//! ```

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

/// What a secret's text begins with.
const PREFIX: &str = "whsec_";
/// Bytes of a secret that we make.
pub(crate) const SECRET_BYTES: usize = 32;
/// Bytes of a secret at least.
const SECRET_BYTES_MIN: usize = 24;
/// Bytes of a secret at most.
const SECRET_BYTES_MAX: usize = 64;

/// A webhook's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// The text is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "is not `whsec_` and the base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes; leave it out, \
     and the server makes one"
)]
pub struct SecretError;

impl Secret {
    /// A secret from bytes, 24 to 64 of them.
    ///
    /// # Errors
    /// Too few or too many.
    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretError> {
        if (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(SecretError)
        }
    }

    /// Reads `whsec_…`.
    ///
    /// # Errors
    /// It is something else, or too short or too long.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(SecretError)?;
        // Longer text cannot be right; and what strangers send is not decoded without a limit.
        if encoded.len() > SECRET_BYTES_MAX * 2 {
            return Err(SecretError);
        }
        Self::new(STANDARD.decode(encoded).map_err(|_| SecretError)?)
    }

    /// `whsec_…`: shown once, when it is made.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// The bytes, for the store.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The value of the header `webhook-signature`: one signature for each secret, the newest first.
/// `seconds` is the Unix time of the header `webhook-timestamp`.
pub(crate) fn signature<'a>(
    secrets: impl IntoIterator<Item = &'a Secret>,
    id: &str,
    seconds: u64,
    body: &[u8],
) -> String {
    let all: Vec<String> = secrets
        .into_iter()
        .map(|secret| secret.sign(id, seconds, body))
        .collect();
    all.join(" ")
}

/// The value of the header `webhook-id`: the same for every attempt to tell this webhook of this
/// event, so that its receiver knows a repetition. Without a dot: that is the separator of what is
/// signed.
pub(crate) fn message_id(webhook: Uuid, sequence: u64) -> String {
    format!("msg_{}_{sequence}", webhook.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The test vector that Standard Webhooks' libraries share.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = signature(
            [&secret],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            b"{\"test\": 2432232314}",
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_make_two_signatures_the_newest_first() {
        let new = Secret::new(vec![1; 32]).unwrap();
        let old = Secret::new(vec![2; 32]).unwrap();
        let both = signature([&new, &old], "msg_1", 7, b"{}");
        let one = signature([&new], "msg_1", 7, b"{}");
        let other = signature([&old], "msg_1", 7, b"{}");
        assert_eq!(both, format!("{one} {other}"));
        assert_ne!(one, other);
    }

    #[test]
    fn secrets_survive_their_text_and_hide_from_debug() {
        let secret = Secret::new((0..64).collect()).unwrap();
        assert_eq!(Secret::parse(&secret.reveal()), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        for bad in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_!!!!",
            &format!("whsec_{}", STANDARD.encode([0; 23])),
            &format!("whsec_{}", STANDARD.encode([0; 65])),
            &format!("whsec_{}", "A".repeat(100_000)),
        ] {
            assert_eq!(Secret::parse(bad), Err(SecretError));
        }
    }

    #[test]
    fn an_id_is_stable_and_has_no_dot() {
        let id = message_id(Uuid::from_u128(7), 42);
        assert_eq!(id, "msg_00000000000000000000000000000007_42");
        assert!(!id.contains('.'));
    }
}
