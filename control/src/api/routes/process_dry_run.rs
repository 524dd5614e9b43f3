//! What a process would be and meet, if it were made: nothing is written.

use std::collections::BTreeSet;

use protocol::ids::ProcessId;

use super::{kinds, process_limits, process_steps, process_waits};
use crate::api::Api;
use crate::api::model::Timestamp;
use crate::api::model::processes::{DryRun, PermitNeeded, WaitingOn};
use crate::api::problem::{ApiError, ApiResult, Kind};
use crate::clock::{self, UnixMs};
use crate::dispatch::{self, Queued};
use crate::limits::GLOBAL_KEY;
use crate::process::pause::{PauseKey, PauseScope};
use crate::process::{Plan, PlanOperation, PlanStep};
use crate::store::agents::Agent;
use crate::store::processes::NewProcess;

/// Looks at everything that a new process would meet.
pub(super) async fn dry_run(api: &Api, process: NewProcess) -> ApiResult<DryRun> {
    let now = clock::now();
    let agent = api.store.agent(process.agent).await?;
    let agent = agent.filter(|agent| agent.revoked_at.is_none());
    let agent = agent.ok_or_else(|| {
        ApiError::in_field(
            Kind::Unprocessable,
            "agent",
            "there is no such agent, or it is revoked; GET /v1/agents lists those that there are",
        )
    })?;
    let plan = process
        .plan
        .clone()
        .unwrap_or_else(|| single(&process, now));
    let superseded = superseded(api, &process).await?;
    let resource = resource(api, &process, &superseded).await?;
    let paused = paused(api, &process, &agent).await?;
    let queue = queue(api, &process, &agent).await?;
    let later = process.run_at.map(|at| WaitingOn {
        eta_s: Some(process_waits::seconds_until(at)),
        ..process_waits::at_time(Timestamp(at.0).to_string())
    });
    let (state, waiting_on) = match (later.or(resource), paused, queue) {
        (Some(waits), pause, _) if process.run_at.is_some() => {
            let waits = match &pause {
                Some(pause) => process_waits::besides(waits, pause),
                None => waits,
            };
            ("scheduled", Some(waits))
        }
        (Some(waits), Some(pause), _) => ("blocked", Some(process_waits::besides(waits, &pause))),
        (Some(waits), None, _) => ("blocked", Some(waits)),
        (None, Some(waits), _) => ("paused", Some(waits)),
        (None, None, waits) => ("ready", waits),
    };
    let predicted_wait_s = waiting_on.as_ref().and_then(|waits| waits.eta_s);
    Ok(DryRun {
        state: state.to_owned(),
        agent: process.agent.0,
        permits: permits(&process, &plan, &agent),
        steps: process_steps::of_plan(&plan),
        kind: process.kind,
        tenant: process.tenant,
        resource: process.resource,
        deadline_at: Timestamp(process.deadline_at.0),
        max_attempts: process.max_attempts,
        class: kinds::class(process.class),
        waiting_on,
        supersedes: superseded.into_iter().map(|id| id.0).collect(),
        predicted_wait_s,
    })
}

/// A driver's process as a plan of one step.
fn single(process: &NewProcess, now: UnixMs) -> Plan {
    Plan {
        steps: vec![PlanStep {
            name: process.kind.clone(),
            work: PlanOperation {
                operation: process.kind.clone(),
                input: process.input.clone(),
                timeout: now.until(process.deadline_at),
            },
            class: None,
            resources: Vec::new(),
            undo: None,
        }],
    }
}

async fn superseded(api: &Api, process: &NewProcess) -> ApiResult<Vec<ProcessId>> {
    match &process.resource {
        Some(resource) if !process.supersedes.is_empty() => Ok(api
            .store
            .would_supersede(resource, &process.supersedes)
            .await?),
        _ => Ok(Vec::new()),
    }
}

/// Who stands in the way at its resource, those left out that it would make needless.
async fn resource(
    api: &Api,
    process: &NewProcess,
    superseded: &[ProcessId],
) -> ApiResult<Option<WaitingOn>> {
    let Some(resource) = &process.resource else {
        return Ok(None);
    };
    let line = api.store.resource_line(resource, None).await?;
    let gone = |id: &ProcessId| superseded.contains(id);
    let holder_goes = line.holder.as_ref().is_some_and(|(id, _, _)| gone(id));
    let waiting_gone = superseded.len().saturating_sub(usize::from(holder_goes));
    let waiting_gone = u32::try_from(waiting_gone).unwrap_or(u32::MAX);
    let waiting = line.waiting.saturating_sub(waiting_gone);
    let holder = line.holder.filter(|(id, _, _)| !gone(id));
    if holder.is_none() && waiting == 0 {
        return Ok(None);
    }
    Ok(Some(process_waits::at_resource(resource, holder, waiting)))
}

async fn paused(api: &Api, process: &NewProcess, agent: &Agent) -> ApiResult<Option<WaitingOn>> {
    let target = agent.target;
    for key in [
        PauseKey::of_id(PauseScope::Agent, target.agent.0),
        PauseKey::of_id(PauseScope::Group, target.group.0),
        PauseKey::of_name(PauseScope::Tenant, &process.tenant),
        PauseKey::of_name(PauseScope::Kind, &process.kind),
    ] {
        if let Some(pause) = api.store.pause(&key).await? {
            return Ok(Some(process_waits::at_pause(&pause)));
        }
    }
    Ok(None)
}

/// What it would wait for at its agent, under all limits. A process that is not made yet comes last.
async fn queue(api: &Api, process: &NewProcess, agent: &Agent) -> ApiResult<Option<WaitingOn>> {
    let nobody = ProcessId(uuid::Uuid::nil());
    let waits = api.engine.waiting_on(nobody, process.agent).await?;
    let views = api.engine.agents(vec![process.agent]).await?;
    let last = views.first().map_or(1, |view| view.ready.saturating_add(1));
    let queued = match waits {
        Some(dispatch::WaitingOn::Host(queued)) => Queued {
            position: last,
            depth: last,
            ..queued
        },
        waits => return Ok(waits.as_ref().map(process_waits::queue)),
    };
    let Ok(flow) = api.engine.flow_of(process.agent).await else {
        let waits = dispatch::WaitingOn::Host(queued);
        return Ok(Some(process_waits::queue(&waits)));
    };
    let line = process.line();
    let waits =
        process_limits::would_wait(api, &queued, &flow, (&line, agent.target.group)).await?;
    Ok(Some(waits))
}

fn permits(process: &NewProcess, plan: &Plan, agent: &Agent) -> Vec<PermitNeeded> {
    let needed = |scope: &str, key: String| PermitNeeded {
        scope: scope.to_owned(),
        key,
    };
    let mut permits = BTreeSet::from([
        needed("agent", process.agent.to_string()),
        needed("group", agent.group_name.clone()),
        needed("tenant", process.tenant.clone()),
        needed("global", GLOBAL_KEY.to_owned()),
    ]);
    for step in &plan.steps {
        permits.extend(step.class.clone().map(|class| needed("work", class)));
        let resources = step.resources.iter();
        permits.extend(resources.map(|name| needed("resource", name.clone())));
    }
    permits.into_iter().collect()
}
