//! Ready processes by agent and line: how a line is written, and what a process server reads of them.
//!
//! Nothing here reads past a row that it does not give back, but for what a pause holds within one line:
//! whatever else waits for an agent, however much, costs nothing.

use std::sync::Arc;

use protocol::flow::{Class, Line};
use protocol::ids::{AgentId, ProcessId};
use serde_json::Value;

use super::{Connection, Store, StoreError, id_bytes};
use crate::clock::UnixMs;
use crate::process::StepNeeds;
use crate::process::pause::Pauses;
use crate::store::sql;

/// Between the parts of a line, and before each of its resources; no name contains it, and it sorts before
/// everything that a name contains.
const SEPARATOR: char = '\u{1f}';

/// The first of one line, in order.
pub(super) const READY_OF: &str = "
    SELECT ready_at, process_id, deadline_at FROM process_ready
    WHERE target_id = $1 AND line = $2
    ORDER BY ready_at, process_id LIMIT $3";

/// As [`READY_OF`]; $4, $5, $6: the tenants, kinds and processes that are paused.
pub(super) const READY_OF_NOT_PAUSED: &str = "
    SELECT ready_at, process_id, deadline_at FROM process_ready
    WHERE target_id = $1 AND line = $2
      AND tenant NOT IN EACH($4: name text)
      AND kind NOT IN EACH($5: name text)
      AND process_id NOT IN EACH($6: id hex)
    ORDER BY ready_at, process_id LIMIT $3";

/// The lines of an agent after $2, at most $3: from each to the next by the key, whatever waits in them.
pub(super) const LINES_OF: &str = "
    WITH RECURSIVE found (line) AS (
        SELECT (SELECT min(line) FROM process_ready WHERE target_id = $1 AND line > $2)
        UNION ALL
        SELECT (SELECT min(line) FROM process_ready WHERE target_id = $1 AND line > found.line)
        FROM found WHERE found.line IS NOT NULL
    )
    SELECT line FROM found WHERE line IS NOT NULL LIMIT $3";

/// What steps of processes with a plan need besides their agent.
pub(super) const NEEDS: &str = "
    SELECT s.process_id, s.step, s.name, s.class, s.resources
    FROM EACH($1: id hex) AS j CROSS JOIN process_plan AS s ON s.process_id = j.id";

/// A ready process in its line.
pub(crate) type Place = (UnixMs, ProcessId);

/// Processes that are ready for an agent, in one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReadyCount {
    pub(crate) agent: AgentId,
    pub(crate) line: Arc<Line>,
    pub(crate) ready: u32,
}

/// What a process server wants to know of an agent's ready processes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Want {
    pub(crate) agent: AgentId,
    /// The first so many of each of these lines.
    pub(crate) lines: Vec<(Arc<Line>, u32)>,
    /// Which lines there are.
    pub(crate) others: Option<Others>,
}

/// Which lines of an agent are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Others {
    /// Those after this one; `None`: from the first on.
    pub(crate) after: Option<Arc<Line>>,
    /// At most so many.
    pub(crate) limit: u32,
}

/// The answer to a [`Want`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) agent: AgentId,
    /// In the order of the want.
    pub(crate) lines: Vec<FoundLine>,
    /// In order; `None`: they were not asked for. Fewer than asked for: there are no more.
    pub(crate) others: Option<Vec<Arc<Line>>>,
}

/// The first processes of a line that no pause holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FoundLine {
    pub(crate) line: Arc<Line>,
    /// In order, with their deadlines.
    pub(crate) places: Vec<(Place, UnixMs)>,
    /// There are no more of it.
    pub(crate) all: bool,
}

/// A line as the store keeps it.
pub(crate) fn to_sql(line: &Line) -> String {
    let urgency = match line.class {
        Class::System => '0',
        Class::Interactive => '1',
        Class::Normal => '2',
        Class::Background => '3',
    };
    let mut text = String::from(urgency);
    let named = [&line.tenant, &line.kind, &line.work];
    for part in named.into_iter().chain(&line.resources) {
        text.push(SEPARATOR);
        text.push_str(part);
    }
    text
}

/// From the store.
pub(crate) fn from_sql(text: &str) -> Result<Line, StoreError> {
    let bad = || StoreError::BadRow(format!("a line: {}", text.escape_debug()));
    let mut parts = text.split(SEPARATOR);
    let mut next = || parts.next().ok_or_else(bad);
    let class = match next()? {
        "0" => Class::System,
        "1" => Class::Interactive,
        "2" => Class::Normal,
        "3" => Class::Background,
        _ => return Err(bad()),
    };
    let (tenant, kind, work) = (next()?, next()?, next()?);
    Ok(Line {
        class,
        tenant: tenant.to_owned(),
        kind: kind.to_owned(),
        work: work.to_owned(),
        resources: parts.map(str::to_owned).collect(),
    })
}

/// What a row of a plan says of a step's needs; `None`: the process has no plan.
pub(super) fn read_needs(row: &sql::Row) -> Result<Option<StepNeeds>, StoreError> {
    let Some(name) = row.try_get::<Option<String>>("name")? else {
        return Ok(None);
    };
    let resources = serde_json::from_str(row.try_get("resources")?)
        .map_err(|error| StoreError::BadRow(format!("the resources of a step: {error}")))?;
    Ok(Some(StepNeeds {
        name,
        class: row.try_get("class")?,
        resources,
    }))
}

/// Pauses as the statements take them.
struct Held {
    tenants: String,
    kinds: String,
    processes: String,
    /// There are none.
    none: bool,
}

impl Held {
    fn new(pauses: &Pauses) -> Self {
        let names = |set: &std::collections::BTreeSet<String>| {
            let names = set.iter().map(|name| Value::from(name.as_str()));
            Value::Array(names.collect()).to_string()
        };
        let processes = pauses.processes().iter();
        let processes = processes.map(|id| Value::from(id.0.simple().to_string()));
        Self {
            tenants: names(pauses.tenants()),
            kinds: names(pauses.kinds()),
            processes: Value::Array(processes.collect()).to_string(),
            none: !pauses.differs_within_queues(&Pauses::default()),
        }
    }
}

impl Store {
    /// How many processes are ready for each agent, in each line.
    pub(crate) async fn ready_counts(&self) -> Result<Vec<ReadyCount>, StoreError> {
        let mut reader = self.reader().await?;
        ready_counts(&mut reader).await
    }

    /// The first ready processes of lines, without those that a pause holds, and which lines there are.
    pub(crate) async fn ready_of(
        &self,
        wants: &[Want],
        pauses: &Pauses,
    ) -> Result<Vec<Found>, StoreError> {
        let mut reader = self.reader().await?;
        let held = Held::new(pauses);
        let mut found = Vec::with_capacity(wants.len());
        for want in wants {
            let mut lines = Vec::with_capacity(want.lines.len());
            for (line, limit) in &want.lines {
                lines.push(first_of(&mut reader, want.agent, line, *limit, &held).await?);
            }
            let others = match &want.others {
                Some(others) => Some(lines_of(&mut reader, want.agent, others).await?),
                None => None,
            };
            found.push(Found {
                agent: want.agent,
                lines,
                others,
            });
        }
        Ok(found)
    }
}

/// See [`Store::ready_counts`].
pub(super) async fn ready_counts(db: &mut Connection) -> Result<Vec<ReadyCount>, StoreError> {
    let rows =
        sql::query("SELECT target_id, line, count(*) FROM process_ready GROUP BY target_id, line")
            .fetch_all(&mut *db)
            .await?;
    rows.iter()
        .map(|row| {
            Ok(ReadyCount {
                agent: AgentId::from_bytes(id_bytes(row.try_get(0)?)?),
                line: Arc::new(from_sql(row.try_get(1)?)?),
                ready: row.try_get(2)?,
            })
        })
        .collect()
}

async fn first_of(
    reader: &mut Connection,
    agent: AgentId,
    line: &Arc<Line>,
    limit: u32,
    held: &Held,
) -> Result<FoundLine, StoreError> {
    let sql = match held.none {
        true => READY_OF,
        false => READY_OF_NOT_PAUSED,
    };
    let mut query = sql::query(sql)
        .bind(agent.to_bytes().to_vec())
        .bind(to_sql(line))
        .bind(limit);
    if !held.none {
        query = query
            .bind(&held.tenants)
            .bind(&held.kinds)
            .bind(&held.processes);
    }
    let rows = query.fetch_all(&mut *reader).await?;
    let places = rows.iter().map(|row| {
        let ready_at = UnixMs::from_sql(row.try_get(0)?);
        let process = ProcessId::from_bytes(id_bytes(row.try_get(1)?)?);
        Ok(((ready_at, process), UnixMs::from_sql(row.try_get(2)?)))
    });
    Ok(FoundLine {
        line: Arc::clone(line),
        places: places.collect::<Result<_, StoreError>>()?,
        all: u32::try_from(rows.len()).unwrap_or(u32::MAX) < limit,
    })
}

async fn lines_of(
    reader: &mut Connection,
    agent: AgentId,
    others: &Others,
) -> Result<Vec<Arc<Line>>, StoreError> {
    let after = others.after.as_deref().map(to_sql).unwrap_or_default();
    let lines: Vec<String> = sql::query_scalar(LINES_OF)
        .bind(agent.to_bytes().to_vec())
        .bind(after)
        .bind(others.limit)
        .fetch_all(&mut *reader)
        .await?;
    let lines = lines.iter().map(|text| from_sql(text).map(Arc::new));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_and_sorts_as_it_does_in_memory() {
        let line = |class, kind: &str, resources: &[&str]| Line {
            class,
            tenant: "acme".to_owned(),
            kind: kind.to_owned(),
            work: String::new(),
            resources: resources.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut lines = vec![
            line(Class::Background, "exec", &[]),
            line(Class::System, "z", &["pool/a", "pool/b"]),
            line(Class::Normal, "vm-start", &["ä pool"]),
            line(Class::Normal, "vm", &[]),
            line(Class::Normal, "vm", &["a"]),
            line(Class::Interactive, "vm", &["a"]),
        ];
        for line in &lines {
            assert_eq!(from_sql(&to_sql(line)).unwrap(), *line);
        }
        lines.sort_unstable();
        assert!(lines.iter().map(to_sql).is_sorted());
        for bad in ["", "2", "9\u{1f}a\u{1f}b\u{1f}", "2\u{1f}a\u{1f}b"] {
            assert!(from_sql(bad).is_err(), "{bad:?}");
        }
    }
}
