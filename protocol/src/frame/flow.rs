//! Lines of demand and limits, inside requests to a gateway, and what it tells of them.

use flatbuffers::WIPOffset;

use super::check::{self, Fault};
use super::codec::{Builder, agent_id, enum_map, group_id, millis, read_millis, string, uuid};
use super::lists::{ReadList, read_strings, write_strings};
use crate::flow::{
    AgentFlow, Class, Decision, Demand, Limit, LimitKey, LimitUse, Line, LineFlow, Parked, Why,
};
use crate::generated::link as fb;
use crate::ids::{ServerId, ShardId};
use crate::limits::{LIMITS_MAX, LINES_MAX, NAME_BYTES_MAX, RESOURCES_MAX, WEIGHT_MAX};

enum_map!(write_class, read_class: Class => fb::Class {
    System, Interactive, Normal, Background,
});
enum_map!(write_why, read_why: Why => fb::LimitWhy {
    Doubled, Found, NoDemand, Calm, Followed, Jumped, NotOurs, Busy, TimedOut,
});

pub(super) fn write_demand(
    b: &mut Builder,
    server: ServerId,
    lines: &[Demand],
) -> Result<WIPOffset<fb::Demand<'static>>, Fault> {
    check::size("demand.lines", lines.len(), LINES_MAX)?;
    let lines = lines
        .iter()
        .map(|line| write_line(b, line))
        .collect::<Result<Vec<_>, Fault>>()?;
    let lines = match lines.is_empty() {
        true => None,
        false => Some(b.create_vector(&lines)),
    };
    let server = server.0;
    Ok(fb::Demand::create(b, &fb::DemandArgs { server, lines }))
}

fn write_line(
    b: &mut Builder,
    demand: &Demand,
) -> Result<WIPOffset<fb::DemandLine<'static>>, Fault> {
    let line = &demand.line;
    check_line(line)?;
    let args = fb::DemandLineArgs {
        number: demand.number,
        class: write_class(line.class),
        tenant: string(b, &line.tenant),
        kind: Some(b.create_string(&line.kind)),
        work: string(b, &line.work),
        resources: write_strings(b, &line.resources, |text| {
            check::name("demand.resources", text, NAME_BYTES_MAX)
        })?,
        ready: demand.ready,
        deadline_ms: demand.deadline_ms,
        weight: check_weight(demand.weight)?,
    };
    Ok(fb::DemandLine::create(b, &args))
}

pub(super) fn read_demand(demand: fb::Demand<'_>) -> Result<(ServerId, Vec<Demand>), Fault> {
    let server = ServerId(demand.server());
    let Some(lines) = demand.lines() else {
        return Ok((server, Vec::new()));
    };
    check::size("demand.lines", lines.len(), LINES_MAX)?;
    let lines = lines.iter().map(read_line).collect::<Result<_, Fault>>()?;
    Ok((server, lines))
}

fn read_line(line: fb::DemandLine<'_>) -> Result<Demand, Fault> {
    let names = (line.tenant(), line.kind(), line.work());
    Ok(Demand {
        number: line.number(),
        line: line_of(line.class(), names, line.resources())?,
        ready: line.ready(),
        deadline_ms: line.deadline_ms(),
        weight: check_weight(line.weight())?,
    })
}

/// The names in a line.
fn check_line(line: &Line) -> Result<(), Fault> {
    check_sorted(&line.resources)?;
    check::name("demand.tenant", &line.tenant, NAME_BYTES_MAX)?;
    check::kind("demand.kind", &line.kind)?;
    check_work("demand.work", &line.work)?;
    check::size("demand.resources", line.resources.len(), RESOURCES_MAX)
}

/// A line from its parts: class, then tenant, kind and work, then resources.
fn line_of(
    class: fb::Class,
    (tenant, kind, work): (Option<&str>, &str, Option<&str>),
    resources: ReadList<'_, &str>,
) -> Result<Line, Fault> {
    let line = Line {
        class: read_class(class).ok_or(Fault::unknown("demand.class"))?,
        tenant: tenant.unwrap_or_default().to_owned(),
        kind: kind.to_owned(),
        work: work.unwrap_or_default().to_owned(),
        resources: read_strings(
            resources,
            "demand.resources",
            RESOURCES_MAX,
            |field, text| check::name(field, text, NAME_BYTES_MAX),
        )?,
    };
    check_line(&line)?;
    Ok(line)
}

/// Sorted and without repetition, so that equal lines are equal.
pub(super) fn check_sorted(resources: &[String]) -> Result<(), Fault> {
    match resources.is_sorted_by(|a, b| a < b) {
        true => Ok(()),
        false => Err(Fault::Invalid {
            field: "demand.resources",
            problem: "is not sorted, or names one twice",
        }),
    }
}

fn check_weight(weight: u32) -> Result<u32, Fault> {
    match (1..=WEIGHT_MAX).contains(&weight) {
        true => Ok(weight),
        false => Err(Fault::Invalid {
            field: "demand.weight",
            problem: "is not from 1 to 1000",
        }),
    }
}

/// A sort of work, or none.
pub(super) fn check_work<'a>(field: &'static str, work: &'a str) -> Result<&'a str, Fault> {
    match work.is_empty() {
        true => Ok(work),
        false => check::kind(field, work),
    }
}

pub(super) fn write_limits(
    b: &mut Builder,
    limits: &[Limit],
) -> Result<WIPOffset<fb::SetLimits<'static>>, Fault> {
    check::size("limits", limits.len(), LIMITS_MAX)?;
    let limits = limits
        .iter()
        .map(|limit| write_limit(b, limit))
        .collect::<Result<Vec<_>, Fault>>()?;
    let limits = match limits.is_empty() {
        true => None,
        false => Some(b.create_vector(&limits)),
    };
    Ok(fb::SetLimits::create(b, &fb::SetLimitsArgs { limits }))
}

pub(super) fn write_limit(
    b: &mut Builder,
    limit: &Limit,
) -> Result<WIPOffset<fb::Limit<'static>>, Fault> {
    use fb::LimitScope as Scope;
    let (scope, id, name) = match &limit.key {
        LimitKey::Agent(agent) => (Scope::Agent, Some(uuid(agent.to_bytes())), ""),
        LimitKey::Work(name) => (Scope::Work, None, check::kind("limit.name", name)?),
        LimitKey::Resource(name) => (Scope::Resource, None, limit_name(name)?),
        LimitKey::Tenant(name) => (Scope::Tenant, None, limit_name(name)?),
        LimitKey::Group(group) => (Scope::Group, Some(uuid(group.to_bytes())), ""),
        LimitKey::Global => (Scope::Global, None, ""),
    };
    let args = fb::LimitArgs {
        scope,
        id: id.as_ref(),
        name: string(b, name),
        min: limit.min,
        max: limit.max,
        pin: limit.pin,
    };
    Ok(fb::Limit::create(b, &args))
}

pub(super) fn read_limits(set: fb::SetLimits<'_>) -> Result<Vec<Limit>, Fault> {
    let Some(limits) = set.limits() else {
        return Ok(Vec::new());
    };
    check::size("limits", limits.len(), LIMITS_MAX)?;
    limits.iter().map(read_limit).collect()
}

pub(super) fn read_limit(limit: fb::Limit<'_>) -> Result<Limit, Fault> {
    use fb::LimitScope as Scope;
    let name = || limit.name().unwrap_or_default();
    let id = || limit.id().ok_or(Fault::missing("limit.id"));
    let key = match limit.scope() {
        Scope::Agent => LimitKey::Agent(agent_id(id()?)),
        Scope::Work => LimitKey::Work(check::kind("limit.name", name())?.to_owned()),
        Scope::Resource => LimitKey::Resource(limit_name(name())?.to_owned()),
        Scope::Tenant => LimitKey::Tenant(limit_name(name())?.to_owned()),
        Scope::Group => LimitKey::Group(group_id(id()?)),
        Scope::Global => LimitKey::Global,
        _ => return Err(Fault::unknown("limit.scope")),
    };
    Ok(Limit {
        key,
        min: limit.min(),
        max: limit.max(),
        pin: limit.pin(),
    })
}

fn limit_name(name: &str) -> Result<&str, Fault> {
    if name.is_empty() {
        return Err(Fault::missing("limit.name"));
    }
    check::name("limit.name", name, NAME_BYTES_MAX)
}

pub(super) fn write_flow_told(
    b: &mut Builder,
    ticket: u64,
    flow: Option<&AgentFlow>,
) -> Result<WIPOffset<fb::FlowTold<'static>>, Fault> {
    let flow = flow.map(|flow| write_flow(b, flow)).transpose()?;
    Ok(fb::FlowTold::create(b, &fb::FlowToldArgs { ticket, flow }))
}

fn write_flow(
    b: &mut Builder,
    flow: &AgentFlow,
) -> Result<WIPOffset<fb::AgentFlow<'static>>, Fault> {
    check::size("flow.lines", flow.lines.len(), LINES_MAX)?;
    let lines = flow
        .lines
        .iter()
        .map(|line| write_line_flow(b, line))
        .collect::<Result<Vec<_>, Fault>>()?;
    let lines = match lines.is_empty() {
        true => None,
        false => Some(b.create_vector(&lines)),
    };
    let decision = flow
        .decision
        .as_ref()
        .map(|decision| write_decision(b, decision))
        .transpose()?;
    let args = fb::AgentFlowArgs {
        capacity: check::capacity("flow.capacity", flow.capacity)?,
        limit: flow.limit,
        running: flow.running,
        granted: flow.granted,
        lines,
        decision,
    };
    Ok(fb::AgentFlow::create(b, &args))
}

fn write_line_flow(
    b: &mut Builder,
    line: &LineFlow,
) -> Result<WIPOffset<fb::LineFlow<'static>>, Fault> {
    let parked = line.parked.as_ref();
    let limit = parked.map(|parked| Limit {
        key: parked.key.clone(),
        min: 0,
        max: parked.limit,
        pin: None,
    });
    let of = &line.line;
    check_line(of)?;
    let args = fb::LineFlowArgs {
        server: line.server.0,
        number: line.number,
        class: write_class(of.class),
        tenant: string(b, &of.tenant),
        kind: Some(b.create_string(&of.kind)),
        work: string(b, &of.work),
        resources: write_strings(b, &of.resources, |text| {
            check::name("demand.resources", text, NAME_BYTES_MAX)
        })?,
        waiting: line.waiting,
        parked: limit.map(|limit| write_limit(b, &limit)).transpose()?,
        in_use: parked.map_or(0, |parked| parked.in_use),
        before: parked.map_or(0, |parked| parked.before),
    };
    Ok(fb::LineFlow::create(b, &args))
}

pub(super) fn write_ask_limit(
    b: &mut Builder,
    key: &LimitKey,
    ticket: u64,
) -> Result<WIPOffset<fb::AskLimit<'static>>, Fault> {
    let key = Limit {
        key: key.clone(),
        min: 0,
        max: 0,
        pin: None,
    };
    let key = Some(write_limit(b, &key)?);
    Ok(fb::AskLimit::create(b, &fb::AskLimitArgs { key, ticket }))
}

pub(super) fn read_ask_limit(asked: fb::AskLimit<'_>) -> Result<(LimitKey, u64), Fault> {
    Ok((read_limit(asked.key())?.key, asked.ticket()))
}

pub(super) fn write_limit_told(
    b: &mut Builder,
    ticket: u64,
    (shard, shards): (ShardId, u16),
    used: LimitUse,
) -> WIPOffset<fb::LimitTold<'static>> {
    let args = fb::LimitToldArgs {
        ticket,
        shard: shard.0,
        shards,
        limit: used.limit,
        in_use: used.in_use,
        waiting: used.waiting,
    };
    fb::LimitTold::create(b, &args)
}

pub(super) fn read_limit_use(told: fb::LimitTold<'_>) -> LimitUse {
    LimitUse {
        limit: told.limit(),
        in_use: told.in_use(),
        waiting: told.waiting(),
    }
}

fn write_decision(
    b: &mut Builder,
    decision: &Decision,
) -> Result<WIPOffset<fb::Decision<'static>>, Fault> {
    let args = fb::DecisionArgs {
        age_ms: millis("decision.age", decision.age)?,
        why: write_why(decision.why),
        from: decision.from,
        to: decision.to,
        slowdown: decision.slowdown,
        baseline: decision.baseline,
        rate: decision.rate,
    };
    Ok(fb::Decision::create(b, &args))
}

pub(super) fn read_flow(told: fb::FlowTold<'_>) -> Result<Option<AgentFlow>, Fault> {
    let Some(flow) = told.flow() else {
        return Ok(None);
    };
    let mut lines = Vec::new();
    if let Some(told) = flow.lines() {
        check::size("flow.lines", told.len(), LINES_MAX)?;
        for line in told {
            lines.push(read_line_flow(line)?);
        }
    }
    Ok(Some(AgentFlow {
        capacity: check::capacity("flow.capacity", flow.capacity())?,
        limit: flow.limit(),
        running: flow.running(),
        granted: flow.granted(),
        lines,
        decision: flow.decision().map(read_decision).transpose()?,
    }))
}

fn read_line_flow(line: fb::LineFlow<'_>) -> Result<LineFlow, Fault> {
    let parked = line.parked().map(read_limit).transpose()?;
    let names = (line.tenant(), line.kind(), line.work());
    Ok(LineFlow {
        server: ServerId(line.server()),
        number: line.number(),
        line: line_of(line.class(), names, line.resources())?,
        waiting: line.waiting(),
        parked: parked.map(|limit| Parked {
            key: limit.key,
            limit: limit.max,
            in_use: line.in_use(),
            before: line.before(),
        }),
    })
}

fn read_decision(decision: fb::Decision<'_>) -> Result<Decision, Fault> {
    Ok(Decision {
        age: read_millis(decision.age_ms()),
        why: read_why(decision.why()).ok_or(Fault::unknown("decision.why"))?,
        from: decision.from(),
        to: decision.to(),
        slowdown: decision.slowdown(),
        baseline: decision.baseline(),
        rate: decision.rate(),
    })
}
