//! Arbitrary valid values of everything that crosses a wire, up to and including every limit.

pub(crate) mod words;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use protocol::agent::{AgentMessage, GatewayMessage, Hello, Welcome};
use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment};
use protocol::flow::lending::{Incarnation, Lease, Report, Term};
use protocol::flow::{
    AgentFlow, Class, Decision, Demand, Limit, LimitKey, LimitUse, Line, LineFlow, Parked, Why,
};
use protocol::identity::KeyHash;
use protocol::ids::{
    AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ProcessId, ServerId, SessionId, ShardId,
    Slot,
};
use protocol::limits::{CAPACITY_MAX, LINES_MAX, PINNED_KEYS_MAX, RESOURCES_MAX, WEIGHT_MAX};
use protocol::link::{DownReason, Event, NotDelivered, Request, SecurityEvent, SessionUp, Target};
use protocol::operation::{
    Channel, Command, OpenOperation, OperationState, Outcome, OutcomeStatus, Phase, Progress,
    Refusal,
};
use protocol::version::VersionRange;

fn agent_id() -> impl Strategy<Value = AgentId> {
    any::<[u8; 16]>().prop_map(AgentId::from_bytes)
}

fn group_id() -> impl Strategy<Value = GroupId> {
    any::<[u8; 16]>().prop_map(GroupId::from_bytes)
}

pub(crate) fn operation_id() -> impl Strategy<Value = OperationId> {
    (any::<[u8; 16]>(), any::<u16>())
        .prop_map(|(process, step)| OperationId::new(ProcessId::from_bytes(process), step))
}

fn fence() -> impl Strategy<Value = Fence> {
    any::<u64>().prop_map(Fence)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn millis() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|ms| Duration::from_millis(u64::from(ms)))
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 ._ü-]{0,32}"
}

fn message() -> impl Strategy<Value = String> {
    "[ -~\n\tä€]{0,60}"
}

fn kind() -> impl Strategy<Value = String> {
    "[a-z0-9_.-]{1,64}"
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9.-]{1,40}:[1-9][0-9]{0,3}",
        (any::<u128>(), 1..=u16::MAX)
            .prop_map(|(ip, port)| format!("[{}]:{port}", Ipv6Addr::from_bits(ip))),
    ]
}

fn addresses() -> impl Strategy<Value = Vec<String>> {
    vec(address(), 0..4)
}

fn output() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
    vec(("[a-z/.-]{1,20}", name()), 0..5)
}

fn status() -> impl Strategy<Value = OutcomeStatus> {
    select(vec![
        OutcomeStatus::Succeeded,
        OutcomeStatus::FailedPermanent,
        OutcomeStatus::FailedTransient,
        OutcomeStatus::Cancelled,
        OutcomeStatus::DeadlineExceeded,
        OutcomeStatus::Interrupted,
    ])
}

pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    let parts = (
        status(),
        option::of(any::<i32>()),
        message(),
        output(),
        any::<u64>(),
    );
    parts.prop_map(|(status, exit_code, message, output, micros)| Outcome {
        status,
        exit_code,
        message,
        output,
        service_time: Duration::from_micros(micros),
    })
}

fn state() -> impl Strategy<Value = OperationState> {
    prop_oneof![
        Just(OperationState::NeverSeen),
        Just(OperationState::Accepted),
        Just(OperationState::Running),
        outcome().prop_map(OperationState::Finished),
    ]
}

fn open() -> impl Strategy<Value = Vec<OpenOperation>> {
    let phase = select(vec![Phase::Accepted, Phase::Running, Phase::Finished]);
    let line =
        (operation_id(), fence(), phase).prop_map(|(operation, fence, phase)| OpenOperation {
            operation,
            fence,
            phase,
        });
    vec(line, 0..6)
}

fn progress() -> impl Strategy<Value = Progress> {
    let channel = select(vec![Channel::None, Channel::Stdout, Channel::Stderr]);
    let parts = (
        any::<u32>(),
        option::of(0u8..=100),
        message(),
        channel,
        output(),
    );
    parts.prop_map(|(sequence, percent, message, channel, output)| Progress {
        sequence,
        percent,
        message,
        channel,
        output,
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        millis().prop_map(|retry_after| Refusal::Busy { retry_after }),
        epoch().prop_map(|seen| Refusal::StaleEpoch { seen }),
        fence().prop_map(|seen| Refusal::StaleFence { seen }),
        kind().prop_map(|kind| Refusal::UnknownKind { kind }),
        message().prop_map(|message| Refusal::InvalidInput { message }),
        Just(Refusal::JournalFull),
        message().prop_map(|message| Refusal::JournalFailed { message }),
        Just(Refusal::DeadlinePassed),
        Just(Refusal::Cancelled),
        Just(Refusal::Stopping),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let parts = (operation_id(), fence(), kind(), output(), any::<u64>());
    parts.prop_map(|(operation, fence, kind, input, deadline_ms)| Command {
        operation,
        fence,
        kind,
        input,
        deadline_ms,
    })
}

fn hello() -> impl Strategy<Value = Hello> {
    let numbers = (
        any::<(u16, u16)>(),
        agent_id(),
        any::<u64>(),
        0..=CAPACITY_MAX,
        epoch(),
    );
    let lists = (vec(kind(), 0..4), open(), name(), name(), labels());
    (numbers, lists).prop_map(|(numbers, lists)| {
        let ((oldest, newest), agent, session_count, capacity, epoch_seen) = numbers;
        let (kinds, open, hostname, software, labels) = lists;
        Hello {
            versions: VersionRange { oldest, newest },
            agent,
            session_count,
            capacity,
            epoch_seen,
            kinds,
            open,
            hostname,
            software,
            labels,
        }
    })
}

pub(crate) fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let about = || (operation_id(), fence());
    prop_oneof![
        hello().prop_map(|hello| AgentMessage::Hello(Box::new(hello))),
        (0..=CAPACITY_MAX).prop_map(|capacity| AgentMessage::Status { capacity }),
        (about(), state()).prop_map(|((operation, fence), state)| AgentMessage::Report {
            operation,
            fence,
            state
        }),
        about().prop_map(|(operation, fence)| AgentMessage::Accepted { operation, fence }),
        (about(), refusal()).prop_map(|((operation, fence), refusal)| AgentMessage::Refused {
            operation,
            fence,
            refusal
        }),
        (about(), progress()).prop_map(|((operation, fence), progress)| AgentMessage::Progress {
            operation,
            fence,
            progress
        }),
        (about(), outcome()).prop_map(|((operation, fence), outcome)| AgentMessage::Finished {
            operation,
            fence,
            outcome
        }),
    ]
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let ids = (any::<u16>(), any::<u64>(), group_id(), any::<u8>(), epoch());
    (ids, millis(), millis(), addresses()).prop_map(|(ids, keep_alive, spread, addresses)| {
        let (version, session, group, slot, epoch) = ids;
        Welcome {
            version,
            session: SessionId(session),
            group,
            slot: Slot(slot),
            epoch,
            keep_alive,
            reconnect_spread: spread,
            addresses,
        }
    })
}

pub(crate) fn gateway_message() -> impl Strategy<Value = GatewayMessage> {
    prop_oneof![
        welcome().prop_map(|welcome| GatewayMessage::Welcome(Box::new(welcome))),
        (addresses(), millis()).prop_map(|(addresses, retry_after)| GatewayMessage::Redirect {
            addresses,
            retry_after
        }),
        vec((operation_id(), fence()), 0..6)
            .prop_map(|operations| GatewayMessage::Query { operations }),
        (operation_id(), fence(), epoch()).prop_map(|(operation, fence, epoch)| {
            GatewayMessage::Cancel {
                operation,
                fence,
                epoch,
            }
        }),
        vec(operation_id(), 0..6).prop_map(|operations| GatewayMessage::Forget { operations }),
        (addresses(), millis(), millis()).prop_map(|(addresses, delay, deadline)| {
            GatewayMessage::GoAway {
                addresses,
                delay,
                deadline,
            }
        }),
        epoch().prop_map(|epoch| GatewayMessage::NewEpoch { epoch }),
        (epoch(), command())
            .prop_map(|(epoch, command)| GatewayMessage::Command { epoch, command }),
    ]
}

pub(crate) fn enrol_request() -> impl Strategy<Value = EnrolRequest> {
    let parts = (any::<[u8; 32]>(), vec(any::<u8>(), 0..400), name(), name());
    parts.prop_map(|(secret, csr, hostname, software)| EnrolRequest {
        secret,
        csr,
        hostname,
        software,
    })
}

fn certificates() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 1..300), 0..4)
}

pub(crate) fn enrol_reply() -> impl Strategy<Value = EnrolReply> {
    let refusal = select(vec![
        EnrolRefusal::UnknownToken,
        EnrolRefusal::UsedToken,
        EnrolRefusal::ExpiredToken,
        EnrolRefusal::BadRequest,
        EnrolRefusal::Busy,
        EnrolRefusal::Unavailable,
    ]);
    let ids = (agent_id(), group_id(), any::<u8>(), "[a-z.-]{1,30}");
    let enrolled = (ids, certificates(), certificates(), addresses());
    prop_oneof![
        refusal.prop_map(EnrolReply::Refused),
        enrolled.prop_map(|((agent, group, slot, domain), chain, roots, addresses)| {
            EnrolReply::Enrolled(Box::new(Enrolment {
                agent,
                group,
                slot: Slot(slot),
                domain,
                chain,
                roots,
                addresses,
            }))
        }),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    (agent_id(), group_id(), any::<u8>()).prop_map(|(agent, group, slot)| Target {
        agent,
        group,
        slot: Slot(slot),
    })
}

fn group_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (group_id(), any::<u8>(), epoch()).prop_map(|(group, slot, epoch)| {
            Request::AssignGroup {
                group,
                slot: Slot(slot),
                epoch,
            }
        }),
        (group_id(), epoch(), addresses()).prop_map(|(group, epoch, addresses)| {
            Request::ReleaseGroup {
                group,
                epoch,
                addresses,
            }
        }),
        agent_id().prop_map(|agent| Request::RevokeAgent { agent }),
        (any::<u16>(), any::<u64>(), enrol_reply()).prop_map(|(shard, ticket, reply)| {
            Request::EnrolReply {
                shard: ShardId(shard),
                ticket,
                reply,
            }
        }),
        (addresses(), millis(), millis()).prop_map(|(addresses, spread, deadline)| {
            Request::Drain {
                addresses,
                spread,
                deadline,
            }
        }),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    let class = select(vec![
        Class::System,
        Class::Interactive,
        Class::Normal,
        Class::Background,
    ]);
    let resources = btree_set(name(), 0..=RESOURCES_MAX);
    let line = (
        class,
        name(),
        kind(),
        prop_oneof![Just(String::new()), kind()],
        resources,
    );
    line.prop_map(|(class, tenant, kind, work, resources)| Line {
        class,
        tenant,
        kind,
        work,
        resources: resources.into_iter().collect(),
    })
}

fn demand() -> impl Strategy<Value = Demand> {
    let figures = (any::<u32>(), any::<u32>(), any::<u64>(), 1..=WEIGHT_MAX);
    (line(), figures).prop_map(|(line, (number, ready, deadline_ms, weight))| Demand {
        number,
        line,
        ready,
        deadline_ms,
        weight,
    })
}

fn agent_flow() -> impl Strategy<Value = AgentFlow> {
    let parked = (limit(), any::<u32>(), any::<u32>());
    let parked = parked.prop_map(|(limit, in_use, before)| Parked {
        key: limit.key,
        limit: limit.max,
        in_use,
        before,
    });
    let line = (any::<[u32; 3]>(), line(), option::of(parked));
    let line = line.prop_map(|([server, number, waiting], line, parked)| LineFlow {
        server: ServerId(server),
        number,
        line,
        waiting,
        parked,
    });
    let why = select(vec![
        Why::Doubled,
        Why::Found,
        Why::NoDemand,
        Why::Calm,
        Why::Followed,
        Why::Jumped,
        Why::NotOurs,
        Why::Busy,
        Why::TimedOut,
    ]);
    let decision = (millis(), why, any::<[u32; 5]>());
    let decision = decision.prop_map(
        |(age, why, [from, to, slowdown, baseline, rate])| Decision {
            age,
            why,
            from,
            to,
            slowdown,
            baseline,
            rate,
        },
    );
    let figures = (0..=CAPACITY_MAX, any::<[u32; 3]>());
    let rest = (vec(line, 0..=8), option::of(decision));
    (figures, rest).prop_map(
        |((capacity, [limit, running, granted]), (lines, decision))| AgentFlow {
            capacity,
            limit,
            running,
            granted,
            lines,
            decision,
        },
    )
}

fn limit_use() -> impl Strategy<Value = LimitUse> {
    (option::of(any::<u32>()), any::<[u32; 2]>()).prop_map(|(limit, [in_use, waiting])| LimitUse {
        limit,
        in_use,
        waiting,
    })
}

fn limit_key() -> impl Strategy<Value = LimitKey> {
    let named = || name().prop_filter("a name", |name| !name.is_empty());
    prop_oneof![
        agent_id().prop_map(LimitKey::Agent),
        kind().prop_map(LimitKey::Work),
        named().prop_map(LimitKey::Resource),
        named().prop_map(LimitKey::Tenant),
        group_id().prop_map(LimitKey::Group),
        Just(LimitKey::Global),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    let figures = (any::<u32>(), any::<u32>(), option::of(any::<u32>()));
    (limit_key(), figures).prop_map(|(key, (min, max, pin))| Limit { key, min, max, pin })
}

fn lease() -> impl Strategy<Value = Lease> {
    let figures = any::<[u64; 4]>();
    (figures, any::<u32>(), any::<bool>()).prop_map(
        |([incarnation, term, number, answers], credit, only_prolongs)| Lease {
            incarnation: Incarnation(incarnation),
            term: Term(term),
            number,
            answers,
            credit,
            only_prolongs,
        },
    )
}

fn use_report() -> impl Strategy<Value = Report> {
    (any::<[u64; 4]>(), any::<[u32; 3]>()).prop_map(
        |([incarnation, number, term, lease], [holds, in_use, wants])| Report {
            incarnation: Incarnation(incarnation),
            number,
            term: Term(term),
            lease,
            holds,
            in_use,
            wants,
        },
    )
}

fn lending_request() -> impl Strategy<Value = Request> {
    let charges = vec((operation_id(), line()), 0..5);
    prop_oneof![
        (target(), charges).prop_map(|(target, operations)| Request::Charge { target, operations }),
        (any::<u16>(), vec((limit_key(), lease()), 0..5)).prop_map(|(shard, leases)| {
            Request::Lend {
                shard: ShardId(shard),
                leases,
            }
        }),
        vec(limit_key(), 0..5).prop_map(|keys| Request::AskUse { keys }),
    ]
}

fn target_request() -> impl Strategy<Value = Request> {
    let keys = vec(any::<[u8; 32]>().prop_map(KeyHash), 0..=PINNED_KEYS_MAX);
    let dispatch = (target(), any::<u64>(), epoch(), command());
    prop_oneof![
        (target(), keys).prop_map(|(target, keys)| Request::AdmitAgent { target, keys }),
        (target(), any::<u32>(), vec(demand(), 0..=LINES_MAX)).prop_map(
            |(target, server, lines)| Request::Demand {
                target,
                server: ServerId(server),
                lines,
            }
        ),
        vec(limit(), 0..=8).prop_map(|limits| Request::SetLimits { limits }),
        (target(), any::<u64>()).prop_map(|(target, ticket)| Request::AskFlow { target, ticket }),
        (limit(), any::<u64>()).prop_map(|(limit, ticket)| Request::AskLimit {
            key: limit.key,
            ticket,
        }),
        (target(), any::<u64>(), any::<u32>()).prop_map(|(target, grant, unused)| {
            Request::ReturnPermits {
                target,
                grant: GrantId(grant),
                unused,
            }
        }),
        dispatch.prop_map(|(target, grant, epoch, command)| Request::Dispatch {
            target,
            grant: GrantId(grant),
            epoch,
            command: Box::new(command),
        }),
        (target(), operation_id(), fence()).prop_map(|(target, operation, fence)| {
            Request::Cancel {
                target,
                operation,
                fence,
            }
        }),
        (target(), vec((operation_id(), fence()), 0..6))
            .prop_map(|(target, operations)| Request::Query { target, operations }),
        (target(), vec(operation_id(), 0..6))
            .prop_map(|(target, operations)| Request::Forget { target, operations }),
    ]
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![group_request(), target_request(), lending_request()]
}

fn socket_address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<(u32, u16)>().prop_map(|(ip, port)| (Ipv4Addr::from_bits(ip), port).into()),
        any::<(u128, u16, u32, u32)>().prop_map(|(ip, port, flowinfo, scope)| {
            SocketAddrV6::new(Ipv6Addr::from_bits(ip), port, flowinfo, scope).into()
        }),
    ]
}

fn session_up() -> impl Strategy<Value = SessionUp> {
    let place = (
        target(),
        any::<u64>(),
        any::<u16>(),
        any::<bool>(),
        socket_address(),
    );
    let inventory = (
        0..=CAPACITY_MAX,
        vec(kind(), 0..4),
        open(),
        name(),
        name(),
        labels(),
    );
    (place, inventory).prop_map(|(place, inventory)| {
        let (target, session, shard, at_home, remote) = place;
        let (capacity, kinds, open, hostname, software, labels) = inventory;
        SessionUp {
            target,
            session: SessionId(session),
            shard: ShardId(shard),
            at_home,
            remote,
            capacity,
            kinds,
            open,
            hostname,
            software,
            labels,
        }
    })
}

fn gateway_event() -> impl Strategy<Value = Event> {
    let reason = prop_oneof![
        select(CloseCode::ALL.to_vec()).prop_map(DownReason::ClosedHere),
        any::<u64>().prop_map(DownReason::ClosedByAgent),
        Just(DownReason::TimedOut),
        Just(DownReason::TransportError),
    ];
    let security = select(vec![
        SecurityEvent::NoCertificate,
        SecurityEvent::ForeignCertificate,
        SecurityEvent::KeyNotPinned,
        SecurityEvent::RevokedAgent,
        SecurityEvent::IdentityMismatch,
        SecurityEvent::ForeignOperation,
        SecurityEvent::ProtocolViolation,
        SecurityEvent::LimitExceeded,
        SecurityEvent::HandlerPanicked,
    ]);
    let enrol = (
        any::<u16>(),
        any::<u64>(),
        socket_address(),
        enrol_request(),
    );
    prop_oneof![
        session_up().prop_map(|up| Event::SessionUp(Box::new(up))),
        (target(), any::<u64>(), reason).prop_map(|(target, session, reason)| {
            Event::SessionDown {
                target,
                session: SessionId(session),
                reason,
            }
        }),
        permit_event(),
        (
            any::<u16>(),
            any::<u16>(),
            vec((limit_key(), use_report()), 0..5)
        )
            .prop_map(|(shard, shards, reports)| Event::Reported {
                shard: ShardId(shard),
                shards,
                reports,
            }),
        enrol.prop_map(|(shard, ticket, remote, request)| Event::Enrol {
            shard: ShardId(shard),
            ticket,
            remote,
            request: Box::new(request),
        }),
        (security, option::of(agent_id()), socket_address()).prop_map(|(kind, agent, remote)| {
            Event::Security {
                kind,
                agent,
                remote,
            }
        }),
    ]
}

fn permit_event() -> impl Strategy<Value = Event> {
    let named = (any::<u32>(), any::<u32>(), any::<u64>());
    let granted = (target(), named, epoch(), any::<u32>(), millis());
    prop_oneof![
        (target(), any::<u64>(), option::of(agent_flow())).prop_map(|(target, ticket, flow)| {
            Event::FlowTold {
                target,
                ticket,
                flow: flow.map(Box::new),
            }
        }),
        (any::<u64>(), any::<[u16; 2]>(), limit_use()).prop_map(
            |(ticket, [shard, shards], used)| Event::LimitTold {
                ticket,
                shard: ShardId(shard),
                shards,
                used,
            }
        ),
        granted.prop_map(
            |(target, (server, line, grant), epoch, permits, ttl)| Event::Granted {
                target,
                server: ServerId(server),
                line,
                grant: GrantId(grant),
                epoch,
                permits,
                ttl,
            }
        ),
        (target(), any::<u64>(), any::<u64>()).prop_map(|(target, grant, epoch)| Event::Offered {
            target,
            grant: GrantId(grant),
            epoch: Epoch(epoch),
        }),
        (target(), any::<u64>()).prop_map(|(target, grant)| Event::Withdrawn {
            target,
            grant: GrantId(grant),
        }),
    ]
}

fn operation_event() -> impl Strategy<Value = Event> {
    let about = || (target(), operation_id(), fence());
    let reason = select(vec![
        NotDelivered::NoGrant,
        NotDelivered::StaleEpoch,
        NotDelivered::NotOwner,
        NotDelivered::NoSession,
        NotDelivered::Busy,
        NotDelivered::TooLarge,
        NotDelivered::Draining,
    ]);
    prop_oneof![
        about().prop_map(|(target, operation, fence)| Event::Accepted {
            target,
            operation,
            fence
        }),
        (about(), progress()).prop_map(|((target, operation, fence), progress)| Event::Progress {
            target,
            operation,
            fence,
            progress
        }),
        (about(), outcome()).prop_map(|((target, operation, fence), outcome)| Event::Finished {
            target,
            operation,
            fence,
            outcome
        }),
        (about(), refusal()).prop_map(|((target, operation, fence), refusal)| Event::Refused {
            target,
            operation,
            fence,
            refusal
        }),
        (about(), reason).prop_map(|((target, operation, fence), reason)| Event::NotDelivered {
            target,
            operation,
            fence,
            reason
        }),
        about().prop_map(|(target, operation, fence)| Event::Uncertain {
            target,
            operation,
            fence
        }),
        (about(), state()).prop_map(|((target, operation, fence), state)| Event::Report {
            target,
            operation,
            fence,
            state
        }),
    ]
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![gateway_event(), operation_event()]
}
