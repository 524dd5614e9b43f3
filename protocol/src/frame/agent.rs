//! Frames between an agent and its gateway.

use flatbuffers::{UnionWIPOffset, WIPOffset};

use super::check::{self, Fault};
use super::codec::{
    self, Builder, Kind, agent_id, group_id, operation_id, read_millis, read_operation_id, string,
    uuid,
};
use super::lists::{
    read_addresses, read_kinds, read_labels, read_open, write_addresses, write_kinds, write_labels,
    write_open,
};
use super::operation::{
    read_command, read_finished, read_forget, read_progress, read_query, read_refused, read_report,
    write_accepted, write_command, write_finished, write_forget, write_progress, write_query,
    write_refused, write_report,
};
use super::{DecodeError, EncodeError};
use crate::agent::{AgentMessage, GatewayMessage, Hello, Welcome};
use crate::generated::agent as fb;
use crate::ids::{Epoch, Fence, SessionId, Slot};
use crate::limits::{
    COMMAND_REPLY_BYTES_MAX, CONTROL_FRAME_BYTES_MAX, GATEWAY_FRAME_BYTES_MAX, NAME_BYTES_MAX,
};
use crate::version::VersionRange;

const CONTROL: Kind = Kind {
    name: "agent message",
    identifier: "DRAM",
    bytes_max: CONTROL_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};
const COMMAND_REPLY: Kind = Kind {
    name: "command reply",
    identifier: CONTROL.identifier,
    bytes_max: COMMAND_REPLY_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};
const GATEWAY: Kind = Kind {
    name: "gateway message",
    identifier: "DRGM",
    bytes_max: GATEWAY_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};

/// Whether a message travels on a command stream, where frames are smaller.
fn is_command_reply(message: &AgentMessage) -> bool {
    match message {
        AgentMessage::Hello(_) | AgentMessage::Status { .. } | AgentMessage::Report { .. } => false,
        AgentMessage::Accepted { .. }
        | AgentMessage::Refused { .. }
        | AgentMessage::Progress { .. }
        | AgentMessage::Finished { .. } => true,
    }
}

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_agent_message(message: &AgentMessage, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let reply = is_command_reply(message);
    let kind = if reply { &COMMAND_REPLY } else { &CONTROL };
    codec::encode(kind, out, |b| {
        let (body_type, body) = write_agent_body(b, message)?;
        let args = fb::AgentMessageArgs {
            body_type,
            body: Some(body),
        };
        Ok(fb::AgentMessage::create(b, &args))
    })
}

fn write_agent_body(
    b: &mut Builder,
    message: &AgentMessage,
) -> Result<(fb::AgentBody, WIPOffset<UnionWIPOffset>), Fault> {
    use fb::AgentBody as Body;
    Ok(match message {
        AgentMessage::Hello(hello) => (Body::Hello, write_hello(b, hello)?.as_union_value()),
        AgentMessage::Status { capacity } => {
            let capacity = check::capacity("status.capacity", *capacity)?;
            let status = fb::Status::create(b, &fb::StatusArgs { capacity });
            (Body::Status, status.as_union_value())
        }
        AgentMessage::Report {
            operation,
            fence,
            state,
        } => {
            let report = write_report(b, *operation, *fence, state)?;
            (Body::Report, report.as_union_value())
        }
        AgentMessage::Accepted { operation, fence } => {
            let accepted = write_accepted(b, *operation, *fence);
            (Body::Accepted, accepted.as_union_value())
        }
        AgentMessage::Refused {
            operation,
            fence,
            refusal,
        } => {
            let refused = write_refused(b, *operation, *fence, refusal)?;
            (Body::Refused, refused.as_union_value())
        }
        AgentMessage::Progress {
            operation,
            fence,
            progress,
        } => {
            let progress = write_progress(b, *operation, *fence, progress)?;
            (Body::Progress, progress.as_union_value())
        }
        AgentMessage::Finished {
            operation,
            fence,
            outcome,
        } => {
            let finished = write_finished(b, *operation, *fence, outcome)?;
            (Body::Finished, finished.as_union_value())
        }
    })
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_agent_message(frame: &[u8]) -> Result<AgentMessage, DecodeError> {
    let root = codec::root::<fb::AgentMessage<'_>>(&CONTROL, frame)?;
    let message = read_agent_body(root)?;
    if is_command_reply(&message) {
        codec::within(frame.len(), COMMAND_REPLY_BYTES_MAX)?;
    }
    Ok(message)
}

fn read_agent_body(root: fb::AgentMessage<'_>) -> Result<AgentMessage, Fault> {
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        fb::AgentBody::Hello => {
            let hello = root.body_as_hello().ok_or_else(missing)?;
            AgentMessage::Hello(Box::new(read_hello(hello)?))
        }
        fb::AgentBody::Status => {
            let status = root.body_as_status().ok_or_else(missing)?;
            let capacity = check::capacity("status.capacity", status.capacity())?;
            AgentMessage::Status { capacity }
        }
        fb::AgentBody::Report => {
            let report = root.body_as_report().ok_or_else(missing)?;
            let (operation, fence, state) = read_report(report)?;
            AgentMessage::Report {
                operation,
                fence,
                state,
            }
        }
        fb::AgentBody::Accepted => {
            let accepted = root.body_as_accepted().ok_or_else(missing)?;
            AgentMessage::Accepted {
                operation: read_operation_id(accepted.operation()),
                fence: Fence(accepted.fence()),
            }
        }
        fb::AgentBody::Refused => {
            let refused = root.body_as_refused().ok_or_else(missing)?;
            let (operation, fence, refusal) = read_refused(refused)?;
            AgentMessage::Refused {
                operation,
                fence,
                refusal,
            }
        }
        fb::AgentBody::Progress => {
            let progress = root.body_as_progress().ok_or_else(missing)?;
            let (operation, fence, progress) = read_progress(progress)?;
            AgentMessage::Progress {
                operation,
                fence,
                progress,
            }
        }
        fb::AgentBody::Finished => {
            let finished = root.body_as_finished().ok_or_else(missing)?;
            let (operation, fence, outcome) = read_finished(finished)?;
            AgentMessage::Finished {
                operation,
                fence,
                outcome,
            }
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn write_hello(b: &mut Builder, hello: &Hello) -> Result<WIPOffset<fb::Hello<'static>>, Fault> {
    let hostname = check::name("hello.hostname", &hello.hostname, NAME_BYTES_MAX)?;
    let software = check::name("hello.software", &hello.software, NAME_BYTES_MAX)?;
    let args = fb::HelloArgs {
        oldest_version: hello.versions.oldest,
        newest_version: hello.versions.newest,
        agent: Some(&uuid(hello.agent.to_bytes())),
        session_count: hello.session_count,
        capacity: check::capacity("hello.capacity", hello.capacity)?,
        epoch_seen: hello.epoch_seen.0,
        kinds: write_kinds(b, &hello.kinds)?,
        open: write_open(b, &hello.open)?,
        hostname: string(b, hostname),
        software: string(b, software),
        labels: write_labels(b, &hello.labels)?,
    };
    Ok(fb::Hello::create(b, &args))
}

/// The version range is not judged here, so that its refusal can say what it is: see
/// [`VersionRange::negotiate`].
fn read_hello(hello: fb::Hello<'_>) -> Result<Hello, Fault> {
    let hostname = hello.hostname().unwrap_or_default();
    let software = hello.software().unwrap_or_default();
    Ok(Hello {
        versions: VersionRange {
            oldest: hello.oldest_version(),
            newest: hello.newest_version(),
        },
        agent: agent_id(hello.agent()),
        session_count: hello.session_count(),
        capacity: check::capacity("hello.capacity", hello.capacity())?,
        epoch_seen: Epoch(hello.epoch_seen()),
        kinds: read_kinds(hello.kinds())?,
        open: read_open(hello.open())?,
        hostname: check::name("hello.hostname", hostname, NAME_BYTES_MAX)?.to_owned(),
        software: check::name("hello.software", software, NAME_BYTES_MAX)?.to_owned(),
        labels: read_labels(hello.labels())?,
    })
}

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_gateway_message(
    message: &GatewayMessage,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    codec::encode(&GATEWAY, out, |b| {
        let (body_type, body) = write_gateway_body(b, message)?;
        let args = fb::GatewayMessageArgs {
            body_type,
            body: Some(body),
        };
        Ok(fb::GatewayMessage::create(b, &args))
    })
}

fn write_gateway_body(
    b: &mut Builder,
    message: &GatewayMessage,
) -> Result<(fb::GatewayBody, WIPOffset<UnionWIPOffset>), Fault> {
    use fb::GatewayBody as Body;
    Ok(match message {
        GatewayMessage::Welcome(welcome) => {
            (Body::Welcome, write_welcome(b, welcome)?.as_union_value())
        }
        GatewayMessage::Redirect {
            addresses,
            retry_after,
        } => {
            let args = fb::RedirectArgs {
                addresses: write_addresses(b, addresses)?,
                retry_after_ms: codec::millis("redirect.retry_after", *retry_after)?,
            };
            (
                Body::Redirect,
                fb::Redirect::create(b, &args).as_union_value(),
            )
        }
        GatewayMessage::Query { operations } => {
            (Body::Query, write_query(b, operations)?.as_union_value())
        }
        GatewayMessage::Cancel {
            operation,
            fence,
            epoch,
        } => {
            let args = fb::CancelArgs {
                operation: Some(&operation_id(*operation)),
                fence: fence.0,
                epoch: epoch.0,
            };
            (Body::Cancel, fb::Cancel::create(b, &args).as_union_value())
        }
        GatewayMessage::Forget { operations } => {
            (Body::Forget, write_forget(b, operations)?.as_union_value())
        }
        GatewayMessage::GoAway {
            addresses,
            delay,
            deadline,
        } => {
            let args = fb::GoAwayArgs {
                addresses: write_addresses(b, addresses)?,
                delay_ms: codec::millis("go_away.delay", *delay)?,
                deadline_ms: codec::millis("go_away.deadline", *deadline)?,
            };
            (Body::GoAway, fb::GoAway::create(b, &args).as_union_value())
        }
        GatewayMessage::NewEpoch { epoch } => {
            let args = fb::NewEpochArgs { epoch: epoch.0 };
            (
                Body::NewEpoch,
                fb::NewEpoch::create(b, &args).as_union_value(),
            )
        }
        GatewayMessage::Command { epoch, command } => (
            Body::Command,
            write_command(b, *epoch, command)?.as_union_value(),
        ),
    })
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_gateway_message(frame: &[u8]) -> Result<GatewayMessage, DecodeError> {
    let root = codec::root::<fb::GatewayMessage<'_>>(&GATEWAY, frame)?;
    Ok(read_gateway_body(root)?)
}

fn read_gateway_body(root: fb::GatewayMessage<'_>) -> Result<GatewayMessage, Fault> {
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        fb::GatewayBody::Welcome => {
            let welcome = root.body_as_welcome().ok_or_else(missing)?;
            GatewayMessage::Welcome(Box::new(read_welcome(welcome)?))
        }
        fb::GatewayBody::Redirect => {
            let redirect = root.body_as_redirect().ok_or_else(missing)?;
            GatewayMessage::Redirect {
                addresses: read_addresses(redirect.addresses())?,
                retry_after: read_millis(redirect.retry_after_ms()),
            }
        }
        fb::GatewayBody::Query => GatewayMessage::Query {
            operations: read_query(root.body_as_query().ok_or_else(missing)?)?,
        },
        fb::GatewayBody::Cancel => {
            let cancel = root.body_as_cancel().ok_or_else(missing)?;
            GatewayMessage::Cancel {
                operation: read_operation_id(cancel.operation()),
                fence: Fence(cancel.fence()),
                epoch: Epoch(cancel.epoch()),
            }
        }
        fb::GatewayBody::Forget => GatewayMessage::Forget {
            operations: read_forget(root.body_as_forget().ok_or_else(missing)?)?,
        },
        fb::GatewayBody::GoAway => {
            let go_away = root.body_as_go_away().ok_or_else(missing)?;
            GatewayMessage::GoAway {
                addresses: read_addresses(go_away.addresses())?,
                delay: read_millis(go_away.delay_ms()),
                deadline: read_millis(go_away.deadline_ms()),
            }
        }
        fb::GatewayBody::NewEpoch => {
            let new_epoch = root.body_as_new_epoch().ok_or_else(missing)?;
            GatewayMessage::NewEpoch {
                epoch: Epoch(new_epoch.epoch()),
            }
        }
        fb::GatewayBody::Command => {
            let (epoch, command) = read_command(root.body_as_command().ok_or_else(missing)?)?;
            GatewayMessage::Command { epoch, command }
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn write_welcome(
    b: &mut Builder,
    welcome: &Welcome,
) -> Result<WIPOffset<fb::Welcome<'static>>, Fault> {
    let args = fb::WelcomeArgs {
        version: welcome.version,
        session: welcome.session.0,
        group: Some(&uuid(welcome.group.to_bytes())),
        slot: welcome.slot.0,
        epoch: welcome.epoch.0,
        keep_alive_ms: codec::millis("welcome.keep_alive", welcome.keep_alive)?,
        reconnect_spread_ms: codec::millis("welcome.reconnect_spread", welcome.reconnect_spread)?,
        addresses: write_addresses(b, &welcome.addresses)?,
    };
    Ok(fb::Welcome::create(b, &args))
}

fn read_welcome(welcome: fb::Welcome<'_>) -> Result<Welcome, Fault> {
    Ok(Welcome {
        version: welcome.version(),
        session: SessionId(welcome.session()),
        group: group_id(welcome.group()),
        slot: Slot(welcome.slot()),
        epoch: Epoch(welcome.epoch()),
        keep_alive: read_millis(welcome.keep_alive_ms()),
        reconnect_spread: read_millis(welcome.reconnect_spread_ms()),
        addresses: read_addresses(welcome.addresses())?,
    })
}
