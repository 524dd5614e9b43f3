//! Limits as people see them: what is set, and what the gateway says of them.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use protocol::flow::{AgentFlow, Class, Decision, LimitKey, LimitUse, Line, Parked, Why};

use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::limits::{
    Limit, LimitDecision, LimitScope, LineClass, LiveLimit, ParkedOn, WaitingLine,
};
use crate::api::problem::ApiResult;
use crate::dispatch::FlowError;
use crate::limits::{self, Setting, key_text};
use crate::store::limits::LimitRow;

/// Limits of one page, all asked about at once.
pub(super) async fn describe_all(api: &Api, rows: Vec<LimitRow>) -> ApiResult<Vec<Limit>> {
    let limits = rows.into_iter().map(|row| async move {
        let key = row.key.clone();
        describe(api, &key, Some(row)).await
    });
    join_all(limits).await.into_iter().collect()
}

/// A limit, with what is set of it.
pub(super) async fn describe(api: &Api, key: &LimitKey, row: Option<LimitRow>) -> ApiResult<Limit> {
    let set = row.as_ref().map_or(Setting::default(), |row| row.set);
    let name = name_of(api, key).await?;
    let live = live(api, key, &set).await;
    let capacity = live.as_ref().ok().and_then(|live| live.capacity);
    let not_live = live.as_ref().err().cloned();
    let (by, reason, at) = match row {
        Some(row) => (Some(row.by), Some(row.reason), Some(Timestamp(row.at.0))),
        None => (None, None, None),
    };
    Ok(Limit {
        scope: scope_of(key),
        key: key_text(key),
        name,
        min: set.min,
        max: set.max,
        pin: set.pin,
        weight: set.weight,
        by,
        reason,
        at,
        warnings: warnings(api, key, &set, capacity),
        live: live.ok(),
        not_live,
    })
}

/// What may be meant, and has another effect than it seems.
fn warnings(api: &Api, key: &LimitKey, set: &Setting, capacity: Option<u32>) -> Vec<String> {
    let mut warnings = set.warnings(capacity);
    if let LimitKey::Work(work) = key
        && !api.kinds.iter().any(|kind| kind.has_work(work))
    {
        warnings.push(format!(
            "no declared kind has a step of the class `{work}`: it counts nothing (drover kinds show KIND)"
        ));
    }
    warnings
}

/// The hostname, the group's name, or the key itself.
pub(super) async fn name_of(api: &Api, key: &LimitKey) -> ApiResult<String> {
    let name = match key {
        LimitKey::Agent(agent) => {
            let agent = api.store.agent(*agent).await?;
            agent.map(|agent| agent.hostname)
        }
        LimitKey::Group(group) => api.store.group(*group).await?.map(|group| group.name),
        _ => None,
    };
    let name = name.filter(|name| !name.is_empty());
    Ok(name.unwrap_or_else(|| key_text(key)))
}

async fn live(api: &Api, key: &LimitKey, set: &Setting) -> Result<LiveLimit, String> {
    let words = |error: FlowError| error.to_string();
    if let LimitKey::Agent(agent) = key {
        return api
            .engine
            .flow_of(*agent)
            .await
            .map(of_agent)
            .map_err(words);
    }
    if set.max.is_none() {
        return Err("no `max` is set, so nothing is counted".to_owned());
    }
    let used = api.engine.use_of(key.clone()).await.map_err(words)?;
    of_shared(used).ok_or_else(|| "the gateway does not count it".to_owned())
}

fn of_shared(used: LimitUse) -> Option<LiveLimit> {
    Some(LiveLimit {
        limit: used.limit?,
        in_use: used.in_use,
        capacity: None,
        running: None,
        granted: None,
        waiting: None,
        parked_lines: Some(used.waiting),
        decision: None,
        lines: Vec::new(),
    })
}

/// What an agent is given now.
pub(super) fn of_agent(flow: AgentFlow) -> LiveLimit {
    // Several servers state the same processes: what counts is the most that any of them states.
    let mut lines: BTreeMap<Line, WaitingLine> = BTreeMap::new();
    for told in flow.lines {
        let line = waiting(&told.line, told.waiting, told.parked.as_ref());
        let known = lines.entry(told.line).or_insert_with(|| line.clone());
        known.waiting = known.waiting.max(line.waiting);
        known.parked = known.parked.take().or(line.parked);
    }
    let lines: Vec<WaitingLine> = lines.into_values().collect();
    LiveLimit {
        limit: flow.limit,
        in_use: flow.running.saturating_add(flow.granted),
        capacity: Some(flow.capacity),
        running: Some(flow.running),
        granted: Some(flow.granted),
        waiting: Some(lines.iter().map(|line| line.waiting).sum()),
        parked_lines: None,
        decision: flow.decision.as_ref().map(decision),
        lines,
    }
}

fn waiting(line: &Line, waiting: u32, parked: Option<&Parked>) -> WaitingLine {
    WaitingLine {
        class: match line.class {
            Class::System => LineClass::System,
            Class::Interactive => LineClass::Interactive,
            Class::Normal => LineClass::Normal,
            Class::Background => LineClass::Background,
        },
        tenant: line.tenant.clone(),
        kind: line.kind.clone(),
        work: line.work.clone(),
        resources: line.resources.clone(),
        waiting,
        parked: parked.map(|parked| ParkedOn {
            scope: scope_of(&parked.key),
            key: key_text(&parked.key),
            limit: parked.limit,
            in_use: parked.in_use,
            before: parked.before,
        }),
    }
}

fn decision(last: &Decision) -> LimitDecision {
    let figure = |thousandths: u32| f64::from(thousandths) / 1000.0;
    LimitDecision {
        why: why(last.why).0.to_owned(),
        text: why(last.why).1.to_owned(),
        from: figure(last.from),
        to: figure(last.to),
        age_ms: u64::try_from(last.age.as_millis()).unwrap_or(u64::MAX),
        slowdown: figure(last.slowdown),
        baseline: figure(last.baseline),
        rate: figure(last.rate),
    }
}

/// A reason in one word and in words.
pub(super) fn why(why: Why) -> (&'static str, &'static str) {
    match why {
        Why::Doubled => ("doubled", "new here: doubled, as no delay was seen"),
        Why::Found => ("found", "new here: the first delay was seen"),
        Why::NoDemand => (
            "no_demand",
            "it was not used up, so nothing is known of what lies there",
        ),
        Why::Calm => ("calm", "no delay was seen at it"),
        Why::Followed => ("followed", "moved towards the capacity that was measured"),
        Why::Jumped => ("jumped", "the capacity is far from what it was"),
        Why::NotOurs => (
            "not_ours",
            "operations take longer for a reason of their own",
        ),
        Why::Busy => ("busy", "the agent refused work"),
        Why::TimedOut => ("timed_out", "work timed out"),
    }
}

pub(super) fn scope_of(key: &LimitKey) -> LimitScope {
    match limits::LimitScope::of(key) {
        limits::LimitScope::Agent => LimitScope::Agent,
        limits::LimitScope::Work => LimitScope::Work,
        limits::LimitScope::Resource => LimitScope::Resource,
        limits::LimitScope::Tenant => LimitScope::Tenant,
        limits::LimitScope::Group => LimitScope::Group,
        limits::LimitScope::Global => LimitScope::Global,
    }
}

#[cfg(test)]
mod tests {
    use protocol::flow::LineFlow;
    use protocol::ids::ServerId;

    use super::*;

    #[test]
    fn what_several_servers_state_of_one_line_is_not_added_up() {
        let told = |server, number, kind: &str, waiting, parked: Option<Parked>| LineFlow {
            server: ServerId(server),
            number,
            line: Line {
                kind: kind.to_owned(),
                ..Line::default()
            },
            waiting,
            parked,
        };
        let parked = Parked {
            key: LimitKey::Global,
            limit: 4,
            in_use: 4,
            before: 1,
        };
        let live = of_agent(AgentFlow {
            capacity: 8,
            limit: 6,
            running: 4,
            granted: 1,
            lines: vec![
                told(1, 0, "exec", 20, None),
                told(2, 7, "exec", 30, Some(parked)),
                told(2, 8, "probe", 2, None),
            ],
            decision: Some(Decision {
                age: std::time::Duration::from_millis(3100),
                why: Why::Followed,
                from: 5500,
                to: 6200,
                slowdown: 1070,
                baseline: 1000,
                rate: 3100,
            }),
        });
        assert_eq!((live.in_use, live.waiting), (5, Some(32)));
        let lines: Vec<_> = live
            .lines
            .iter()
            .map(|line| (line.kind.as_str(), line.waiting, line.parked.is_some()))
            .collect();
        assert_eq!(lines, [("exec", 30, true), ("probe", 2, false)]);
        let decision = live.decision.unwrap();
        assert_eq!((decision.why.as_str(), decision.age_ms), ("followed", 3100));
        assert!((decision.to - 6.2).abs() < 1e-9 && (decision.slowdown - 1.07).abs() < 1e-9);
    }
}
