//! Frames from a gateway to the control plane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use flatbuffers::{UnionWIPOffset, WIPOffset};

use super::check::{self, Fault};
use super::codec::{
    self, Builder, Kind, agent_id, enum_map, operation_id, read_millis, read_operation_id, string,
    uuid,
};
use super::enrol::{read_request, write_request};
use super::flow::{read_flow, read_limit_use, write_flow_told, write_limit_told};
use super::lending::{read_reported, write_reported};
use super::lists::{read_kinds, read_labels, read_open, write_kinds, write_labels, write_open};
use super::operation::{
    read_finished, read_progress, read_refused, read_report, write_accepted, write_finished,
    write_progress, write_refused, write_report,
};
use super::request::{read_target, write_target};
use super::{DecodeError, EncodeError};
use crate::close::CloseCode;
use crate::generated::link as fb;
use crate::ids::{AgentId, Epoch, Fence, GrantId, OperationId, ServerId, SessionId, ShardId};
use crate::limits::{FRAME_BYTES_MAX, NAME_BYTES_MAX};
use crate::link::{DownReason, Event, NotDelivered, SecurityEvent, SessionUp, Target};

const EVENT: Kind = Kind {
    name: "event",
    identifier: "DRLE",
    bytes_max: FRAME_BYTES_MAX,
    tables_max: codec::LINK_TABLES_MAX,
};

enum_map!(write_reason, read_reason: NotDelivered => fb::NotDeliveredReason {
    NoGrant, StaleEpoch, NotOwner, NoSession, Busy, TooLarge, Draining,
});
enum_map!(write_kind, read_kind: SecurityEvent => fb::SecurityKind {
    NoCertificate, ForeignCertificate, KeyNotPinned, RevokedAgent, IdentityMismatch,
    ForeignOperation, ProtocolViolation, LimitExceeded, HandlerPanicked,
});

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_event(event: &Event, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&EVENT, out, |b| {
        let (body_type, body) = write_body(b, event)?;
        let target = target_of(event).map(write_target);
        let args = fb::EventArgs {
            target: target.as_ref(),
            body_type,
            body: Some(body),
        };
        Ok(fb::Event::create(b, &args))
    })
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_event(frame: &[u8]) -> Result<Event, DecodeError> {
    let root = codec::root::<fb::Event<'_>>(&EVENT, frame)?;
    Ok(read_body(root)?)
}

fn target_of(event: &Event) -> Option<Target> {
    match event {
        Event::Enrol { .. }
        | Event::LimitTold { .. }
        | Event::Reported { .. }
        | Event::Security { .. } => None,
        Event::SessionUp(up) => Some(up.target),
        Event::SessionDown { target, .. }
        | Event::Granted { target, .. }
        | Event::Offered { target, .. }
        | Event::Withdrawn { target, .. }
        | Event::FlowTold { target, .. }
        | Event::Accepted { target, .. }
        | Event::Progress { target, .. }
        | Event::Finished { target, .. }
        | Event::Refused { target, .. }
        | Event::NotDelivered { target, .. }
        | Event::Uncertain { target, .. }
        | Event::Report { target, .. } => Some(*target),
    }
}

type Body = (fb::EventBody, WIPOffset<UnionWIPOffset>);

fn write_body(b: &mut Builder, event: &Event) -> Result<Body, Fault> {
    use fb::EventBody as Kind;
    Ok(match event {
        Event::SessionUp(up) => (Kind::SessionUp, write_session_up(b, up)?.as_union_value()),
        Event::SessionDown {
            session, reason, ..
        } => (
            Kind::SessionDown,
            write_session_down(b, *session, *reason).as_union_value(),
        ),
        Event::Granted {
            server,
            line,
            grant,
            epoch,
            permits,
            ttl,
            ..
        } => {
            let args = fb::GrantedArgs {
                server: server.0,
                line: *line,
                grant: grant.0,
                epoch: epoch.0,
                permits: *permits,
                ttl_ms: codec::millis("granted.ttl", *ttl)?,
            };
            (
                Kind::Granted,
                fb::Granted::create(b, &args).as_union_value(),
            )
        }
        Event::Offered { grant, epoch, .. } => write_offered(b, *grant, *epoch),
        Event::Withdrawn { grant, .. } => {
            let body = fb::Withdrawn::create(b, &fb::WithdrawnArgs { grant: grant.0 });
            (Kind::Withdrawn, body.as_union_value())
        }
        about_limits @ (Event::FlowTold { .. }
        | Event::LimitTold { .. }
        | Event::Reported { .. }) => write_limits_body(b, about_limits)?,
        Event::Enrol {
            shard,
            ticket,
            remote,
            request,
        } => {
            let args = fb::EnrolArgs {
                shard: shard.0,
                ticket: *ticket,
                remote: Some(&write_socket_address(*remote)),
                request: Some(write_request(b, request)?),
            };
            (Kind::Enrol, fb::Enrol::create(b, &args).as_union_value())
        }
        Event::Security {
            kind,
            agent,
            remote,
        } => write_security(b, *kind, *agent, *remote),
        about_an_operation => write_operation_body(b, about_an_operation)?,
    })
}

/// What is told of limits and their use.
fn write_limits_body(b: &mut Builder, event: &Event) -> Result<Body, Fault> {
    use fb::EventBody as Kind;
    Ok(match event {
        Event::FlowTold { ticket, flow, .. } => {
            let body = write_flow_told(b, *ticket, flow.as_deref())?;
            (Kind::FlowTold, body.as_union_value())
        }
        Event::LimitTold {
            ticket,
            shard,
            shards,
            used,
        } => {
            let body = write_limit_told(b, *ticket, (*shard, *shards), *used);
            (Kind::LimitTold, body.as_union_value())
        }
        Event::Reported {
            shard,
            shards,
            reports,
        } => {
            let body = write_reported(b, *shard, *shards, reports)?;
            (Kind::Reported, body.as_union_value())
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn write_operation_body(b: &mut Builder, event: &Event) -> Result<Body, Fault> {
    use fb::EventBody as Kind;
    Ok(match event {
        Event::Accepted {
            operation, fence, ..
        } => (
            Kind::Accepted,
            write_accepted(b, *operation, *fence).as_union_value(),
        ),
        Event::Progress {
            operation,
            fence,
            progress,
            ..
        } => {
            let body = write_progress(b, *operation, *fence, progress)?;
            (Kind::Progress, body.as_union_value())
        }
        Event::Finished {
            operation,
            fence,
            outcome,
            ..
        } => {
            let body = write_finished(b, *operation, *fence, outcome)?;
            (Kind::Finished, body.as_union_value())
        }
        Event::Refused {
            operation,
            fence,
            refusal,
            ..
        } => {
            let body = write_refused(b, *operation, *fence, refusal)?;
            (Kind::Refused, body.as_union_value())
        }
        Event::NotDelivered {
            operation,
            fence,
            reason,
            ..
        } => write_not_delivered(b, *operation, *fence, *reason),
        Event::Uncertain {
            operation, fence, ..
        } => write_uncertain(b, *operation, *fence),
        Event::Report {
            operation,
            fence,
            state,
            ..
        } => {
            let body = write_report(b, *operation, *fence, state)?;
            (Kind::Report, body.as_union_value())
        }
        Event::SessionUp(_)
        | Event::SessionDown { .. }
        | Event::Granted { .. }
        | Event::Offered { .. }
        | Event::Withdrawn { .. }
        | Event::FlowTold { .. }
        | Event::LimitTold { .. }
        | Event::Reported { .. }
        | Event::Enrol { .. }
        | Event::Security { .. } => return Err(Fault::unknown("body")),
    })
}

fn write_security(
    b: &mut Builder,
    kind: SecurityEvent,
    agent: Option<AgentId>,
    remote: SocketAddr,
) -> Body {
    let agent = agent.map(|id| uuid(id.to_bytes()));
    let args = fb::SecurityArgs {
        kind: write_kind(kind),
        agent: agent.as_ref(),
        remote: Some(&write_socket_address(remote)),
    };
    let body = fb::Security::create(b, &args);
    (fb::EventBody::Security, body.as_union_value())
}

fn write_uncertain(b: &mut Builder, operation: OperationId, fence: Fence) -> Body {
    let args = fb::UncertainArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
    };
    let body = fb::Uncertain::create(b, &args);
    (fb::EventBody::Uncertain, body.as_union_value())
}

fn write_offered(b: &mut Builder, grant: GrantId, epoch: Epoch) -> Body {
    let args = fb::OfferedArgs {
        grant: grant.0,
        epoch: epoch.0,
    };
    let body = fb::Offered::create(b, &args);
    (fb::EventBody::Offered, body.as_union_value())
}

fn write_not_delivered(
    b: &mut Builder,
    operation: OperationId,
    fence: Fence,
    reason: NotDelivered,
) -> Body {
    let args = fb::NotDeliveredArgs {
        operation: Some(&operation_id(operation)),
        fence: fence.0,
        reason: write_reason(reason),
    };
    let body = fb::NotDelivered::create(b, &args);
    (fb::EventBody::NotDelivered, body.as_union_value())
}

/// What is told of limits and their use.
fn read_limits_body(root: fb::Event<'_>) -> Result<Event, Fault> {
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        fb::EventBody::FlowTold => {
            let told = root.body_as_flow_told().ok_or_else(missing)?;
            Event::FlowTold {
                target: read_target(root.target())?,
                ticket: told.ticket(),
                flow: read_flow(told)?.map(Box::new),
            }
        }
        fb::EventBody::Reported => {
            let reported = root.body_as_reported().ok_or_else(missing)?;
            let (shard, shards, reports) = read_reported(reported)?;
            Event::Reported {
                shard,
                shards,
                reports,
            }
        }
        _ => {
            let told = root.body_as_limit_told().ok_or_else(missing)?;
            Event::LimitTold {
                ticket: told.ticket(),
                shard: ShardId(told.shard()),
                shards: told.shards(),
                used: read_limit_use(told),
            }
        }
    })
}

fn read_body(root: fb::Event<'_>) -> Result<Event, Fault> {
    use fb::EventBody as Kind;
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        Kind::SessionUp => {
            let up = root.body_as_session_up().ok_or_else(missing)?;
            Event::SessionUp(Box::new(read_session_up(read_target(root.target())?, up)?))
        }
        Kind::SessionDown => {
            let down = root.body_as_session_down().ok_or_else(missing)?;
            Event::SessionDown {
                target: read_target(root.target())?,
                session: SessionId(down.session()),
                reason: read_down_reason(down)?,
            }
        }
        Kind::Granted => {
            let granted = root.body_as_granted().ok_or_else(missing)?;
            Event::Granted {
                target: read_target(root.target())?,
                server: ServerId(granted.server()),
                line: granted.line(),
                grant: GrantId(granted.grant()),
                epoch: Epoch(granted.epoch()),
                permits: granted.permits(),
                ttl: read_millis(granted.ttl_ms()),
            }
        }
        Kind::Offered => {
            let offered = root.body_as_offered().ok_or_else(missing)?;
            Event::Offered {
                target: read_target(root.target())?,
                grant: GrantId(offered.grant()),
                epoch: Epoch(offered.epoch()),
            }
        }
        Kind::Withdrawn => {
            let withdrawn = root.body_as_withdrawn().ok_or_else(missing)?;
            Event::Withdrawn {
                target: read_target(root.target())?,
                grant: GrantId(withdrawn.grant()),
            }
        }
        Kind::FlowTold | Kind::LimitTold | Kind::Reported => read_limits_body(root)?,
        Kind::Enrol => {
            let enrol = root.body_as_enrol().ok_or_else(missing)?;
            Event::Enrol {
                shard: ShardId(enrol.shard()),
                ticket: enrol.ticket(),
                remote: read_socket_address(enrol.remote())?,
                request: Box::new(read_request(enrol.request())?),
            }
        }
        Kind::Security => {
            let security = root.body_as_security().ok_or_else(missing)?;
            Event::Security {
                kind: read_kind(security.kind()).ok_or(Fault::unknown("security.kind"))?,
                agent: security.agent().map(agent_id),
                remote: read_socket_address(security.remote())?,
            }
        }
        _ => read_operation_body(root)?,
    })
}

/// The events that are about one operation of one target.
fn read_operation_body(root: fb::Event<'_>) -> Result<Event, Fault> {
    use fb::EventBody as Kind;
    let missing = || Fault::missing("body");
    let target = read_target(root.target())?;
    Ok(match root.body_type() {
        Kind::Accepted => {
            let accepted = root.body_as_accepted().ok_or_else(missing)?;
            Event::Accepted {
                target,
                operation: read_operation_id(accepted.operation()),
                fence: Fence(accepted.fence()),
            }
        }
        Kind::Progress => {
            let body = root.body_as_progress().ok_or_else(missing)?;
            let (operation, fence, progress) = read_progress(body)?;
            Event::Progress {
                target,
                operation,
                fence,
                progress,
            }
        }
        Kind::Finished => {
            let body = root.body_as_finished().ok_or_else(missing)?;
            let (operation, fence, outcome) = read_finished(body)?;
            Event::Finished {
                target,
                operation,
                fence,
                outcome,
            }
        }
        Kind::Refused => {
            let refused = root.body_as_refused().ok_or_else(missing)?;
            let (operation, fence, refusal) = read_refused(refused)?;
            Event::Refused {
                target,
                operation,
                fence,
                refusal,
            }
        }
        Kind::NotDelivered => {
            let body = root.body_as_not_delivered().ok_or_else(missing)?;
            read_not_delivered(target, body)?
        }
        Kind::Uncertain => {
            let uncertain = root.body_as_uncertain().ok_or_else(missing)?;
            Event::Uncertain {
                target,
                operation: read_operation_id(uncertain.operation()),
                fence: Fence(uncertain.fence()),
            }
        }
        Kind::Report => {
            let report = root.body_as_report().ok_or_else(missing)?;
            let (operation, fence, state) = read_report(report)?;
            Event::Report {
                target,
                operation,
                fence,
                state,
            }
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn read_not_delivered(target: Target, body: fb::NotDelivered<'_>) -> Result<Event, Fault> {
    Ok(Event::NotDelivered {
        target,
        operation: read_operation_id(body.operation()),
        fence: Fence(body.fence()),
        reason: read_reason(body.reason()).ok_or(Fault::unknown("not_delivered.reason"))?,
    })
}

fn write_session_up(
    b: &mut Builder,
    up: &SessionUp,
) -> Result<WIPOffset<fb::SessionUp<'static>>, Fault> {
    let hostname = check::name("session_up.hostname", &up.hostname, NAME_BYTES_MAX)?;
    let software = check::name("session_up.software", &up.software, NAME_BYTES_MAX)?;
    let args = fb::SessionUpArgs {
        session: up.session.0,
        shard: up.shard.0,
        at_home: up.at_home,
        remote: Some(&write_socket_address(up.remote)),
        capacity: check::capacity("session_up.capacity", up.capacity)?,
        kinds: write_kinds(b, &up.kinds)?,
        open: write_open(b, &up.open)?,
        hostname: string(b, hostname),
        software: string(b, software),
        labels: write_labels(b, &up.labels)?,
    };
    Ok(fb::SessionUp::create(b, &args))
}

fn read_session_up(target: Target, up: fb::SessionUp<'_>) -> Result<SessionUp, Fault> {
    let hostname = up.hostname().unwrap_or_default();
    let software = up.software().unwrap_or_default();
    Ok(SessionUp {
        target,
        session: SessionId(up.session()),
        shard: ShardId(up.shard()),
        at_home: up.at_home(),
        remote: read_socket_address(up.remote())?,
        capacity: check::capacity("session_up.capacity", up.capacity())?,
        kinds: read_kinds(up.kinds())?,
        open: read_open(up.open())?,
        hostname: check::name("session_up.hostname", hostname, NAME_BYTES_MAX)?.to_owned(),
        software: check::name("session_up.software", software, NAME_BYTES_MAX)?.to_owned(),
        labels: read_labels(up.labels())?,
    })
}

fn write_session_down(
    b: &mut Builder,
    session: SessionId,
    reason: DownReason,
) -> WIPOffset<fb::SessionDown<'static>> {
    let (cause, code) = match reason {
        DownReason::ClosedHere(code) => (fb::DownCause::ClosedHere, u64::from(code.to_wire())),
        DownReason::ClosedByAgent(code) => (fb::DownCause::ClosedByAgent, code),
        DownReason::TimedOut => (fb::DownCause::TimedOut, 0),
        DownReason::TransportError => (fb::DownCause::TransportError, 0),
    };
    let session = session.0;
    fb::SessionDown::create(
        b,
        &fb::SessionDownArgs {
            session,
            cause,
            code,
        },
    )
}

fn read_down_reason(down: fb::SessionDown<'_>) -> Result<DownReason, Fault> {
    Ok(match down.cause() {
        fb::DownCause::ClosedHere => {
            let code = CloseCode::from_wire(down.code());
            DownReason::ClosedHere(code.ok_or(Fault::unknown("session_down.code"))?)
        }
        fb::DownCause::ClosedByAgent => DownReason::ClosedByAgent(down.code()),
        fb::DownCause::TimedOut => DownReason::TimedOut,
        fb::DownCause::TransportError => DownReason::TransportError,
        _ => return Err(Fault::unknown("session_down.cause")),
    })
}

fn write_socket_address(address: SocketAddr) -> fb::SocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            let mut ip = [0; 16];
            ip[..4].copy_from_slice(&v4.ip().octets());
            fb::SocketAddress::new(&ip, 0, 0, v4.port(), 4)
        }
        SocketAddr::V6(v6) => {
            let ip = v6.ip().octets();
            fb::SocketAddress::new(&ip, v6.flowinfo(), v6.scope_id(), v6.port(), 6)
        }
    }
}

fn read_socket_address(address: &fb::SocketAddress) -> Result<SocketAddr, Fault> {
    let ip: [u8; 16] = address.ip().into();
    match address.family() {
        4 => {
            let [a, b, c, d, ..] = ip;
            let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
            Ok(SocketAddr::new(ip, address.port()))
        }
        6 => {
            let (flowinfo, scope) = (address.flowinfo(), address.scope());
            let v6 = SocketAddrV6::new(Ipv6Addr::from(ip), address.port(), flowinfo, scope);
            Ok(SocketAddr::V6(v6))
        }
        _ => Err(Fault::unknown("remote.family")),
    }
}
