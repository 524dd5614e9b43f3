-- Times are milliseconds since the Unix epoch, ids are the 16 bytes of a UUID.
-- A table whose rows change often is small and has exactly one B-tree (WITHOUT ROWID).

CREATE TABLE agent_group (
    id         BLOB PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    slot       INTEGER NOT NULL CHECK (slot BETWEEN 0 AND 255),
    automatic  INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who may speak for a group. Taken by compare-and-set on `epoch`, never otherwise.
CREATE TABLE group_owner (
    group_id    BLOB PRIMARY KEY REFERENCES agent_group (id) ON DELETE CASCADE,
    epoch       INTEGER NOT NULL,
    owner_id    BLOB,
    lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the rules of a process read and write; see control/src/process.rs.
CREATE TABLE process (
    id               BLOB PRIMARY KEY,
    kind             TEXT NOT NULL,
    target_id        BLOB NOT NULL,
    class            INTEGER NOT NULL,
    resource         TEXT,
    state            TEXT NOT NULL,
    due_at           INTEGER,           -- its row in process_timer
    ready_at         INTEGER,           -- its row in process_ready
    deadline_at      INTEGER NOT NULL,
    attempt          INTEGER NOT NULL,  -- attempts that an agent has started
    counted_fence    INTEGER NOT NULL,  -- the fence whose attempt is counted
    max_attempts     INTEGER NOT NULL,
    busy_count       INTEGER NOT NULL,  -- times that it came back without having been started
    fence            INTEGER NOT NULL,
    progress_next    INTEGER NOT NULL,
    progress_rows    INTEGER NOT NULL,
    progress_bytes   INTEGER NOT NULL,
    progress_dropped INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX process_by_target ON process (target_id, id);
CREATE INDEX process_by_end ON process (finished_at) WHERE finished_at IS NOT NULL;

-- What is large and rarely changes.
CREATE TABLE process_payload (
    process_id BLOB PRIMARY KEY REFERENCES process (id) ON DELETE CASCADE,
    input      TEXT NOT NULL,           -- JSON
    outcome    TEXT                     -- JSON, as the API shows it
) STRICT;

-- Claims read this by target, in this order, and nothing else.
CREATE TABLE process_ready (
    target_id  BLOB NOT NULL,
    class      INTEGER NOT NULL,
    ready_at   INTEGER NOT NULL,
    process_id BLOB NOT NULL,
    PRIMARY KEY (target_id, class, ready_at, process_id)
) STRICT, WITHOUT ROWID;

-- Every process that waits has one row: when it is due, or its deadline if that is earlier.
CREATE TABLE process_timer (
    due_at     INTEGER NOT NULL,
    process_id BLOB NOT NULL,
    PRIMARY KEY (due_at, process_id)
) STRICT, WITHOUT ROWID;

-- Every process that an agent may know something about.
CREATE TABLE process_lease (
    process_id BLOB PRIMARY KEY,
    target_id  BLOB NOT NULL,
    fence      INTEGER NOT NULL,
    grant_id   INTEGER NOT NULL,
    claimed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- At most one living process holds a resource; the others queue by id, which is by age.
CREATE TABLE process_resource (
    resource   TEXT PRIMARY KEY,
    process_id BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE process_blocked (
    resource   TEXT NOT NULL,
    process_id BLOB NOT NULL,
    PRIMARY KEY (resource, process_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    scope       TEXT NOT NULL,
    idem_key    TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    process_id  BLOB NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (scope, idem_key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);

-- What happened, numbered by the one writer. The newest row is never trimmed: numbers never repeat.
CREATE TABLE process_event (
    seq        INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    type       TEXT NOT NULL,
    process_id BLOB,
    agent_id   BLOB,
    data       TEXT NOT NULL            -- JSON
) STRICT;

CREATE INDEX process_event_by_process ON process_event (process_id, seq)
    WHERE process_id IS NOT NULL;
