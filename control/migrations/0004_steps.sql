-- Processes with steps, tenants, pauses, and several process servers on one store.

ALTER TABLE process ADD COLUMN tenant          TEXT    NOT NULL DEFAULT 'default';
ALTER TABLE process ADD COLUMN schema_version  INTEGER NOT NULL DEFAULT 0;  -- of its plan; 0: none, its kind is a driver
ALTER TABLE process ADD COLUMN steps           INTEGER NOT NULL DEFAULT 1;
ALTER TABLE process ADD COLUMN undo            INTEGER NOT NULL DEFAULT 0;  -- bit n: step n can be undone
ALTER TABLE process ADD COLUMN step            INTEGER NOT NULL DEFAULT 0;  -- the number in its operation's id
ALTER TABLE process ADD COLUMN fate            TEXT;                        -- JSON: what it ends as when it is undone
ALTER TABLE process ADD COLUMN hold            TEXT;                        -- why it is in backoff
ALTER TABLE process ADD COLUMN life            INTEGER NOT NULL DEFAULT 900000;
ALTER TABLE process ADD COLUMN needs_attention INTEGER NOT NULL DEFAULT 0;
ALTER TABLE process ADD COLUMN unsettled       INTEGER NOT NULL DEFAULT 0;  -- ended without its agent's word

UPDATE process SET life = max(deadline_at - created_at, 1000);

CREATE INDEX process_attention ON process (id) WHERE needs_attention = 1;

-- The claims of a paused tenant or kind are read past: both stand with the row.
ALTER TABLE process_ready ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
ALTER TABLE process_ready ADD COLUMN kind   TEXT NOT NULL DEFAULT '';

UPDATE process_ready SET kind =
    (SELECT p.kind FROM process AS p WHERE p.id = process_ready.process_id);

-- What a declared kind has made of the input when the process was created: a change of configuration
-- changes no process that there is. `step` is the step's index, with 0x8000 for what undoes it.
CREATE TABLE process_plan (
    process_id  BLOB NOT NULL REFERENCES process (id) ON DELETE CASCADE,
    step        INTEGER NOT NULL,
    name        TEXT NOT NULL,
    operation   TEXT NOT NULL,          -- the driver
    input       TEXT NOT NULL,          -- JSON
    timeout     INTEGER NOT NULL,
    class       TEXT,
    resources   TEXT NOT NULL,          -- JSON
    attempts    INTEGER NOT NULL DEFAULT 0,
    finished_at INTEGER,
    outcome     TEXT,                   -- JSON, as the API shows it
    PRIMARY KEY (process_id, step)
) STRICT, WITHOUT ROWID;

-- What is not to be started. Keys of processes, agents and groups are 32 hex digits.
CREATE TABLE pause (
    scope     TEXT NOT NULL CHECK (scope IN ('process', 'agent', 'group', 'tenant', 'kind')),
    key       TEXT NOT NULL,
    paused_by TEXT NOT NULL,
    reason    TEXT NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;

-- Process servers. One heartbeat each, and never one a process.
CREATE TABLE worker (
    id         BLOB PRIMARY KEY,
    instance   BLOB NOT NULL,           -- the opening of the store that it works with
    epoch      INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    beat_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who looks after the claims of process servers that are gone. Taken by compare-and-set on `epoch`.
CREATE TABLE worker_duty (
    name      TEXT PRIMARY KEY,
    worker_id BLOB,
    epoch     INTEGER NOT NULL,
    until     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO worker_duty (name, worker_id, epoch, until) VALUES ('sweep', NULL, 0, 0);

ALTER TABLE process_lease ADD COLUMN worker_id BLOB;
CREATE INDEX process_lease_by_worker ON process_lease (worker_id);
