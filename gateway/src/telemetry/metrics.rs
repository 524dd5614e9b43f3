//! The list of everything that is counted or measured, with its name for the outside.

use protocol::link::SecurityEvent;

/// How a figure is named outside: a family, what it means, and the label that tells it from the
/// others of the family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Name of the family, without `drover_gateway_` and without `_total`.
    pub family: &'static str,
    /// What the family means.
    pub help: &'static str,
    /// Label name and value within the family.
    pub label: Option<(&'static str, &'static str)>,
}

macro_rules! metrics {
    ($(#[$doc:meta])* $name:ident {
        $($family:literal, $help:literal: {
            $($(#[$variant_doc:meta])* $variant:ident $(= $label:literal: $value:literal)?,)*
        })*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($($(#[$variant_doc])* $variant,)*)* }

        impl $name {
            /// All of them, family by family.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)*)*];

            /// Its name outside.
            pub fn metric(self) -> Metric {
                match self {
                    $($(Self::$variant => Metric {
                        family: $family,
                        help: $help,
                        label: metrics!(@label $($label: $value)?),
                    },)*)*
                }
            }
        }
    };
    (@label) => { None };
    (@label $label:literal: $value:literal) => { Some(($label, $value)) };
}

metrics! {
    /// Something that happens and is counted.
    Counter {
        "handshakes", "QUIC handshakes by what became of them": {
            /// A first packet was let in.
            HandshakesStarted = "event": "started",
            /// A session or an enrolment began.
            HandshakesCompleted = "event": "completed",
            /// TLS, the certificate, the directory or the Hello was not good.
            HandshakesFailed = "event": "failed",
            /// `HANDSHAKE_DEADLINE` passed.
            HandshakesTimedOut = "event": "timed_out",
        }
        "retries_sent", "Newcomers asked to prove their address first": {
            /// A Retry packet was sent.
            RetriesSent,
        }
        "initials_dropped", "First packets dropped without an answer": {
            /// The token bucket was empty.
            DroppedByBucket = "reason": "rate",
            /// `HALF_OPEN_MAX` handshakes were unfinished.
            DroppedByHalfOpen = "reason": "half_open",
        }
        "sessions_opened", "Sessions welcomed": {
            /// An agent was welcomed.
            SessionsOpened,
        }
        "sessions_closed", "Sessions ended": {
            /// A welcomed session ended, for any reason.
            SessionsClosed,
        }
        "frames", "Protocol frames by direction": {
            /// From agents.
            FramesIn = "direction": "in",
            /// To agents.
            FramesOut = "direction": "out",
        }
        "commands", "Commands by what became of them": {
            /// Handed to a session.
            CommandsDispatched = "event": "dispatched",
            /// Durably accepted by an agent.
            CommandsAccepted = "event": "accepted",
            /// Ended.
            CommandsFinished = "event": "finished",
            /// Refused by an agent.
            CommandsRefused = "event": "refused",
            /// Certainly not delivered.
            CommandsNotDelivered = "event": "not_delivered",
            /// Their session or stream was lost.
            CommandsUncertain = "event": "uncertain",
        }
        "permits", "Permits granted, offered unasked, withdrawn, expired unused; dispatches refused for want of one; lines of demand beyond an agent's limit": {
            /// Granted.
            PermitsGranted = "event": "granted",
            /// Offered before anybody asked.
            PermitsOffered = "event": "offered",
            /// Offers taken back because their place went, or their epoch.
            PermitsWithdrawn = "event": "withdrawn",
            /// Not used within the life of their grant.
            PermitsExpired = "event": "expired",
            /// Dispatches without a valid permit.
            PermitsRefused = "event": "refused",
            /// Lines of demand that were not taken up.
            PermitsOverflowed = "event": "overflowed",
        }
        "handler_panics", "Panics caught; each closed one session": {
            /// A handler panicked.
            Panics,
        }
        "queue_full", "Times that a bounded queue was full and its sender had to wait or turn away": {
            /// Another shard's mailbox.
            MailboxFull = "queue": "mailbox",
            /// The queue to the control plane.
            UplinkFull = "queue": "uplink",
        }
    }
}

metrics! {
    /// How much there is of something now.
    Level {
        "sessions", "Sessions of agents that are up": {
            /// On this shard.
            Sessions,
        }
        "sessions_at_home", "Sessions on the shard that is home to their group": {
            /// Of those on this shard.
            AtHome,
        }
        "half_open", "Unfinished handshakes": {
            /// On this shard.
            HalfOpen,
        }
    }
}

metrics! {
    /// A time that is measured.
    Measure {
        "handshake_seconds", "From an agent's first packet to its Welcome": {
            /// First packet to Welcome.
            Handshake,
        }
        "dispatch_to_finished_seconds", "From a command's dispatch to its end": {
            /// Dispatch to Finished.
            DispatchToFinished,
        }
        "command_wire_seconds", "From a command's dispatch to its end, without what its agent worked on it": {
            /// Network, journal and queues of both sides.
            Wire,
        }
        "command_agent_seconds", "What agents say that they worked on a command": {
            /// The driver.
            Agent,
        }
        "turn_seconds", "One turn of a shard's loop, without waiting": {
            /// A shard's turn.
            Turn,
        }
        "mailbox_seconds", "From putting a message into a shard's mailbox to handling it": {
            /// Time in a mailbox.
            Mailbox,
        }
    }
}

/// Every kind of security event, in the order of their counters.
pub const SECURITY_EVENTS: [SecurityEvent; 9] = [
    SecurityEvent::NoCertificate,
    SecurityEvent::ForeignCertificate,
    SecurityEvent::KeyNotPinned,
    SecurityEvent::RevokedAgent,
    SecurityEvent::IdentityMismatch,
    SecurityEvent::ForeignOperation,
    SecurityEvent::ProtocolViolation,
    SecurityEvent::LimitExceeded,
    SecurityEvent::HandlerPanicked,
];

pub(super) fn security_index(kind: SecurityEvent) -> usize {
    match kind {
        SecurityEvent::NoCertificate => 0,
        SecurityEvent::ForeignCertificate => 1,
        SecurityEvent::KeyNotPinned => 2,
        SecurityEvent::RevokedAgent => 3,
        SecurityEvent::IdentityMismatch => 4,
        SecurityEvent::ForeignOperation => 5,
        SecurityEvent::ProtocolViolation => 6,
        SecurityEvent::LimitExceeded => 7,
        SecurityEvent::HandlerPanicked => 8,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_figure_has_a_place_of_its_own() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
        for (index, kind) in SECURITY_EVENTS.into_iter().enumerate() {
            assert_eq!(security_index(kind), index);
        }
    }

    #[test]
    fn no_two_figures_have_the_same_name() {
        let counters = Counter::ALL.iter().map(|counter| counter.metric());
        let levels = Level::ALL.iter().map(|level| level.metric());
        let measures = Measure::ALL.iter().map(|measure| measure.metric());
        let names: Vec<_> = counters
            .chain(levels)
            .chain(measures)
            .map(|metric| (metric.family, metric.label))
            .collect();
        let distinct: BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        let kinds: BTreeSet<_> = SECURITY_EVENTS
            .into_iter()
            .map(SecurityEvent::name)
            .collect();
        assert_eq!(kinds.len(), SECURITY_EVENTS.len());
    }
}
