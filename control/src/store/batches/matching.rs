//! Which processes a batch comes to: one step of a walk over a range of ids.

use protocol::ids::{AgentId, GroupId, ProcessId};
use serde_json::json;

use super::{Found, Range};
use crate::clock::UnixMs;
use crate::process::State;
use crate::store::queries::IS_PAUSED;
use crate::store::sql;
use crate::store::{Connection, StoreError, from_sql, id_bytes};

/// Rows of processes that one step reads at most.
const SCAN_MAX: u32 = 20_000;

/// Which processes of a range; everything that is given must hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Matching {
    /// Only in one of these states.
    pub states: Vec<State>,
    /// Only for this agent.
    pub agent: Option<AgentId>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only for agents of this group.
    pub group: Option<GroupId>,
    /// Only those whose outcome has this status.
    pub outcome: Option<String>,
    /// Only those at which people must look, or only the others.
    pub needs_attention: Option<bool>,
    /// Of those that are ready: only the paused ones, or only the others.
    pub paused: Option<bool>,
    /// Only those that have a pause of their own, or only the others.
    pub paused_itself: Option<bool>,
    /// Only those that ended at or after this.
    pub finished_after: Option<UnixMs>,
    /// Only those that ended before this.
    pub finished_before: Option<UnixMs>,
    /// Only those that are not over, or ended at this time or before.
    pub over_by: Option<UnixMs>,
    /// Only for agents that may connect.
    pub admitted: bool,
}

/// Reads at most [`SCAN_MAX`] rows: first where that leads to, then what matches until there.
pub(super) async fn find(
    db: &mut Connection,
    range: Range,
    matching: &Matching,
    limit: u32,
) -> Result<Found, StoreError> {
    let Some((end, scanned)) = horizon(db, range, matching).await? else {
        return Ok(Found {
            processes: Vec::new(),
            next: None,
        });
    };
    let states: Vec<&str> = matching.states.iter().map(|state| state.as_str()).collect();
    let rows: Vec<Vec<u8>> = sql::query_scalar(sql(matching))
        .bind(range.after.to_bytes().to_vec())
        .bind(&end)
        .bind(limit)
        .bind(matching.agent.map(|agent| agent.to_bytes().to_vec()))
        .bind(json!(states).to_string())
        .bind(&matching.kind)
        .bind(matching.group.map(|group| group.to_bytes().to_vec()))
        .bind(&matching.tenant)
        .bind(&matching.outcome)
        .bind(matching.needs_attention)
        .bind(matching.finished_after.map(UnixMs::to_sql))
        .bind(matching.finished_before.map(UnixMs::to_sql))
        .bind(matching.over_by.map(UnixMs::to_sql))
        .fetch_all(&mut *db)
        .await?;
    let processes: Vec<ProcessId> = rows
        .iter()
        .map(|id| Ok(ProcessId::from_bytes(id_bytes(id)?)))
        .collect::<Result<_, StoreError>>()?;
    let full = processes.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if full {
        processes.last().copied()
    } else if scanned >= u64::from(SCAN_MAX) {
        Some(ProcessId::from_bytes(id_bytes(&end)?))
    } else {
        None
    };
    Ok(Found { processes, next })
}

/// How far [`SCAN_MAX`] rows lead, and how many there are up to there; `None`: there are none.
async fn horizon(
    db: &mut Connection,
    range: Range,
    matching: &Matching,
) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
    let agent = matching.agent.map(|agent| agent.to_bytes().to_vec());
    let of_agent = agent.as_ref().map_or("", |_| "AND target_id = $4");
    // With an agent the walk goes over its processes only (index process_by_target).
    let last = sql::query(format!(
        "SELECT s.id, count(*) OVER () FROM
                (SELECT id FROM process WHERE id > $1 AND id <= $2 {of_agent}
                 ORDER BY id LIMIT $3) AS s
         ORDER BY s.id DESC LIMIT 1"
    ))
    .bind(range.after.to_bytes().to_vec())
    .bind(range.last.to_bytes().to_vec())
    .bind(SCAN_MAX)
    .bind(&agent)
    .fetch_optional(&mut *db)
    .await?;
    last.map(|last| Ok((last.try_get(0)?, from_sql(last.try_get(1)?))))
        .transpose()
}

/// A text with the conditions that are given, and no others: what is not asked costs nothing.
fn sql(matching: &Matching) -> String {
    const ITSELF: &str = "EXISTS (SELECT 1 FROM pause AS q WHERE q.scope = 'process' AND q.\"key\" = lower(hex(p.id)))";
    let mut sql = "SELECT p.id FROM process AS p WHERE p.id > $1 AND p.id <= $2
         AND p.state IN EACH($5: state text)"
        .to_owned();
    for (given, clause) in [
        (matching.agent.is_some(), "p.target_id = $4"),
        (matching.kind.is_some(), "p.kind = $6"),
        (
            matching.group.is_some(),
            "(SELECT a.group_id FROM agent AS a WHERE a.id = p.target_id) = $7",
        ),
        (matching.tenant.is_some(), "p.tenant = $8"),
        (
            matching.outcome.is_some(),
            "(SELECT json_text(d.outcome, 'status') FROM process_payload AS d WHERE d.process_id = p.id) = $9",
        ),
        (
            matching.needs_attention.is_some(),
            "p.needs_attention = $10",
        ),
        (matching.finished_after.is_some(), "p.finished_at >= $11"),
        (matching.finished_before.is_some(), "p.finished_at < $12"),
        (
            matching.over_by.is_some(),
            "(p.finished_at IS NULL OR p.finished_at <= $13)",
        ),
        (
            matching.admitted,
            "EXISTS (SELECT 1 FROM agent AS a WHERE a.id = p.target_id AND a.revoked_at IS NULL)",
        ),
        (
            matching.paused == Some(true),
            &format!("p.state = 'ready' AND {IS_PAUSED}"),
        ),
        (
            matching.paused == Some(false),
            &format!("NOT (p.state = 'ready' AND {IS_PAUSED})"),
        ),
        (matching.paused_itself == Some(true), ITSELF),
        (
            matching.paused_itself == Some(false),
            &format!("NOT {ITSELF}"),
        ),
    ] {
        if given {
            sql.push_str(" AND ");
            sql.push_str(clause);
        }
    }
    sql.push_str(" ORDER BY p.id LIMIT $3");
    sql
}
