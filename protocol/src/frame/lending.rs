//! What homes use of limits that span them, what they are lent, and what operations hold.

use flatbuffers::WIPOffset;

use super::check::{self, Fault};
use super::codec::{Builder, operation_id, read_operation_id, string};
use super::flow::{check_sorted, check_work, read_class, read_limit, write_class, write_limit};
use super::lists::{read_strings, write_strings};
use crate::flow::lending::{Incarnation, Lease, Report, Term};
use crate::flow::{Limit, LimitKey, Line};
use crate::generated::link as fb;
use crate::ids::{OperationId, ShardId};
use crate::limits::{CHARGES_PER_FRAME_MAX, CREDITS_PER_FRAME_MAX, NAME_BYTES_MAX, RESOURCES_MAX};

/// Writes a list of at most so many; an empty one takes no room.
macro_rules! write_list {
    ($b:ident, $field:literal, $items:expr, $max:expr, $write:expr) => {{
        check::size($field, $items.len(), $max)?;
        let items = $items
            .iter()
            .map(|item| $write($b, item))
            .collect::<Result<Vec<_>, Fault>>()?;
        (!items.is_empty()).then(|| $b.create_vector(&items))
    }};
}

/// Reads a list of at most so many.
macro_rules! read_list {
    ($field:literal, $items:expr, $max:expr, $read:expr) => {
        match $items {
            None => Ok(Vec::new()),
            Some(items) => {
                check::size($field, items.len(), $max)?;
                items.iter().map($read).collect::<Result<_, Fault>>()
            }
        }
    };
}

pub(super) fn write_charges(
    b: &mut Builder,
    operations: &[(OperationId, Line)],
) -> Result<WIPOffset<fb::Charge<'static>>, Fault> {
    let operations = write_list!(
        b,
        "charge.operations",
        operations,
        CHARGES_PER_FRAME_MAX,
        write_charge
    );
    Ok(fb::Charge::create(b, &fb::ChargeArgs { operations }))
}

fn write_charge(
    b: &mut Builder,
    (operation, line): &(OperationId, Line),
) -> Result<WIPOffset<fb::ChargedOperation<'static>>, Fault> {
    check_sorted(&line.resources)?;
    check::size("charge.resources", line.resources.len(), RESOURCES_MAX)?;
    let tenant = check::name("charge.tenant", &line.tenant, NAME_BYTES_MAX)?;
    let kind = check::kind("charge.kind", &line.kind)?;
    let work = check_work("charge.work", &line.work)?;
    let args = fb::ChargedOperationArgs {
        operation: Some(&operation_id(*operation)),
        class: write_class(line.class),
        tenant: string(b, tenant),
        kind: Some(b.create_string(kind)),
        work: string(b, work),
        resources: write_strings(b, &line.resources, |text| {
            check::name("charge.resources", text, NAME_BYTES_MAX)
        })?,
    };
    Ok(fb::ChargedOperation::create(b, &args))
}

pub(super) fn read_charges(charge: fb::Charge<'_>) -> Result<Vec<(OperationId, Line)>, Fault> {
    read_list!(
        "charge.operations",
        charge.operations(),
        CHARGES_PER_FRAME_MAX,
        read_charge
    )
}

fn read_charge(charge: fb::ChargedOperation<'_>) -> Result<(OperationId, Line), Fault> {
    let resources = read_strings(
        charge.resources(),
        "charge.resources",
        RESOURCES_MAX,
        |field, text| check::name(field, text, NAME_BYTES_MAX),
    )?;
    check_sorted(&resources)?;
    let tenant = charge.tenant().unwrap_or_default();
    let line = Line {
        class: read_class(charge.class()).ok_or(Fault::unknown("charge.class"))?,
        tenant: check::name("charge.tenant", tenant, NAME_BYTES_MAX)?.to_owned(),
        kind: check::kind("charge.kind", charge.kind())?.to_owned(),
        work: check_work("charge.work", charge.work().unwrap_or_default())?.to_owned(),
        resources,
    };
    Ok((read_operation_id(charge.operation()), line))
}

fn write_key(b: &mut Builder, key: &LimitKey) -> Result<WIPOffset<fb::Limit<'static>>, Fault> {
    let limit = Limit {
        key: key.clone(),
        min: 0,
        max: 0,
        pin: None,
    };
    write_limit(b, &limit)
}

fn read_key(limit: fb::Limit<'_>) -> Result<LimitKey, Fault> {
    Ok(read_limit(limit)?.key)
}

pub(super) fn write_lend(
    b: &mut Builder,
    shard: ShardId,
    leases: &[(LimitKey, Lease)],
) -> Result<WIPOffset<fb::Lend<'static>>, Fault> {
    let leases = write_list!(b, "lend.leases", leases, CREDITS_PER_FRAME_MAX, write_lease);
    let shard = shard.0;
    Ok(fb::Lend::create(b, &fb::LendArgs { shard, leases }))
}

fn write_lease(
    b: &mut Builder,
    (key, lease): &(LimitKey, Lease),
) -> Result<WIPOffset<fb::Lease<'static>>, Fault> {
    let args = fb::LeaseArgs {
        limit: Some(write_key(b, key)?),
        incarnation: lease.incarnation.0,
        term: lease.term.0,
        number: lease.number,
        answers: lease.answers,
        credit: lease.credit,
        only_prolongs: lease.only_prolongs,
    };
    Ok(fb::Lease::create(b, &args))
}

pub(super) fn read_lend(lend: fb::Lend<'_>) -> Result<(ShardId, Vec<(LimitKey, Lease)>), Fault> {
    let leases = read_list!(
        "lend.leases",
        lend.leases(),
        CREDITS_PER_FRAME_MAX,
        read_lease
    );
    Ok((ShardId(lend.shard()), leases?))
}

fn read_lease(lease: fb::Lease<'_>) -> Result<(LimitKey, Lease), Fault> {
    let key = read_key(lease.limit())?;
    let lease = Lease {
        incarnation: Incarnation(lease.incarnation()),
        term: Term(lease.term()),
        number: lease.number(),
        answers: lease.answers(),
        credit: lease.credit(),
        only_prolongs: lease.only_prolongs(),
    };
    Ok((key, lease))
}

pub(super) fn write_asked(
    b: &mut Builder,
    keys: &[LimitKey],
) -> Result<WIPOffset<fb::AskUse<'static>>, Fault> {
    let limits = write_list!(b, "ask_use.limits", keys, CREDITS_PER_FRAME_MAX, write_key);
    Ok(fb::AskUse::create(b, &fb::AskUseArgs { limits }))
}

pub(super) fn read_asked(asked: fb::AskUse<'_>) -> Result<Vec<LimitKey>, Fault> {
    read_list!(
        "ask_use.limits",
        asked.limits(),
        CREDITS_PER_FRAME_MAX,
        read_key
    )
}

pub(super) fn write_reported(
    b: &mut Builder,
    shard: ShardId,
    shards: u16,
    reports: &[(LimitKey, Report)],
) -> Result<WIPOffset<fb::Reported<'static>>, Fault> {
    let reports = write_list!(
        b,
        "reported.reports",
        reports,
        CREDITS_PER_FRAME_MAX,
        write_report
    );
    let args = fb::ReportedArgs {
        shard: shard.0,
        shards,
        reports,
    };
    Ok(fb::Reported::create(b, &args))
}

fn write_report(
    b: &mut Builder,
    (key, report): &(LimitKey, Report),
) -> Result<WIPOffset<fb::UseReport<'static>>, Fault> {
    let args = fb::UseReportArgs {
        limit: Some(write_key(b, key)?),
        incarnation: report.incarnation.0,
        number: report.number,
        term: report.term.0,
        lease: report.lease,
        holds: report.holds,
        in_use: report.in_use,
        wants: report.wants,
    };
    Ok(fb::UseReport::create(b, &args))
}

/// Shard, number of shards, and what it reports.
type Reported = (ShardId, u16, Vec<(LimitKey, Report)>);

pub(super) fn read_reported(reported: fb::Reported<'_>) -> Result<Reported, Fault> {
    let reports = read_list!(
        "reported.reports",
        reported.reports(),
        CREDITS_PER_FRAME_MAX,
        read_report
    );
    Ok((ShardId(reported.shard()), reported.shards(), reports?))
}

fn read_report(report: fb::UseReport<'_>) -> Result<(LimitKey, Report), Fault> {
    let key = read_key(report.limit())?;
    let report = Report {
        incarnation: Incarnation(report.incarnation()),
        number: report.number(),
        term: Term(report.term()),
        lease: report.lease(),
        holds: report.holds(),
        in_use: report.in_use(),
        wants: report.wants(),
    };
    Ok((key, report))
}
