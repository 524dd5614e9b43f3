//! Every maximum that a peer can run into, in one place, and the proofs that they add up.

use std::time::Duration;

/// What one session may make a gateway hold, in bytes: the sum that the assertion below proves.
pub const SESSION_BUDGET_BYTES: usize = 1 << 20;

/// Any frame on any wire, size prefix not counted.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// A frame from an agent on its control stream.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 << 10;
/// A frame from an agent on a command stream.
pub const COMMAND_REPLY_BYTES_MAX: usize = 24 << 10;
/// A frame from a gateway to an agent, on any stream.
pub const GATEWAY_FRAME_BYTES_MAX: usize = 128 << 10;
/// A frame on the enrolment ALPN, either way.
pub const ENROL_FRAME_BYTES_MAX: usize = 64 << 10;
/// A frame about the connection between a process server and an agent server, either way.
pub const WORD_FRAME_BYTES_MAX: usize = 8 << 10;

/// Command streams that an agent lets its gateway hold open (its `initial_max_streams_bidi`), and
/// so the operations on their way to or running on one agent through one session.
pub const COMMAND_STREAMS_MAX: usize = 16;
/// Streams that a gateway lets an agent open: the control stream. Every further one is a violation.
pub const AGENT_STREAMS_MAX: usize = 1;

/// Bytes in flight on one stream (QUIC `initial_max_stream_data`).
pub const STREAM_WINDOW_BYTES: usize = 64 << 10;
/// Bytes in flight on all streams of a session (QUIC `initial_max_data`).
pub const CONNECTION_WINDOW_BYTES: usize = 256 << 10;
/// Bytes that quinn may hold unacknowledged towards one agent.
pub const SEND_WINDOW_BYTES: usize = 128 << 10;
/// Bytes that may wait at the gateway for room in the send window of one agent.
pub const OUTBOX_BYTES_MAX: usize = 160 << 10;

const _: () = assert!(
    COMMAND_STREAMS_MAX * COMMAND_REPLY_BYTES_MAX
        + AGENT_STREAMS_MAX * CONTROL_FRAME_BYTES_MAX
        + CONNECTION_WINDOW_BYTES
        + SEND_WINDOW_BYTES
        + OUTBOX_BYTES_MAX
        <= SESSION_BUDGET_BYTES
);
const _: () = assert!(GATEWAY_FRAME_BYTES_MAX <= OUTBOX_BYTES_MAX);

/// A command's input, in bytes of JSON.
pub const COMMAND_INPUT_BYTES_MAX: usize = 96 << 10;
/// A result's or a progress report's payload; larger output travels as more progress reports.
pub const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// A human-readable message from an agent, in bytes of UTF-8.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// The name of a driver ("exec", "simulated"), in bytes: `[a-z0-9_.-]`.
pub const KIND_BYTES_MAX: usize = 64;
/// Names of hosts, groups and tokens, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Drivers that one agent can announce.
pub const KINDS_MAX: usize = 64;
/// Labels in an agent's inventory.
pub const LABELS_MAX: usize = 64;
/// A label's value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Operations that an agent's journal may hold open (accepted and not yet forgotten).
pub const JOURNAL_OPEN_MAX: usize = 1024;
/// Operation ids in one inventory, query or forget message.
pub const OPERATIONS_PER_FRAME_MAX: usize = 1024;
/// What an agent may declare as its capacity (operations at once).
#[expect(clippy::cast_possible_truncation, reason = "16")]
pub const CAPACITY_MAX: u32 = COMMAND_STREAMS_MAX as u32;
/// Addresses in one redirect or welcome.
pub const ADDRESSES_MAX: usize = 16;
/// An address as `host:port`, in bytes: a DNS name, a colon, five digits.
pub const ADDRESS_BYTES_MAX: usize = 260;
/// Keys pinned for one agent: the one in use and the one that replaces it.
pub const PINNED_KEYS_MAX: usize = 2;
/// A PKCS #10 request, in bytes of DER.
pub const CSR_BYTES_MAX: usize = 4 << 10;
/// One certificate, in bytes of DER.
pub const CERTIFICATE_BYTES_MAX: usize = 4 << 10;
/// Certificates in a chain, and roots in a trust bundle.
pub const CERTIFICATES_MAX: usize = 4;
/// The trust domain's name, in bytes.
pub const DOMAIN_BYTES_MAX: usize = 255;
/// Sessions that one gateway accepts in all.
pub const SESSIONS_MAX: usize = 131_072;
/// Agents that one gateway knows (pinned, redirected or revoked), connected or not.
pub const AGENTS_MAX: usize = 2 * SESSIONS_MAX;
/// Groups that one gateway knows, its own and those that it redirects.
pub const GROUPS_MAX: usize = 4096;
/// Shards of one gateway; the slot space is 256.
pub const SHARDS_MAX: u16 = 64;

/// A gateway sends a PING to an agent that was silent for this long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// An agent sends a PING when its gateway was silent for this long, ± 20 %: later than any PING of the
/// gateway, so only to a gateway that is gone.
pub const AGENT_KEEP_ALIVE: Duration = Duration::from_secs(13);
const _: () = assert!(AGENT_KEEP_ALIVE.as_millis() * 8 / 10 > KEEP_ALIVE.as_millis() + 200);
/// A session with no packet for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// From the first packet to an accepted Hello; after that the attempt is dropped without a trace.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Unfinished handshakes that one shard holds.
pub const HALF_OPEN_MAX: usize = 512;
/// Half-open handshakes on one shard above which newcomers must prove their address (Retry).
pub const HALF_OPEN_RETRY: usize = 128;
/// Unused permits return to their owner after this long.
pub const GRANT_TTL: Duration = Duration::from_secs(2);
/// Lines of demand that one process server states for one agent at once.
pub const LINES_MAX: usize = 64;
/// Shared resources that one operation uses.
pub const RESOURCES_MAX: usize = 4;
/// The weight of a tenant is from 1 to this.
pub const WEIGHT_MAX: u32 = 1000;
/// Limits that operators set.
pub const LIMITS_MAX: usize = 8192;
/// How long a home may use what it was lent of a limit that spans homes, from its own report on.
pub const CREDIT_LEASE: Duration = Duration::from_secs(5);
/// How often homes report what they use of such limits, and their owner lends anew.
pub const CREDIT_PERIOD: Duration = Duration::from_secs(1);
/// Limits in one message about what is lent of them.
pub const CREDITS_PER_FRAME_MAX: usize = 1024;
/// Operations with their lines in one message.
pub const CHARGES_PER_FRAME_MAX: usize = 256;
/// An operation without a deadline of its own gets this one.
pub const OPERATION_DEADLINE_DEFAULT: Duration = Duration::from_secs(15 * 60);

/// A connection between a process server and an agent server without a packet for this long is over.
pub const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Either side of such a connection sends a PING after this long without one.
pub const LINK_KEEP_ALIVE: Duration = Duration::from_secs(2);
const _: () = assert!(LINK_KEEP_ALIVE.as_millis() * 3 <= LINK_IDLE_TIMEOUT.as_millis());
/// An agent server asks for its lease to be prolonged this often.
pub const LINK_RENEW: Duration = Duration::from_secs(5);
/// It dispatches for this long from the last question that was answered.
pub const LINK_LEASE: Duration = Duration::from_secs(10);
/// Bytes in flight each way on such a connection.
pub const LINK_WINDOW_BYTES: usize = 4 << 20;
const _: () = assert!(FRAME_BYTES_MAX < LINK_WINDOW_BYTES);

/// Newcomers that one shard keeps waiting for their first TLS work; more are dropped.
pub const INCOMING_MAX: usize = 1024;
/// Bytes kept for one waiting newcomer, besides its first packet.
pub const INCOMING_BYTES_MAX: u64 = 4 << 10;
/// Bytes kept for all waiting newcomers of a shard, besides their first packets.
pub const INCOMING_BYTES_TOTAL_MAX: u64 = 1 << 20;
/// A newcomer that waited this long for its first TLS work has given up: it is dropped.
pub const INCOMING_AGE_MAX: Duration = Duration::from_secs(1);
/// Enrolments of one shard that wait for the control plane at once.
pub const ENROLMENTS_PENDING_MAX: usize = 64;
/// From the first packet of an enrolment to its answer.
pub const ENROLMENT_DEADLINE: Duration = Duration::from_secs(10);
/// Words that may wait in one shard's mailbox.
pub const MAILBOX_MAX: usize = 4096;
/// Events of one shard that may wait for the control plane.
pub const UPLINK_MAX: usize = 4096;
/// Bytes in those events, before the shard stops reading its sessions.
pub const UPLINK_BYTES_MAX: usize = 4 << 20;
/// Bytes about operations on their way to one shard from the others, before they stop reading.
pub const MAILBOX_BYTES_MAX: usize = 4 << 20;
