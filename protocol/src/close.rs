//! Application close and reset codes (RFC 9000 §20.2) of the agent protocol.

use std::fmt;

/// Reset code on a command stream: from the gateway, the command is taken back before it was whole;
/// an agent that has it all the same cancels the operation.
pub const CANCEL_STREAM: u64 = 0x11;
/// Reset code on a command stream: the operation is over or unknown; nothing more will be read.
pub const DONE_STREAM: u64 = 0x12;

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $retry:ident, $text:literal;)*) => {
        /// Why one side closed a session: the code in CONNECTION_CLOSE.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum CloseCode { $($(#[$doc])* $name = $value,)* }

        impl CloseCode {
            /// Every code, for tables and tests.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$name,)*];

            /// The code as sent.
            pub fn to_wire(self) -> u32 { self as u32 }

            /// Reads a code; `None` for one that this build does not know.
            pub fn from_wire(code: u64) -> Option<Self> {
                match code { $($value => Some(Self::$name),)* _ => None }
            }

            /// What an agent does after it.
            pub fn retry(self) -> Retry { match self { $(Self::$name => Retry::$retry,)* } }
        }

        impl fmt::Display for CloseCode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

/// What an agent does after a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Reconnect with the usual jitter.
    Soon,
    /// Something must be mended first: reconnect at the longest interval, and say so in the log.
    Slowly,
    /// Do not reconnect.
    Never,
}

close_codes! {
    /// Either side: an orderly end (agent stopping).
    Normal = 0x100, Soon, "closed in order";
    /// Gateway: draining or shutting down.
    Draining = 0x101, Soon, "the gateway is draining; reconnect";
    /// Gateway: a newer session of the same agent took over.
    Superseded = 0x102, Never, "a newer session of this agent took over";
    /// Gateway: after a Redirect.
    Redirected = 0x103, Soon, "another gateway owns this group";
    /// Gateway: no room; the agent backs off.
    Overloaded = 0x104, Soon, "the gateway is at its session limit";
    /// Gateway: no Hello within the handshake deadline.
    HelloTimeout = 0x105, Soon, "no Hello within the handshake deadline";
    /// Gateway: the session ALPN without a client certificate.
    CertificateRequired = 0x110, Slowly, "a client certificate is required; run `drover agent join`";
    /// Gateway: the certificate's identity is not an agent of this deployment.
    BadIdentity = 0x111, Slowly, "the certificate names no agent of this deployment; run `drover agent join`";
    /// Gateway: the agent is not known here, or its key is not the pinned one.
    KeyNotPinned = 0x112, Slowly, "this key is not pinned for this agent; join again with a new token";
    /// Gateway: the agent was revoked.
    Revoked = 0x113, Slowly, "this agent was revoked";
    /// Gateway: Hello names another agent than the certificate.
    IdentityMismatch = 0x114, Slowly, "Hello names another agent than the certificate";
    /// Gateway: the certificate's life ended during the session.
    CertificateExpired = 0x115, Slowly, "the certificate expired; join again with a new token";
    /// Gateway: no common protocol version.
    VersionMismatch = 0x120, Slowly, "no common protocol version; upgrade the older side";
    /// Either side: a frame that does not parse, is too large or has the wrong identifier.
    BadFrame = 0x121, Slowly, "a frame could not be read";
    /// Either side: a valid frame at the wrong time or on the wrong stream.
    UnexpectedFrame = 0x122, Slowly, "a frame came at the wrong time";
    /// Gateway: the agent spoke about an operation that it was not given.
    ForeignOperation = 0x123, Slowly, "the operation was not given to this agent";
    /// Gateway: the agent exceeded a rate or memory limit.
    LimitExceeded = 0x124, Slowly, "a limit was exceeded";
    /// Gateway: a fault of ours while handling this session; this session alone is closed.
    InternalError = 0x130, Soon, "the gateway met an internal error; reconnect";
    /// Gateway, enrolment ALPN: answered; the connection is over.
    EnrolmentDone = 0x140, Never, "enrolment is over";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_survives_the_wire() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_wire(u64::from(code.to_wire())), Some(*code));
        }
        assert_eq!(CloseCode::from_wire(7), None);
    }
}
