//! Which limit a ready process waits for, by its gateway's word.
//!
//! ```text
//!   its line is parked ─▶ the limit that has no room: a sort of work, a resource, tenant, group, global
//!   no free place      ─▶ an operator's limit of the agent, or what the agent can take
//!   a free place       ─▶ it is about to start
//! ```

use std::sync::Arc;

use protocol::flow::{AgentFlow, LimitKey, Line, Parked};
use protocol::ids::GroupId;

use super::process_waits::{at_capacity, in_line, on, rounded_up};
use super::{limit_eta, limit_view};
use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::processes::WaitingOn;
use crate::api::problem::ApiResult;
use crate::dispatch::Queued;
use crate::limits::LimitScope;
use crate::store::limits::LimitRow;

/// What a process of this tenant waits for.
pub(super) async fn waits(
    api: &Api,
    queued: &Queued,
    flow: &AgentFlow,
    tenant: &str,
) -> ApiResult<WaitingOn> {
    at(api, queued, flow, parked(queued, flow, tenant)).await
}

/// What a process that is not made yet would wait for, behind all that wait: in a line that waits already, for
/// what that waits for; else for the first limit of `line`, at an agent of `group`, that has no room.
pub(super) async fn would_wait(
    api: &Api,
    queued: &Queued,
    flow: &AgentFlow,
    (line, group): (&Line, GroupId),
) -> ApiResult<WaitingOn> {
    let alike = flow.lines.iter().filter(|told| told.line == *line);
    let Some(waiting) = alike.map(|told| told.waiting).max() else {
        let full = full(api, flow, line, group).await;
        let first = Queued {
            position: 1,
            ..queued.clone()
        };
        return match &full {
            Some(_) => at(api, &first, flow, full.as_ref()).await,
            None => at(api, queued, flow, None).await,
        };
    };
    let last = Queued {
        line: Some(Arc::new(line.clone())),
        position: waiting.saturating_add(1),
        ..queued.clone()
    };
    match parked(&last, flow, &line.tenant) {
        None => at(api, queued, flow, None).await,
        parked => at(api, &last, flow, parked).await,
    }
}

/// The first limit of a line that has no room. Of a sort of work, whose limit each agent has for itself, that
/// is known where another line of the agent waits for it, and where nothing of it is let through.
async fn full(api: &Api, flow: &AgentFlow, line: &Line, group: GroupId) -> Option<Parked> {
    let work = Some(line.work.clone()).filter(|work| !work.is_empty());
    let keys = work
        .map(LimitKey::Work)
        .into_iter()
        .chain(line.resources.iter().cloned().map(LimitKey::Resource))
        .chain([
            LimitKey::Tenant(line.tenant.clone()),
            LimitKey::Group(group),
            LimitKey::Global,
        ]);
    for key in keys {
        let told = flow.lines.iter().filter_map(|told| told.parked.as_ref());
        if let Some(parked) = told.clone().find(|parked| parked.key == key) {
            return Some(parked.clone());
        }
        // What the gateway does not say is not held against the process.
        let Ok(used) = api.engine.use_of(key.clone()).await else {
            continue;
        };
        let of_agent = matches!(key, LimitKey::Work(_));
        let in_use = if of_agent { 0 } else { used.in_use };
        if let Some(limit) = used.limit.filter(|limit| in_use >= *limit) {
            return Some(Parked {
                key,
                limit,
                in_use,
                before: if of_agent { 0 } else { used.waiting },
            });
        }
    }
    None
}

/// What it waits for: the limit that its line is parked on, or a place at its agent.
async fn at(
    api: &Api,
    queued: &Queued,
    flow: &AgentFlow,
    parked: Option<&Parked>,
) -> ApiResult<WaitingOn> {
    let key = match parked {
        Some(parked) => parked.key.clone(),
        None => LimitKey::Agent(queued.agent),
    };
    let row = api.store.limit(&key).await?;
    let name = limit_view::name_of(api, &key).await?;
    let Some(parked) = parked else {
        return Ok(at_agent(queued, flow, &name, row.as_ref()));
    };
    let (parked, lines) = everywhere(api, flow, parked).await;
    Ok(WaitingOn {
        eta_s: limit_eta::eta(queued, flow, &parked, lines).map(rounded_up),
        ..at_shared(queued, &parked, &name, row.as_ref())
    })
}

/// What is in use of a limit, and how many lines wait for it where that is known. What is told with an agent is
/// of its own home only.
async fn everywhere(api: &Api, flow: &AgentFlow, parked: &Parked) -> (Parked, Option<u32>) {
    let mut parked = parked.clone();
    // Each agent has its own.
    if let LimitKey::Work(_) = parked.key {
        let told = flow.lines.iter().filter_map(|line| line.parked.as_ref());
        let lines = told.filter(|other| other.key == parked.key).count();
        return (parked, u32::try_from(lines).ok());
    }
    match api.engine.use_of(parked.key.clone()).await {
        Ok(used) if used.limit.is_some() => {
            parked.in_use = used.in_use;
            (parked, Some(used.waiting))
        }
        _ => (parked, None),
    }
}

/// What its line is parked on. One that is further back than memory waits in one of its tenant's lines: where
/// these do not differ, that is what it waits for.
fn parked<'a>(queued: &Queued, flow: &'a AgentFlow, tenant: &str) -> Option<&'a Parked> {
    let alike = flow.lines.iter().filter(|told| match &queued.line {
        Some(line) => told.line == **line,
        None => told.line.tenant == tenant,
    });
    let mut parked = alike.map(|told| told.parked.as_ref());
    let first = parked.next()??;
    let same = |other: Option<&Parked>| other.is_none_or(|other| other.key == first.key);
    let known = queued.line.is_some() || parked.all(same);
    known.then_some(first)
}

/// A limit that several agents or lines share has no room.
fn at_shared(queued: &Queued, parked: &Parked, name: &str, row: Option<&LimitRow>) -> WaitingOn {
    let scope = LimitScope::of(&parked.key);
    let mut detail = match parked.limit {
        0 => format!("the limit of {scope} {name} is 0: nothing of it is started"),
        limit => format!(
            "{} of the {limit} permits of {scope} {name} are in use",
            parked.in_use
        ),
    };
    detail.push_str(&set_by(row));
    match parked.before {
        // Limits that span the gateway's parts are lent to each of them, in shares.
        0 if parked.in_use < parked.limit => {
            detail.push_str("; a free one reaches its agent's part of the gateway within seconds");
        }
        0 => {}
        1 => detail.push_str("; one other line of processes is served before"),
        more => detail.push_str(&format!(
            "; {more} other lines of processes are served before"
        )),
    }
    if queued.position > 0 {
        detail.push_str(&format!("; it is number {} in its line", queued.position));
    }
    WaitingOn {
        limit: Some(parked.limit),
        in_use: Some(parked.in_use),
        position: (queued.position > 0).then_some(queued.position),
        advice: Some(format!(
            "wait; or raise it: drover limits get {scope} {name}"
        )),
        ..on("limit", format!("{scope} {name}"), detail)
    }
}

/// The agent has no place for it: by an operator's word, or because it can take no more.
fn at_agent(queued: &Queued, flow: &AgentFlow, name: &str, row: Option<&LimitRow>) -> WaitingOn {
    let in_use = flow.running.saturating_add(flow.granted);
    let free = flow.limit.saturating_sub(in_use);
    let mut waits = at_capacity(queued, flow.limit, in_use);
    if free > 0 && (1..=free).contains(&queued.position) {
        return waits;
    }
    let set = row.map(|row| row.set);
    let binds = |figure: Option<u32>| figure == Some(flow.limit);
    let by_operator =
        set.is_some_and(|set| binds(set.pin) || (set.pin.is_none() && binds(set.max)));
    if by_operator {
        let place = match flow.limit {
            0 => "the agent's limit is 0: nothing of it is started".to_owned(),
            limit => in_line(limit, in_use, queued.position),
        };
        return WaitingOn {
            advice: Some(format!("wait; or raise it: drover limits get agent {name}")),
            eta_s: queued.eta(free).filter(|_| flow.limit > 0).map(rounded_up),
            scope: "limit".to_owned(),
            key: format!("agent {name}"),
            detail: format!("{place}{}", set_by(row)),
            ..waits
        };
    }
    if flow.limit < flow.capacity {
        let why = match &flow.decision {
            None => "how much it can take is still being learnt",
            Some(last) => limit_view::why(last.why).1,
        };
        waits.detail.push_str(&format!(
            "; the agent would take {} by its own word, and is given {} ({why})",
            flow.capacity, flow.limit
        ));
        waits.advice = Some(format!(
            "wait; what the agent can take is shown by: drover limits get agent {name}"
        ));
    }
    waits
}

fn set_by(row: Option<&LimitRow>) -> String {
    row.map_or_else(String::new, |row| {
        let at = Timestamp(row.at.0);
        format!("; {} set that at {at}: {}", row.by, row.reason)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::flow::{Decision, LineFlow, Why};
    use protocol::ids::{AgentId, ServerId};

    use super::*;
    use crate::clock::UnixMs;
    use crate::limits::Setting;

    const AGENT: AgentId = AgentId(uuid::Uuid::from_u128(1));

    fn queued(position: u32) -> Queued {
        Queued {
            agent: AGENT,
            capacity: 8,
            in_use: 6,
            line: None,
            position,
            depth: position.max(1),
            each: Some(Duration::from_secs(2)),
            tenant_each: None,
        }
    }

    fn flow(limit: u32, in_use: u32) -> AgentFlow {
        AgentFlow {
            capacity: 8,
            limit,
            running: in_use,
            granted: 0,
            lines: Vec::new(),
            decision: None,
        }
    }

    fn row(set: Setting) -> LimitRow {
        LimitRow {
            key: LimitKey::Agent(AGENT),
            set,
            by: "ann".to_owned(),
            reason: "slow disks".to_owned(),
            at: UnixMs(0),
        }
    }

    #[test]
    fn a_full_agent_says_whether_it_or_an_operator_is_the_reason() {
        let full = at_agent(&queued(3), &flow(8, 8), "h-17", None);
        assert_eq!(
            (full.scope.as_str(), full.limit, full.in_use),
            ("capacity", Some(8), Some(8))
        );
        assert_eq!((full.position, full.eta_s), (Some(3), Some(6)));
        let learnt = AgentFlow {
            decision: Some(Decision {
                age: Duration::ZERO,
                why: Why::Busy,
                from: 8000,
                to: 6000,
                slowdown: 0,
                baseline: 0,
                rate: 0,
            }),
            ..flow(6, 6)
        };
        let learnt = at_agent(&queued(3), &learnt, "h-17", None);
        assert_eq!((learnt.scope.as_str(), learnt.limit), ("capacity", Some(6)));
        assert!(
            learnt
                .detail
                .contains("take 8 by its own word, and is given 6 (the agent refused")
        );
        let max = |max| Setting {
            max: Some(max),
            ..Setting::default()
        };
        let limited = at_agent(&queued(3), &flow(4, 4), "h-17", Some(&row(max(4))));
        assert_eq!(
            (limited.scope.as_str(), limited.key.as_str()),
            ("limit", "agent h-17")
        );
        assert!(
            limited.detail.contains("ann set that at 1970")
                && limited.detail.contains("slow disks")
        );
        // A limit that does not bind is not the reason, and a pin goes before it.
        let wide = at_agent(&queued(3), &flow(4, 4), "h-17", Some(&row(max(6))));
        assert_eq!(wide.scope, "capacity");
        let pinned = Setting {
            pin: Some(2),
            ..max(4)
        };
        let pinned = at_agent(&queued(3), &flow(2, 2), "h-17", Some(&row(pinned)));
        assert_eq!((pinned.scope.as_str(), pinned.limit), ("limit", Some(2)));
        let stopped = at_agent(&queued(1), &flow(0, 0), "h-17", Some(&row(max(0))));
        assert!(stopped.detail.contains("is 0: nothing of it is started"));
        assert_eq!(stopped.eta_s, None, "no pace ends that");
        let free = at_agent(&queued(1), &flow(4, 2), "h-17", Some(&row(max(4))));
        assert!(free.detail.contains("about to start") && free.eta_s == Some(0));
    }

    #[test]
    fn a_line_that_waits_though_a_lent_limit_has_room_says_that_it_is_on_its_way() {
        let lent = Parked {
            key: LimitKey::Tenant("acme".to_owned()),
            limit: 64,
            in_use: 0,
            before: 0,
        };
        let waits = at_shared(&queued(1), &lent, "acme", None);
        for words in ["0 of the 64 permits", "a free one reaches its agent"] {
            assert!(waits.detail.contains(words), "{}", waits.detail);
        }
        let full = Parked { in_use: 64, ..lent };
        let waits = at_shared(&queued(1), &full, "acme", None);
        assert!(!waits.detail.contains("a free one"), "{}", waits.detail);
    }

    #[test]
    fn a_parked_line_names_its_limit_and_another_line_is_not_its_own() {
        let of = |work: &str| Line {
            tenant: "acme".to_owned(),
            kind: "exec".to_owned(),
            work: work.to_owned(),
            ..Line::default()
        };
        let told = |work: &str, key: Option<LimitKey>| LineFlow {
            server: ServerId(1),
            number: 0,
            line: of(work),
            waiting: 9,
            parked: key.map(|key| Parked {
                key,
                limit: 64,
                in_use: 64,
                before: 3,
            }),
        };
        let tenant = || Some(LimitKey::Tenant("acme".to_owned()));
        let flow = |lines: Vec<LineFlow>| AgentFlow {
            lines,
            ..flow(8, 2)
        };
        let build = Queued {
            line: Some(Arc::new(of("build"))),
            ..queued(3)
        };
        let acme = "acme";
        let mixed = flow(vec![
            told("", None),
            told("build", tenant()),
            told("migrate", Some(LimitKey::Global)),
        ]);
        let on = parked(&build, &mixed, acme).unwrap();
        let waits = at_shared(&build, on, "acme", None);
        assert_eq!(
            (waits.scope.as_str(), waits.key.as_str()),
            ("limit", "tenant acme")
        );
        assert_eq!(
            (waits.limit, waits.in_use, waits.position),
            (Some(64), Some(64), Some(3))
        );
        for words in [
            "64 of the 64 permits of tenant acme",
            "3 other lines",
            "number 3 in its line",
        ] {
            assert!(waits.detail.contains(words), "{}", waits.detail);
        }
        assert!(
            waits
                .advice
                .unwrap()
                .contains("drover limits get tenant acme")
        );
        // Further back than memory: known only where all of its tenant's wait for the same.
        let alike = flow(vec![told("build", tenant()), told("migrate", tenant())]);
        assert_eq!(
            parked(&queued(0), &alike, acme).unwrap().key,
            tenant().unwrap()
        );
        assert_eq!(parked(&queued(0), &mixed, acme), None);
        let differ = flow(vec![
            told("build", tenant()),
            told("migrate", Some(LimitKey::Global)),
        ]);
        assert_eq!(parked(&queued(0), &differ, acme), None);
        assert_eq!(parked(&queued(0), &alike, "other"), None);
    }
}
