-- The schema of step 8 of the embedded store, in PostgreSQL's words; later steps have the same numbers there.
-- Times are milliseconds since the Unix epoch, ids are the 16 bytes of a UUID, truths are 0 and 1.
-- Text sorts by its bytes, as everywhere in Drover.

CREATE TABLE agent_group (
    id         BYTEA            PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    slot       BIGINT           NOT NULL CHECK (slot BETWEEN 0 AND 255),
    automatic  BIGINT           NOT NULL,
    admitted   BIGINT           NOT NULL DEFAULT 0,  -- agents that may connect
    created_at BIGINT           NOT NULL
);

-- Who may speak for a group. Taken by compare-and-set on `epoch`, never otherwise.
CREATE TABLE group_owner (
    group_id    BYTEA  PRIMARY KEY REFERENCES agent_group (id) ON DELETE CASCADE,
    epoch       BIGINT NOT NULL,
    owner_id    BYTEA,
    lease_until BIGINT NOT NULL
);

-- What the rules of a process read and write; see control/src/process.rs.
CREATE TABLE process (
    id               BYTEA            PRIMARY KEY,
    kind             TEXT COLLATE "C" NOT NULL,
    tenant           TEXT COLLATE "C" NOT NULL DEFAULT 'default',
    target_id        BYTEA            NOT NULL,
    class            BIGINT           NOT NULL,
    resource         TEXT COLLATE "C",
    state            TEXT COLLATE "C" NOT NULL,
    due_at           BIGINT,  -- its row in process_timer
    ready_at         BIGINT,  -- its row in process_ready
    deadline_at      BIGINT           NOT NULL,
    life             BIGINT           NOT NULL DEFAULT 900000,
    attempt          BIGINT           NOT NULL,
    counted_fence    BIGINT           NOT NULL,
    max_attempts     BIGINT           NOT NULL,
    busy_count       BIGINT           NOT NULL,
    fence            BIGINT           NOT NULL,
    progress_next    BIGINT           NOT NULL,
    progress_rows    BIGINT           NOT NULL,
    progress_bytes   BIGINT           NOT NULL,
    progress_dropped BIGINT           NOT NULL,
    created_at       BIGINT           NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    schema_version   BIGINT           NOT NULL DEFAULT 0,
    steps            BIGINT           NOT NULL DEFAULT 1,
    "undo"           BIGINT           NOT NULL DEFAULT 0,
    step             BIGINT           NOT NULL DEFAULT 0,
    fate             TEXT COLLATE "C",  -- JSON
    hold             TEXT COLLATE "C",
    needs_attention  BIGINT           NOT NULL DEFAULT 0,
    unsettled        BIGINT           NOT NULL DEFAULT 0
);
CREATE INDEX process_by_target ON process (target_id, id);
CREATE INDEX process_by_end ON process (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX process_attention ON process (id) WHERE needs_attention = 1;
CREATE INDEX process_dead ON process (finished_at, id) WHERE state = 'failed';

-- What is large and rarely changes.
CREATE TABLE process_payload (
    process_id BYTEA            PRIMARY KEY REFERENCES process (id) ON DELETE CASCADE,
    input      TEXT COLLATE "C" NOT NULL,  -- JSON
    outcome    TEXT COLLATE "C"  -- JSON, as the API shows it
);

CREATE TABLE process_plan (
    process_id  BYTEA            NOT NULL REFERENCES process (id) ON DELETE CASCADE,
    step        BIGINT           NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    operation   TEXT COLLATE "C" NOT NULL,  -- the driver
    input       TEXT COLLATE "C" NOT NULL,  -- JSON
    timeout     BIGINT           NOT NULL,
    class       TEXT COLLATE "C",
    resources   TEXT COLLATE "C" NOT NULL,  -- JSON
    attempts    BIGINT           NOT NULL DEFAULT 0,
    finished_at BIGINT,
    outcome     TEXT COLLATE "C",  -- JSON, as the API shows it
    PRIMARY KEY (process_id, step)
);

-- Claims read this by agent and line, in this order, and nothing else.
CREATE TABLE process_ready (
    target_id   BYTEA            NOT NULL,
    line        TEXT COLLATE "C" NOT NULL,  -- see control/src/store/lines.rs
    ready_at    BIGINT           NOT NULL,
    process_id  BYTEA            NOT NULL,
    deadline_at BIGINT           NOT NULL,
    tenant      TEXT COLLATE "C" NOT NULL,
    kind        TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (target_id, line, ready_at, process_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Every process that waits has one row: when it is due, or its deadline if that is earlier.
CREATE TABLE process_timer (
    due_at     BIGINT NOT NULL,
    process_id BYTEA  NOT NULL,
    PRIMARY KEY (due_at, process_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Every process that an agent may know something about.
CREATE TABLE process_lease (
    process_id BYTEA  PRIMARY KEY,
    target_id  BYTEA  NOT NULL,
    fence      BIGINT NOT NULL,
    grant_id   BIGINT NOT NULL,
    claimed_at BIGINT NOT NULL,
    worker_id  BYTEA
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX process_lease_by_worker ON process_lease (worker_id);

-- At most one living process holds a resource; the others queue by id, which is by age.
CREATE TABLE process_resource (
    resource   TEXT COLLATE "C" PRIMARY KEY,
    process_id BYTEA            NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE TABLE process_blocked (
    resource   TEXT COLLATE "C" NOT NULL,
    process_id BYTEA            NOT NULL,
    PRIMARY KEY (resource, process_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE TABLE idempotency (
    scope       TEXT COLLATE "C" NOT NULL,
    idem_key    TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA            NOT NULL,
    process_id  BYTEA            NOT NULL,
    expires_at  BIGINT           NOT NULL,
    PRIMARY KEY (scope, idem_key)
);
CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);

-- What happened. Numbered within the one transaction that writes at a time (store_writer): whoever reads on from a
-- number has missed nothing before it. The newest row is never trimmed.
CREATE TABLE process_event (
    seq        BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at         BIGINT           NOT NULL,
    type       TEXT COLLATE "C" NOT NULL,
    process_id BYTEA,
    agent_id   BYTEA,
    data       TEXT COLLATE "C" NOT NULL  -- JSON
);
CREATE INDEX process_event_by_process ON process_event (process_id, seq) WHERE process_id IS NOT NULL;

-- Who may come in. Secrets are kept as SHA-256 only: they have 256 random bits.
CREATE TABLE agent (
    id           BYTEA            PRIMARY KEY,
    group_id     BYTEA            NOT NULL REFERENCES agent_group (id),
    hostname     TEXT COLLATE "C" NOT NULL,
    software     TEXT COLLATE "C" NOT NULL,
    kinds        TEXT COLLATE "C" NOT NULL DEFAULT ('[]'),  -- JSON
    labels       TEXT COLLATE "C" NOT NULL DEFAULT ('{}'),  -- JSON
    created_at   BIGINT           NOT NULL,
    revoked_at   BIGINT,
    last_seen_at BIGINT
);
CREATE INDEX agent_by_group ON agent (group_id, id);
CREATE INDEX agent_by_hostname ON agent (hostname, id);

-- SHA-256 of the SubjectPublicKeyInfo; at most two an agent. A key is never shared by two agents.
CREATE TABLE agent_key (
    key_hash  BYTEA  PRIMARY KEY,
    agent_id  BYTEA  NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    pinned_at BIGINT NOT NULL
);
CREATE INDEX agent_key_by_agent ON agent_key (agent_id);

CREATE TABLE join_token (
    id          BYTEA  PRIMARY KEY,
    secret_hash BYTEA  NOT NULL UNIQUE,
    group_id    BYTEA  REFERENCES agent_group (id),
    agent_id    BYTEA  REFERENCES agent (id) ON DELETE CASCADE,  -- re-keys this agent
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    used_at     BIGINT,
    used_by     BYTEA,
    used_from   TEXT COLLATE "C"
);
CREATE INDEX join_token_by_expiry ON join_token (expires_at);

CREATE TABLE api_token (
    id           BYTEA            PRIMARY KEY,
    name         TEXT COLLATE "C" NOT NULL,
    role         TEXT COLLATE "C" NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    secret_hash  BYTEA            NOT NULL UNIQUE,
    created_at   BIGINT           NOT NULL,
    expires_at   BIGINT,
    last_used_at BIGINT
);

-- What is not to be started. Keys of processes, agents and groups are 32 hex digits.
CREATE TABLE pause (
    scope     TEXT COLLATE "C" NOT NULL CHECK (scope IN ('process', 'agent', 'group', 'tenant', 'kind')),
    "key"     TEXT COLLATE "C" NOT NULL,
    paused_by TEXT COLLATE "C" NOT NULL,
    reason    TEXT COLLATE "C" NOT NULL,
    at        BIGINT           NOT NULL,
    PRIMARY KEY (scope, "key")
);

-- What operators have set about limits. The key of `global` is `all`.
CREATE TABLE limit_def (
    scope  TEXT COLLATE "C" NOT NULL CHECK (scope IN ('agent', 'work', 'resource', 'tenant', 'group', 'global')),
    "key"  TEXT COLLATE "C" NOT NULL,
    min    BIGINT,
    max    BIGINT,
    pin    BIGINT,
    weight BIGINT,
    set_by TEXT COLLATE "C" NOT NULL,
    reason TEXT COLLATE "C" NOT NULL,
    at     BIGINT           NOT NULL,
    PRIMARY KEY (scope, "key")
);

-- Process servers. One heartbeat each, and never one a process.
CREATE TABLE worker (
    id         BYTEA  PRIMARY KEY,
    instance   BYTEA  NOT NULL,
    epoch      BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    beat_at    BIGINT NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Who looks after what is there once. Taken by compare-and-set on `epoch`.
CREATE TABLE worker_duty (
    name      TEXT COLLATE "C" PRIMARY KEY,
    worker_id BYTEA,
    epoch     BIGINT           NOT NULL,
    until     BIGINT           NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE TABLE webhook (
    id            BYTEA            PRIMARY KEY,
    url           TEXT COLLATE "C" NOT NULL,
    events        TEXT COLLATE "C" NOT NULL,  -- JSON
    agent_id      BYTEA,
    kind          TEXT COLLATE "C",
    tenant        TEXT COLLATE "C",
    description   TEXT COLLATE "C" NOT NULL,
    secret        BYTEA            NOT NULL,
    old_secret    BYTEA,
    old_until     BIGINT,
    disabled_at   BIGINT,
    disabled_why  TEXT COLLATE "C",
    generation    BIGINT           NOT NULL,
    "cursor"      BIGINT           NOT NULL,
    missed        BIGINT           NOT NULL,
    failing_since BIGINT,
    created_at    BIGINT           NOT NULL
);

-- Deliveries that wait for another attempt, those that were given up, and the last that succeeded.
CREATE TABLE webhook_delivery (
    webhook_id BYTEA            NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    seq        BIGINT           NOT NULL,
    type       TEXT COLLATE "C" NOT NULL,
    body       TEXT COLLATE "C" NOT NULL,
    state      TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'succeeded', 'dead')),
    attempts   BIGINT           NOT NULL,
    status     BIGINT,
    took_ms    BIGINT           NOT NULL,
    error      TEXT COLLATE "C",
    first_at   BIGINT           NOT NULL,
    last_at    BIGINT           NOT NULL,
    next_at    BIGINT,
    PRIMARY KEY (webhook_id, seq)
);
CREATE INDEX webhook_delivery_by_state ON webhook_delivery (webhook_id, state, seq);

CREATE TABLE batch (
    id          BYTEA            PRIMARY KEY,
    action      TEXT COLLATE "C" NOT NULL,
    step        BIGINT,
    filter      TEXT COLLATE "C" NOT NULL,  -- JSON, as the API shows it
    state       TEXT COLLATE "C" NOT NULL CHECK (state IN ('running', 'finished', 'cancelled')),
    "cursor"    BYTEA            NOT NULL,
    last        BYTEA            NOT NULL,
    max         BIGINT           NOT NULL,
    rate        BIGINT           NOT NULL,
    matched     BIGINT           NOT NULL,
    done        BIGINT           NOT NULL,
    failed      BIGINT           NOT NULL,
    trouble     TEXT COLLATE "C",
    reason      TEXT COLLATE "C" NOT NULL,
    "by"        TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT           NOT NULL,
    finished_at BIGINT
);
CREATE INDEX batch_unfinished ON batch (id) WHERE finished_at IS NULL;

-- Who writes. The row of the id 0 is locked by whoever does: one transaction at a time, as in the embedded store. The
-- others say how many transactions each opening of the store has committed: after a lost answer it looks here.
CREATE TABLE store_writer (
    id        BYTEA  PRIMARY KEY,
    number    BIGINT NOT NULL,
    opened_at BIGINT NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

INSERT INTO worker_duty (name, worker_id, epoch, until) VALUES ('sweep', NULL, 0, 0);
INSERT INTO store_writer (id, number, opened_at) VALUES (decode('00000000000000000000000000000000', 'hex'), 0, 0);
