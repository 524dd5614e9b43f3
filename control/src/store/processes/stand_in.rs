//! Claims of processes that another process server took first: the permit is for the line, so the next one
//! that waits there is claimed instead, in the same transaction.
//!
//! What a process server holds of a queue in memory is a hint. Without this, each of several servers would go
//! through all that the others have taken, and give a permit back for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::flow::Line;
use protocol::ids::{AgentId, ProcessId};

use super::Happened;
use crate::process::Input;
use crate::store::sql;
use crate::store::{Connection, StoreError, id_bytes, lines};

/// The first that wait in a line, but for what is paused.
pub(super) const NEXT_OF: &str = "
    SELECT process_id FROM process_ready
    WHERE target_id = $1 AND line = $2
      AND NOT EXISTS (SELECT 1 FROM pause WHERE scope = 'tenant' AND \"key\" = process_ready.tenant)
      AND NOT EXISTS (SELECT 1 FROM pause WHERE scope = 'kind' AND \"key\" = process_ready.kind)
    ORDER BY ready_at, process_id LIMIT $3";

/// Rows of one line that are looked at: a claim that finds nobody among them gives its permit back.
const LOOK_MAX: usize = 256;

const PAUSED: &str = "SELECT \"key\" FROM pause WHERE scope = 'process'";

/// Looks for others in the place of processes that cannot be claimed in their lines: `claimable` says which
/// can, and at which agent each of the others is. Says which processes are to be read now.
pub(super) async fn find(
    db: &mut Connection,
    inputs: &mut [Happened],
    claimable: impl Fn(ProcessId, &Line) -> Result<(), AgentId>,
) -> Result<BTreeSet<ProcessId>, StoreError> {
    let mut wanted: BTreeMap<(AgentId, Arc<Line>), Vec<usize>> = BTreeMap::new();
    let mut claims = 0;
    for (at, happened) in inputs.iter().enumerate() {
        let (Input::Claim, Some(line)) = (&happened.input, &happened.line) else {
            continue;
        };
        claims += 1;
        if let Err(agent) = claimable(happened.process, line) {
            let of_line = wanted.entry((agent, Arc::clone(line))).or_default();
            of_line.push(at);
        }
    }
    let mut found = BTreeSet::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let named: BTreeSet<ProcessId> = inputs.iter().map(|happened| happened.process).collect();
    let paused: BTreeSet<String> = sql::query_scalar(PAUSED)
        .fetch_all(&mut *db)
        .await?
        .into_iter()
        .collect();
    for ((agent, line), of_line) in wanted {
        // Those that the batch itself claims, and those that are paused, may be among the first.
        let limit = (claims + paused.len()).min(LOOK_MAX);
        let rows = sql::query(NEXT_OF)
            .bind(agent.to_bytes().to_vec())
            .bind(lines::to_sql(&line))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *db)
            .await?;
        let mut of_line = of_line.into_iter();
        for row in &rows {
            let id = ProcessId::from_bytes(id_bytes(row.try_get(0)?)?);
            if named.contains(&id) || paused.contains(&id.0.simple().to_string()) {
                continue;
            }
            let Some(happened) = of_line.next().and_then(|at| inputs.get_mut(at)) else {
                break;
            };
            happened.instead_of = Some(std::mem::replace(&mut happened.process, id));
            found.insert(id);
        }
    }
    Ok(found)
}
