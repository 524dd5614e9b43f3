//! Dead letters: processes that have failed, by when they did (index `process_dead`).

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::{AgentId, GroupId, ProcessId};

use super::queries::{COLUMNS, PAGE_MAX, ProcessRecord, read};
use super::{Store, StoreError, id_bytes};
use crate::clock::UnixMs;
use crate::store::sql;

/// Dead letters that one count looks at, the newest first.
pub const COUNTED_MAX: u32 = 10_000;
/// Characters of a message that a group shows.
const MESSAGE_MAX: u32 = 256;

/// Which dead letters. Everything that is given must hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DeadFilter {
    /// Only for this agent.
    pub agent: Option<AgentId>,
    /// Only for agents of this group.
    pub group: Option<GroupId>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only those whose outcome has this status.
    pub outcome: Option<String>,
    /// Only those at which people must look, or only the others.
    pub needs_attention: Option<bool>,
    /// Only those that ended at or after this.
    pub finished_after: Option<UnixMs>,
    /// Only those that ended before this.
    pub finished_before: Option<UnixMs>,
}

/// Where a page starts: after this one, in the order of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadCursor {
    /// When it ended.
    pub finished_at: UnixMs,
    /// Which.
    pub id: ProcessId,
}

/// Dead letters that have a kind, the status of their outcome and the need for people in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadGroup {
    /// Their kind.
    pub kind: String,
    /// How they ended, as the API has it.
    pub outcome: Option<String>,
    /// People must look at them.
    pub needs_attention: bool,
    /// How many.
    pub count: u64,
    /// Their agents.
    pub agents: BTreeSet<AgentId>,
    /// When the first of them ended.
    pub oldest_at: UnixMs,
    /// The last of them.
    pub newest: DeadCursor,
    /// What that one said.
    pub message: String,
}

impl Store {
    /// A page of dead letters, the last that failed first: at most `limit` (1 to [`PAGE_MAX`]).
    ///
    /// # Errors
    /// The store failed.
    pub async fn dead_letters(
        &self,
        filter: &DeadFilter,
        cursor: Option<DeadCursor>,
        limit: u32,
    ) -> Result<Vec<ProcessRecord>, StoreError> {
        let rows = self
            .dead_rows(COLUMNS, filter, cursor, limit.clamp(1, PAGE_MAX))
            .await?;
        rows.iter().map(read).collect()
    }

    /// The newest [`COUNTED_MAX`] dead letters by what they have in common, the largest group first;
    /// and whether there are more.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_dead_letters(
        &self,
        filter: &DeadFilter,
    ) -> Result<(Vec<DeadGroup>, bool), StoreError> {
        let columns = format!(
            "p.id, p.kind, p.target_id, p.needs_attention, p.finished_at,
             json_text(d.outcome, 'status') AS status,
             substr(coalesce(json_text(d.outcome, 'message'), ''), 1, {MESSAGE_MAX}) AS message"
        );
        let mut rows = self
            .dead_rows(&columns, filter, None, COUNTED_MAX + 1)
            .await?;
        let limit = usize::try_from(COUNTED_MAX).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let mut groups = BTreeMap::new();
        for row in &rows {
            count(&mut groups, row)?;
        }
        let mut groups: Vec<DeadGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        Ok((groups, more))
    }

    async fn dead_rows(
        &self,
        columns: &str,
        filter: &DeadFilter,
        cursor: Option<DeadCursor>,
        limit: u32,
    ) -> Result<Vec<sql::Row>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(sql(columns, filter, cursor.is_some()))
            .bind(cursor.map(|cursor| cursor.finished_at.to_sql()))
            .bind(cursor.map(|cursor| cursor.id.to_bytes().to_vec()))
            .bind(limit)
            .bind(filter.agent.map(|id| id.to_bytes().to_vec()))
            .bind(filter.group.map(|id| id.to_bytes().to_vec()))
            .bind(&filter.kind)
            .bind(&filter.tenant)
            .bind(&filter.outcome)
            .bind(filter.needs_attention)
            .bind(filter.finished_after.map(UnixMs::to_sql))
            .bind(filter.finished_before.map(UnixMs::to_sql))
            .fetch_all(&mut reader)
            .await?;
        Ok(rows)
    }
}

fn sql(columns: &str, filter: &DeadFilter, goes_on: bool) -> String {
    // The state stands in the text: SQLite takes a partial index only where it can see that it fits.
    let mut sql = format!(
        "SELECT {columns} FROM process AS p INDEXED BY process_dead
         JOIN process_payload AS d ON d.process_id = p.id WHERE p.state = 'failed'"
    );
    for (given, clause) in [
        (goes_on, "(p.finished_at, p.id) < ($1, $2)"),
        (filter.agent.is_some(), "p.target_id = $4"),
        (
            filter.group.is_some(),
            "(SELECT a.group_id FROM agent AS a WHERE a.id = p.target_id) = $5",
        ),
        (filter.kind.is_some(), "p.kind = $6"),
        (filter.tenant.is_some(), "p.tenant = $7"),
        (
            filter.outcome.is_some(),
            "json_text(d.outcome, 'status') = $8",
        ),
        (filter.needs_attention.is_some(), "p.needs_attention = $9"),
        (filter.finished_after.is_some(), "p.finished_at >= $10"),
        (filter.finished_before.is_some(), "p.finished_at < $11"),
    ] {
        if given {
            sql.push_str(" AND ");
            sql.push_str(clause);
        }
    }
    sql.push_str(" ORDER BY p.finished_at DESC, p.id DESC LIMIT $3");
    sql
}

type Alike = (String, Option<String>, bool);

/// Rows come newest first.
fn count(groups: &mut BTreeMap<Alike, DeadGroup>, row: &sql::Row) -> Result<(), StoreError> {
    let kind: String = row.try_get("kind")?;
    let outcome: Option<String> = row.try_get("status")?;
    let needs_attention: bool = row.try_get("needs_attention")?;
    let finished_at: Option<i64> = row.try_get("finished_at")?;
    let at = UnixMs::from_sql(finished_at.unwrap_or(0));
    let id = ProcessId::from_bytes(id_bytes(row.try_get("id")?)?);
    let message: String = row.try_get("message")?;
    let alike = (kind.clone(), outcome.clone(), needs_attention);
    let group = groups.entry(alike).or_insert_with(|| DeadGroup {
        kind,
        outcome,
        needs_attention,
        count: 0,
        agents: BTreeSet::new(),
        oldest_at: at,
        newest: DeadCursor {
            finished_at: at,
            id,
        },
        message,
    });
    group.count += 1;
    group.oldest_at = at;
    let agent = AgentId::from_bytes(id_bytes(row.try_get("target_id")?)?);
    group.agents.insert(agent);
    Ok(())
}
