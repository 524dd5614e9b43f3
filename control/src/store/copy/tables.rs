//! What a copy takes: every table, and how its rows are read and written a page at a time.

/// A table, in the order in which rows may refer to each other.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Its key is its first so many columns.
    pub(super) keys: usize,
    /// Every column as the lists of [`sql`](crate::store::sql) have them.
    pub(super) columns: &'static str,
}

/// Everything that a store holds, but for who writes at the moment.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "deployment",
        keys: 1,
        columns: "id int, root_key hex, begun_at int",
    },
    Table {
        name: "agent_group",
        keys: 1,
        columns: "id hex, name text, slot int, automatic int, admitted int, created_at int",
    },
    Table {
        name: "group_owner",
        keys: 1,
        columns: "group_id hex, epoch int, owner_id hex, lease_until int",
    },
    Table {
        name: "agent",
        keys: 1,
        columns: "id hex, group_id hex, hostname text, software text, kinds text, labels text, created_at int, revoked_at int, last_seen_at int",
    },
    Table {
        name: "agent_key",
        keys: 1,
        columns: "key_hash hex, agent_id hex, pinned_at int",
    },
    Table {
        name: "join_token",
        keys: 1,
        columns: "id hex, secret_hash hex, group_id hex, agent_id hex, created_at int, expires_at int, used_at int, used_by hex, used_from text",
    },
    Table {
        name: "api_token",
        keys: 1,
        columns: "id hex, name text, role text, secret_hash hex, created_at int, expires_at int, last_used_at int",
    },
    Table {
        name: "process",
        keys: 1,
        columns: "id hex, kind text, tenant text, target_id hex, class int, resource text, state text, due_at int, ready_at int, deadline_at int, life int, attempt int, counted_fence int, max_attempts int, busy_count int, fence int, progress_next int, progress_rows int, progress_bytes int, progress_dropped int, created_at int, started_at int, finished_at int, schema_version int, steps int, undo int, step int, fate text, hold text, needs_attention int, unsettled int",
    },
    Table {
        name: "process_payload",
        keys: 1,
        columns: "process_id hex, input text, outcome text",
    },
    Table {
        name: "process_plan",
        keys: 2,
        columns: "process_id hex, step int, name text, operation text, input text, timeout int, class text, resources text, attempts int, finished_at int, outcome text",
    },
    Table {
        name: "process_ready",
        keys: 4,
        columns: "target_id hex, line text, ready_at int, process_id hex, deadline_at int, tenant text, kind text",
    },
    Table {
        name: "process_timer",
        keys: 2,
        columns: "due_at int, process_id hex",
    },
    Table {
        name: "process_lease",
        keys: 1,
        columns: "process_id hex, target_id hex, fence int, grant_id int, claimed_at int, worker_id hex",
    },
    Table {
        name: "process_resource",
        keys: 1,
        columns: "resource text, process_id hex",
    },
    Table {
        name: "process_blocked",
        keys: 2,
        columns: "resource text, process_id hex",
    },
    Table {
        name: "idempotency",
        keys: 2,
        columns: "scope text, idem_key text, fingerprint hex, process_id hex, expires_at int",
    },
    Table {
        name: "process_event",
        keys: 1,
        columns: "seq int, at int, type text, process_id hex, agent_id hex, data text",
    },
    Table {
        name: "pause",
        keys: 2,
        columns: "scope text, key text, paused_by text, reason text, at int",
    },
    Table {
        name: "limit_def",
        keys: 2,
        columns: "scope text, key text, min int, max int, pin int, weight int, set_by text, reason text, at int",
    },
    Table {
        name: "worker",
        keys: 1,
        columns: "id hex, instance hex, epoch int, started_at int, beat_at int",
    },
    Table {
        name: "worker_duty",
        keys: 1,
        columns: "name text, worker_id hex, epoch int, until int",
    },
    Table {
        name: "lock_lease",
        keys: 1,
        columns: "name text, holder hex, until int",
    },
    Table {
        name: "event_ring",
        keys: 1,
        columns: "topic text, rings int",
    },
    Table {
        name: "agent_server",
        keys: 1,
        columns: "run hex, link text, addresses text, shards int, renewed_at int, draining int, capacity int",
    },
    Table {
        name: "group_pin",
        keys: 1,
        columns: "group_id hex, link text, ends_at int",
    },
    Table {
        name: "webhook",
        keys: 1,
        columns: "id hex, url text, events text, agent_id hex, kind text, tenant text, description text, secret hex, old_secret hex, old_until int, disabled_at int, disabled_why text, generation int, cursor int, missed int, failing_since int, created_at int",
    },
    Table {
        name: "webhook_delivery",
        keys: 2,
        columns: "webhook_id hex, seq int, type text, body text, state text, attempts int, status int, took_ms int, error text, first_at int, last_at int, next_at int",
    },
    Table {
        name: "batch",
        keys: 1,
        columns: "id hex, action text, step int, filter text, state text, cursor hex, last hex, max int, rate int, matched int, done int, failed int, trouble text, reason text, by text, created_at int, finished_at int",
    },
];

impl Table {
    /// Names and kinds.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
        let columns = self.columns.split(", ");
        columns.filter_map(|column| column.split_once(' '))
    }

    /// Names between commas, as SQL has them.
    pub(super) fn names(&self, count: usize) -> String {
        let names = self.columns().take(count);
        let names: Vec<String> = names.map(|(name, _)| format!("\"{name}\"")).collect();
        names.join(", ")
    }

    fn all_names(&self) -> String {
        self.names(usize::MAX)
    }

    /// The rows behind a key, by key. Not a comparison of rows: not every backend looks that up by an index.
    pub(super) fn page(&self, has_key: bool) -> String {
        let (all, key) = (self.all_names(), self.names(self.keys));
        let behind = match has_key {
            true => {
                let keys: Vec<&str> = self
                    .columns()
                    .take(self.keys)
                    .map(|(name, _)| name)
                    .collect();
                let first = keys.first().copied().unwrap_or_default();
                format!(" AND \"{first}\" >= $1 AND NOT ({})", up_to(&keys, 1))
            }
            false => String::new(),
        };
        // The mark of a copy is no row of the store.
        let ours = match self.name {
            "worker_duty" => "name <> 'copy'",
            _ => "1 = 1",
        };
        let limit = self.keys + 1;
        let name = self.name;
        format!("SELECT {all} FROM {name} WHERE {ours}{behind} ORDER BY {key} LIMIT ${limit}")
    }

    pub(super) fn insert(&self) -> String {
        let (all, key) = (self.all_names(), self.names(self.keys));
        let values: Vec<String> = self
            .columns()
            .map(|(name, _)| format!("j.{name}"))
            .collect();
        format!(
            "INSERT INTO {} ({all}) SELECT {} FROM LIST($1: {}) AS j WHERE true ON CONFLICT ({key}) DO NOTHING",
            self.name,
            values.join(", "),
            self.columns
        )
    }
}

/// Whether a row's key is that of the page's beginning or before it, of those with the same first column.
fn up_to(keys: &[&str], at: usize) -> String {
    match keys {
        [] => "1 = 1".to_owned(),
        [last] => format!("\"{last}\" <= ${at}"),
        [first, rest @ ..] => {
            let rest = up_to(rest, at + 1);
            format!("\"{first}\" < ${at} OR \"{first}\" = ${at} AND ({rest})")
        }
    }
}
