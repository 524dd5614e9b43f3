//! Frames from the control plane to a gateway.

use std::time::Duration;

use flatbuffers::{UnionWIPOffset, WIPOffset};

use super::check::{self, Fault};
use super::codec::{
    self, Builder, Kind, agent_id, group_id, operation_id, read_millis, read_operation_id, uuid,
};
use super::enrol::{read_reply, write_reply};
use super::flow::{
    read_ask_limit, read_demand, read_limits, write_ask_limit, write_demand, write_limits,
};
use super::lending::{read_asked, read_charges, read_lend, write_asked, write_charges, write_lend};
use super::lists::{read_addresses, write_addresses};
use super::operation::{
    read_command, read_forget, read_query, write_command, write_forget, write_query,
};
use super::{DecodeError, EncodeError};
use crate::enrol::EnrolReply;
use crate::generated::agent::Bytes32;
use crate::generated::link as fb;
use crate::identity::KeyHash;
use crate::ids::{AgentId, Epoch, Fence, GrantId, GroupId, ShardId, Slot};
use crate::limits::{FRAME_BYTES_MAX, PINNED_KEYS_MAX};
use crate::link::{Request, Target};

const REQUEST: Kind = Kind {
    name: "request",
    identifier: "DRLR",
    bytes_max: FRAME_BYTES_MAX,
    tables_max: codec::LINK_TABLES_MAX,
};

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_request(request: &Request, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&REQUEST, out, |b| {
        let (body_type, body) = write_body(b, request)?;
        let target = target_of(request).map(write_target);
        let args = fb::RequestArgs {
            target: target.as_ref(),
            body_type,
            body: Some(body),
        };
        Ok(fb::Request::create(b, &args))
    })
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_request(frame: &[u8]) -> Result<Request, DecodeError> {
    let root = codec::root::<fb::Request<'_>>(&REQUEST, frame)?;
    Ok(read_body(root)?)
}

pub(super) fn write_target(target: Target) -> fb::Target {
    let (agent, group) = (uuid(target.agent.to_bytes()), uuid(target.group.to_bytes()));
    fb::Target::new(&agent, &group, target.slot.0)
}

pub(super) fn read_target(target: Option<&fb::Target>) -> Result<Target, Fault> {
    let target = target.ok_or(Fault::missing("target"))?;
    Ok(Target {
        agent: agent_id(target.agent()),
        group: group_id(target.group()),
        slot: Slot(target.slot()),
    })
}

fn target_of(request: &Request) -> Option<Target> {
    match request {
        Request::AssignGroup { .. }
        | Request::ReleaseGroup { .. }
        | Request::RevokeAgent { .. }
        | Request::EnrolReply { .. }
        | Request::SetLimits { .. }
        | Request::AskLimit { .. }
        | Request::Lend { .. }
        | Request::AskUse { .. }
        | Request::Drain { .. } => None,
        Request::AdmitAgent { target, .. }
        | Request::Demand { target, .. }
        | Request::AskFlow { target, .. }
        | Request::Charge { target, .. }
        | Request::ReturnPermits { target, .. }
        | Request::Dispatch { target, .. }
        | Request::Cancel { target, .. }
        | Request::Query { target, .. }
        | Request::Forget { target, .. } => Some(*target),
    }
}

type Body = (fb::RequestBody, WIPOffset<UnionWIPOffset>);

fn write_body(b: &mut Builder, request: &Request) -> Result<Body, Fault> {
    Ok(match request {
        Request::AssignGroup { group, slot, epoch } => write_assign(b, *group, *slot, *epoch),
        Request::ReleaseGroup {
            group,
            epoch,
            addresses,
        } => write_release(b, *group, *epoch, addresses)?,
        Request::AdmitAgent { keys, .. } => write_admit(b, keys)?,
        Request::RevokeAgent { agent } => write_revoke(b, *agent),
        Request::Demand { server, lines, .. } => {
            let body = write_demand(b, *server, lines)?;
            (fb::RequestBody::Demand, body.as_union_value())
        }
        about_limits @ (Request::AskFlow { .. }
        | Request::AskLimit { .. }
        | Request::SetLimits { .. }
        | Request::Charge { .. }
        | Request::Lend { .. }
        | Request::AskUse { .. }) => write_limits_body(b, about_limits)?,
        Request::ReturnPermits { grant, unused, .. } => {
            let (grant, unused) = (grant.0, *unused);
            let body = fb::ReturnPermits::create(b, &fb::ReturnPermitsArgs { grant, unused });
            (fb::RequestBody::ReturnPermits, body.as_union_value())
        }
        Request::Dispatch {
            grant,
            epoch,
            command,
            ..
        } => {
            let command = Some(write_command(b, *epoch, command)?);
            let grant = grant.0;
            let body = fb::Dispatch::create(b, &fb::DispatchArgs { grant, command });
            (fb::RequestBody::Dispatch, body.as_union_value())
        }
        Request::Cancel {
            operation, fence, ..
        } => {
            let args = fb::CancelOperationArgs {
                operation: Some(&operation_id(*operation)),
                fence: fence.0,
            };
            let body = fb::CancelOperation::create(b, &args);
            (fb::RequestBody::CancelOperation, body.as_union_value())
        }
        Request::Query { operations, .. } => {
            let body = write_query(b, operations)?;
            (fb::RequestBody::Query, body.as_union_value())
        }
        Request::Forget { operations, .. } => {
            let body = write_forget(b, operations)?;
            (fb::RequestBody::Forget, body.as_union_value())
        }
        Request::EnrolReply {
            shard,
            ticket,
            reply,
        } => write_answer(b, *shard, *ticket, reply)?,
        Request::Drain {
            addresses,
            spread,
            deadline,
        } => write_drain(b, addresses, *spread, *deadline)?,
    })
}

/// What is said and asked of limits and their use.
fn write_limits_body(b: &mut Builder, request: &Request) -> Result<Body, Fault> {
    Ok(match request {
        Request::AskFlow { ticket, .. } => {
            let body = fb::AskFlow::create(b, &fb::AskFlowArgs { ticket: *ticket });
            (fb::RequestBody::AskFlow, body.as_union_value())
        }
        Request::AskLimit { key, ticket } => {
            let body = write_ask_limit(b, key, *ticket)?;
            (fb::RequestBody::AskLimit, body.as_union_value())
        }
        Request::SetLimits { limits } => {
            let body = write_limits(b, limits)?;
            (fb::RequestBody::SetLimits, body.as_union_value())
        }
        Request::Charge { operations, .. } => {
            let body = write_charges(b, operations)?;
            (fb::RequestBody::Charge, body.as_union_value())
        }
        Request::Lend { shard, leases } => {
            let body = write_lend(b, *shard, leases)?;
            (fb::RequestBody::Lend, body.as_union_value())
        }
        Request::AskUse { keys } => {
            let body = write_asked(b, keys)?;
            (fb::RequestBody::AskUse, body.as_union_value())
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn write_assign(b: &mut Builder, group: GroupId, slot: Slot, epoch: Epoch) -> Body {
    let args = fb::AssignGroupArgs {
        group: Some(&uuid(group.to_bytes())),
        slot: slot.0,
        epoch: epoch.0,
    };
    let body = fb::AssignGroup::create(b, &args);
    (fb::RequestBody::AssignGroup, body.as_union_value())
}

fn write_release(
    b: &mut Builder,
    group: GroupId,
    epoch: Epoch,
    addresses: &[String],
) -> Result<Body, Fault> {
    let args = fb::ReleaseGroupArgs {
        group: Some(&uuid(group.to_bytes())),
        epoch: epoch.0,
        addresses: write_addresses(b, addresses)?,
    };
    let body = fb::ReleaseGroup::create(b, &args);
    Ok((fb::RequestBody::ReleaseGroup, body.as_union_value()))
}

fn write_answer(
    b: &mut Builder,
    shard: ShardId,
    ticket: u64,
    reply: &EnrolReply,
) -> Result<Body, Fault> {
    let args = fb::AnswerEnrolmentArgs {
        shard: shard.0,
        ticket,
        reply: Some(write_reply(b, reply)?),
    };
    let body = fb::AnswerEnrolment::create(b, &args);
    Ok((fb::RequestBody::AnswerEnrolment, body.as_union_value()))
}

fn write_drain(
    b: &mut Builder,
    addresses: &[String],
    spread: Duration,
    deadline: Duration,
) -> Result<Body, Fault> {
    let args = fb::DrainArgs {
        addresses: write_addresses(b, addresses)?,
        spread_ms: codec::millis("drain.spread", spread)?,
        deadline_ms: codec::millis("drain.deadline", deadline)?,
    };
    let body = fb::Drain::create(b, &args);
    Ok((fb::RequestBody::Drain, body.as_union_value()))
}

fn write_admit(b: &mut Builder, keys: &[KeyHash]) -> Result<Body, Fault> {
    check::size("admit.keys", keys.len(), PINNED_KEYS_MAX)?;
    let keys = b.create_vector_from_iter(keys.iter().map(|key| Bytes32(key.0)));
    let body = fb::AdmitAgent::create(b, &fb::AdmitAgentArgs { keys: Some(keys) });
    Ok((fb::RequestBody::AdmitAgent, body.as_union_value()))
}

fn write_revoke(b: &mut Builder, agent: AgentId) -> Body {
    let args = fb::RevokeAgentArgs {
        agent: Some(&uuid(agent.to_bytes())),
    };
    let body = fb::RevokeAgent::create(b, &args);
    (fb::RequestBody::RevokeAgent, body.as_union_value())
}

fn read_body(root: fb::Request<'_>) -> Result<Request, Fault> {
    let missing = || Fault::missing("body");
    let target = || read_target(root.target());
    Ok(match root.body_type() {
        fb::RequestBody::AdmitAgent => Request::AdmitAgent {
            target: target()?,
            keys: read_keys(root.body_as_admit_agent().ok_or_else(missing)?)?,
        },
        fb::RequestBody::Demand => {
            let (server, lines) = read_demand(root.body_as_demand().ok_or_else(missing)?)?;
            Request::Demand {
                target: target()?,
                server,
                lines,
            }
        }
        fb::RequestBody::AskFlow => Request::AskFlow {
            target: target()?,
            ticket: root.body_as_ask_flow().ok_or_else(missing)?.ticket(),
        },
        fb::RequestBody::AskLimit => {
            let (key, ticket) = read_ask_limit(root.body_as_ask_limit().ok_or_else(missing)?)?;
            Request::AskLimit { key, ticket }
        }
        fb::RequestBody::Charge => Request::Charge {
            target: target()?,
            operations: read_charges(root.body_as_charge().ok_or_else(missing)?)?,
        },
        fb::RequestBody::ReturnPermits => {
            let permits = root.body_as_return_permits().ok_or_else(missing)?;
            Request::ReturnPermits {
                target: target()?,
                grant: GrantId(permits.grant()),
                unused: permits.unused(),
            }
        }
        fb::RequestBody::Dispatch => {
            let dispatch = root.body_as_dispatch().ok_or_else(missing)?;
            let (epoch, command) = read_command(dispatch.command())?;
            Request::Dispatch {
                target: target()?,
                grant: GrantId(dispatch.grant()),
                epoch,
                command: Box::new(command),
            }
        }
        fb::RequestBody::CancelOperation => {
            let cancel = root.body_as_cancel_operation().ok_or_else(missing)?;
            Request::Cancel {
                target: target()?,
                operation: read_operation_id(cancel.operation()),
                fence: Fence(cancel.fence()),
            }
        }
        fb::RequestBody::Query => Request::Query {
            target: target()?,
            operations: read_query(root.body_as_query().ok_or_else(missing)?)?,
        },
        fb::RequestBody::Forget => Request::Forget {
            target: target()?,
            operations: read_forget(root.body_as_forget().ok_or_else(missing)?)?,
        },
        _ => read_untargeted_body(root)?,
    })
}

/// The requests that are not about one target.
fn read_untargeted_body(root: fb::Request<'_>) -> Result<Request, Fault> {
    let missing = || Fault::missing("body");
    Ok(match root.body_type() {
        fb::RequestBody::AssignGroup => {
            let assign = root.body_as_assign_group().ok_or_else(missing)?;
            Request::AssignGroup {
                group: group_id(assign.group()),
                slot: Slot(assign.slot()),
                epoch: Epoch(assign.epoch()),
            }
        }
        fb::RequestBody::ReleaseGroup => {
            let release = root.body_as_release_group().ok_or_else(missing)?;
            Request::ReleaseGroup {
                group: group_id(release.group()),
                epoch: Epoch(release.epoch()),
                addresses: read_addresses(release.addresses())?,
            }
        }
        fb::RequestBody::RevokeAgent => {
            let revoke = root.body_as_revoke_agent().ok_or_else(missing)?;
            Request::RevokeAgent {
                agent: agent_id(revoke.agent()),
            }
        }
        fb::RequestBody::AnswerEnrolment => {
            let answer = root.body_as_answer_enrolment().ok_or_else(missing)?;
            Request::EnrolReply {
                shard: ShardId(answer.shard()),
                ticket: answer.ticket(),
                reply: read_reply(answer.reply())?,
            }
        }
        fb::RequestBody::SetLimits => Request::SetLimits {
            limits: read_limits(root.body_as_set_limits().ok_or_else(missing)?)?,
        },
        fb::RequestBody::Lend => {
            let (shard, leases) = read_lend(root.body_as_lend().ok_or_else(missing)?)?;
            Request::Lend { shard, leases }
        }
        fb::RequestBody::AskUse => Request::AskUse {
            keys: read_asked(root.body_as_ask_use().ok_or_else(missing)?)?,
        },
        fb::RequestBody::Drain => {
            let drain = root.body_as_drain().ok_or_else(missing)?;
            Request::Drain {
                addresses: read_addresses(drain.addresses())?,
                spread: read_millis(drain.spread_ms()),
                deadline: read_millis(drain.deadline_ms()),
            }
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn read_keys(admit: fb::AdmitAgent<'_>) -> Result<Vec<KeyHash>, Fault> {
    let Some(keys) = admit.keys() else {
        return Ok(Vec::new());
    };
    check::size("admit.keys", keys.len(), PINNED_KEYS_MAX)?;
    Ok(keys.iter().map(|key| KeyHash(key.0)).collect())
}
