-- The schema of step 8 of the embedded store, in the words of MariaDB and MySQL; later steps have the same
-- numbers there. Times are milliseconds since the Unix epoch, ids are the 16 bytes of a UUID, truths are 0 and 1.
-- Text that is compared or sorted is kept as the bytes of its UTF-8: no collation has a say in it.

CREATE TABLE agent_group (
    id         BINARY(16)     PRIMARY KEY,
    name       VARBINARY(128) NOT NULL UNIQUE,
    slot       BIGINT         NOT NULL CHECK (slot BETWEEN 0 AND 255),
    automatic  BIGINT         NOT NULL,
    admitted   BIGINT         NOT NULL DEFAULT 0,  -- agents that may connect
    created_at BIGINT         NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Who may speak for a group. Taken by compare-and-set on `epoch`, never otherwise.
CREATE TABLE group_owner (
    group_id    BINARY(16) PRIMARY KEY,
    epoch       BIGINT     NOT NULL,
    owner_id    BINARY(16),
    lease_until BIGINT     NOT NULL,
    FOREIGN KEY (group_id) REFERENCES agent_group (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- What the rules of a process read and write; see control/src/process.rs.
CREATE TABLE process (
    id               BINARY(16)     PRIMARY KEY,
    kind             VARBINARY(128) NOT NULL,
    tenant           VARBINARY(128) NOT NULL DEFAULT 'default',
    target_id        BINARY(16)     NOT NULL,
    class            BIGINT         NOT NULL,
    resource         VARBINARY(512),
    state            VARBINARY(16)  NOT NULL,
    due_at           BIGINT,  -- its row in process_timer
    ready_at         BIGINT,  -- its row in process_ready
    deadline_at      BIGINT         NOT NULL,
    life             BIGINT         NOT NULL DEFAULT 900000,
    attempt          BIGINT         NOT NULL,
    counted_fence    BIGINT         NOT NULL,
    max_attempts     BIGINT         NOT NULL,
    busy_count       BIGINT         NOT NULL,
    fence            BIGINT         NOT NULL,
    progress_next    BIGINT         NOT NULL,
    progress_rows    BIGINT         NOT NULL,
    progress_bytes   BIGINT         NOT NULL,
    progress_dropped BIGINT         NOT NULL,
    created_at       BIGINT         NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    schema_version   BIGINT         NOT NULL DEFAULT 0,
    steps            BIGINT         NOT NULL DEFAULT 1,
    "undo"           BIGINT         NOT NULL DEFAULT 0,
    step             BIGINT         NOT NULL DEFAULT 0,
    fate             LONGTEXT,  -- JSON
    hold             LONGTEXT,
    needs_attention  BIGINT         NOT NULL DEFAULT 0,
    unsettled        BIGINT         NOT NULL DEFAULT 0,
    INDEX process_by_target (target_id, id),
    INDEX process_by_end (finished_at),
    INDEX process_attention (needs_attention, id),
    INDEX process_dead (state, finished_at, id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- What is large and rarely changes.
CREATE TABLE process_payload (
    process_id BINARY(16) PRIMARY KEY,
    input      LONGTEXT   NOT NULL,  -- JSON
    outcome    LONGTEXT,  -- JSON, as the API shows it
    FOREIGN KEY (process_id) REFERENCES process (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE process_plan (
    process_id  BINARY(16)     NOT NULL,
    step        BIGINT         NOT NULL,
    name        VARBINARY(128) NOT NULL,
    operation   VARBINARY(128) NOT NULL,  -- the driver
    input       LONGTEXT       NOT NULL,  -- JSON
    timeout     BIGINT         NOT NULL,
    class       VARBINARY(128),
    resources   LONGTEXT       NOT NULL,  -- JSON
    attempts    BIGINT         NOT NULL DEFAULT 0,
    finished_at BIGINT,
    outcome     LONGTEXT,  -- JSON, as the API shows it
    PRIMARY KEY (process_id, step),
    FOREIGN KEY (process_id) REFERENCES process (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Claims read this by agent and line, in this order, and nothing else.
CREATE TABLE process_ready (
    target_id   BINARY(16)      NOT NULL,
    line        VARBINARY(1024) NOT NULL,  -- see control/src/store/lines.rs
    ready_at    BIGINT          NOT NULL,
    process_id  BINARY(16)      NOT NULL,
    deadline_at BIGINT          NOT NULL,
    tenant      VARBINARY(128)  NOT NULL,
    kind        VARBINARY(128)  NOT NULL,
    PRIMARY KEY (target_id, line, ready_at, process_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Every process that waits has one row: when it is due, or its deadline if that is earlier.
CREATE TABLE process_timer (
    due_at     BIGINT     NOT NULL,
    process_id BINARY(16) NOT NULL,
    PRIMARY KEY (due_at, process_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Every process that an agent may know something about.
CREATE TABLE process_lease (
    process_id BINARY(16) PRIMARY KEY,
    target_id  BINARY(16) NOT NULL,
    fence      BIGINT     NOT NULL,
    grant_id   BIGINT     NOT NULL,
    claimed_at BIGINT     NOT NULL,
    worker_id  BINARY(16),
    INDEX process_lease_by_worker (worker_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- At most one living process holds a resource; the others queue by id, which is by age.
CREATE TABLE process_resource (
    resource   VARBINARY(512) PRIMARY KEY,
    process_id BINARY(16)     NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE process_blocked (
    resource   VARBINARY(512) NOT NULL,
    process_id BINARY(16)     NOT NULL,
    PRIMARY KEY (resource, process_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE idempotency (
    scope       VARBINARY(255) NOT NULL,
    idem_key    VARBINARY(255) NOT NULL,
    fingerprint BINARY(32)     NOT NULL,
    process_id  BINARY(16)     NOT NULL,
    expires_at  BIGINT         NOT NULL,
    PRIMARY KEY (scope, idem_key),
    INDEX idempotency_by_expiry (expires_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- What happened. Numbered within the one transaction that writes at a time (store_writer): whoever reads on from a
-- number has missed nothing before it. The newest row is never trimmed.
CREATE TABLE process_event (
    seq        BIGINT AUTO_INCREMENT PRIMARY KEY,
    at         BIGINT        NOT NULL,
    type       VARBINARY(64) NOT NULL,
    process_id BINARY(16),
    agent_id   BINARY(16),
    data       LONGTEXT      NOT NULL,  -- JSON
    INDEX process_event_by_process (process_id, seq)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Who may come in. Secrets are kept as SHA-256 only: they have 256 random bits.
CREATE TABLE agent (
    id           BINARY(16)     PRIMARY KEY,
    group_id     BINARY(16)     NOT NULL,
    hostname     VARBINARY(255) NOT NULL,
    software     LONGTEXT       NOT NULL,
    kinds        LONGTEXT       NOT NULL DEFAULT ('[]'),  -- JSON
    labels       LONGTEXT       NOT NULL DEFAULT ('{}'),  -- JSON
    created_at   BIGINT         NOT NULL,
    revoked_at   BIGINT,
    last_seen_at BIGINT,
    INDEX agent_by_group (group_id, id),
    INDEX agent_by_hostname (hostname, id),
    FOREIGN KEY (group_id) REFERENCES agent_group (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- SHA-256 of the SubjectPublicKeyInfo; at most two an agent. A key is never shared by two agents.
CREATE TABLE agent_key (
    key_hash  BINARY(32) PRIMARY KEY,
    agent_id  BINARY(16) NOT NULL,
    pinned_at BIGINT     NOT NULL,
    INDEX agent_key_by_agent (agent_id),
    FOREIGN KEY (agent_id) REFERENCES agent (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE join_token (
    id          BINARY(16) PRIMARY KEY,
    secret_hash BINARY(32) NOT NULL UNIQUE,
    group_id    BINARY(16),
    agent_id    BINARY(16),  -- re-keys this agent
    created_at  BIGINT     NOT NULL,
    expires_at  BIGINT     NOT NULL,
    used_at     BIGINT,
    used_by     BINARY(16),
    used_from   LONGTEXT,
    INDEX join_token_by_expiry (expires_at),
    FOREIGN KEY (group_id) REFERENCES agent_group (id),
    FOREIGN KEY (agent_id) REFERENCES agent (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE api_token (
    id           BINARY(16)     PRIMARY KEY,
    name         VARBINARY(128) NOT NULL,
    role         VARBINARY(16)  NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    secret_hash  BINARY(32)     NOT NULL UNIQUE,
    created_at   BIGINT         NOT NULL,
    expires_at   BIGINT,
    last_used_at BIGINT
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- What is not to be started. Keys of processes, agents and groups are 32 hex digits.
CREATE TABLE pause (
    scope     VARBINARY(16)  NOT NULL CHECK (scope IN ('process', 'agent', 'group', 'tenant', 'kind')),
    "key"     VARBINARY(255) NOT NULL,
    paused_by VARBINARY(255) NOT NULL,
    reason    LONGTEXT       NOT NULL,
    at        BIGINT         NOT NULL,
    PRIMARY KEY (scope, "key")
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- What operators have set about limits. The key of `global` is `all`.
CREATE TABLE limit_def (
    scope  VARBINARY(16)  NOT NULL CHECK (scope IN ('agent', 'work', 'resource', 'tenant', 'group', 'global')),
    "key"  VARBINARY(255) NOT NULL,
    min    BIGINT,
    max    BIGINT,
    pin    BIGINT,
    weight BIGINT,
    set_by VARBINARY(255) NOT NULL,
    reason LONGTEXT       NOT NULL,
    at     BIGINT         NOT NULL,
    PRIMARY KEY (scope, "key")
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Process servers. One heartbeat each, and never one a process.
CREATE TABLE worker (
    id         BINARY(16) PRIMARY KEY,
    instance   BINARY(16) NOT NULL,
    epoch      BIGINT     NOT NULL,
    started_at BIGINT     NOT NULL,
    beat_at    BIGINT     NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Who looks after what is there once. Taken by compare-and-set on `epoch`.
CREATE TABLE worker_duty (
    name      VARBINARY(64) PRIMARY KEY,
    worker_id BINARY(16),
    epoch     BIGINT        NOT NULL,
    until     BIGINT        NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE webhook (
    id            BINARY(16)     PRIMARY KEY,
    url           LONGTEXT       NOT NULL,
    events        LONGTEXT       NOT NULL,  -- JSON
    agent_id      BINARY(16),
    kind          VARBINARY(128),
    tenant        VARBINARY(128),
    description   LONGTEXT       NOT NULL,
    secret        VARBINARY(255) NOT NULL,
    old_secret    VARBINARY(255),
    old_until     BIGINT,
    disabled_at   BIGINT,
    disabled_why  LONGTEXT,
    generation    BIGINT         NOT NULL,
    "cursor"      BIGINT         NOT NULL,
    missed        BIGINT         NOT NULL,
    failing_since BIGINT,
    created_at    BIGINT         NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Deliveries that wait for another attempt, those that were given up, and the last that succeeded.
CREATE TABLE webhook_delivery (
    webhook_id BINARY(16)    NOT NULL,
    seq        BIGINT        NOT NULL,
    type       VARBINARY(64) NOT NULL,
    body       LONGTEXT      NOT NULL,
    state      VARBINARY(16) NOT NULL CHECK (state IN ('waiting', 'succeeded', 'dead')),
    attempts   BIGINT        NOT NULL,
    status     BIGINT,
    took_ms    BIGINT        NOT NULL,
    error      LONGTEXT,
    first_at   BIGINT        NOT NULL,
    last_at    BIGINT        NOT NULL,
    next_at    BIGINT,
    PRIMARY KEY (webhook_id, seq),
    INDEX webhook_delivery_by_state (webhook_id, state, seq),
    FOREIGN KEY (webhook_id) REFERENCES webhook (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE batch (
    id          BINARY(16)     PRIMARY KEY,
    action      VARBINARY(64)  NOT NULL,
    step        BIGINT,
    filter      LONGTEXT       NOT NULL,  -- JSON, as the API shows it
    state       VARBINARY(16)  NOT NULL CHECK (state IN ('running', 'finished', 'cancelled')),
    "cursor"    BINARY(16)     NOT NULL,
    last        BINARY(16)     NOT NULL,
    max         BIGINT         NOT NULL,
    rate        BIGINT         NOT NULL,
    matched     BIGINT         NOT NULL,
    done        BIGINT         NOT NULL,
    failed      BIGINT         NOT NULL,
    trouble     LONGTEXT,
    reason      LONGTEXT       NOT NULL,
    "by"        VARBINARY(255) NOT NULL,
    created_at  BIGINT         NOT NULL,
    finished_at BIGINT,
    INDEX batch_unfinished (finished_at, id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Who writes. The row of the id 0 is locked by whoever does: one transaction at a time, as in the embedded store. The
-- others say how many transactions each opening of the store has committed: after a lost answer it looks here.
CREATE TABLE store_writer (
    id        BINARY(16) PRIMARY KEY,
    number    BIGINT     NOT NULL,
    opened_at BIGINT     NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

INSERT INTO worker_duty (name, worker_id, epoch, until) VALUES ('sweep', NULL, 0, 0);
INSERT INTO store_writer (id, number, opened_at) VALUES (unhex('00000000000000000000000000000000'), 0, 0);
