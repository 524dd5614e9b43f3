-- Who may come in: agents and their keys, join tokens, API tokens.
-- Secrets are kept as SHA-256 only: they have 256 random bits, so nothing slower is needed.

CREATE TABLE agent (
    id           BLOB PRIMARY KEY,
    group_id     BLOB NOT NULL REFERENCES agent_group (id),
    hostname     TEXT NOT NULL,
    software     TEXT NOT NULL,
    kinds        TEXT NOT NULL DEFAULT '[]',   -- JSON: its drivers, as last announced
    labels       TEXT NOT NULL DEFAULT '{}',   -- JSON: its labels, as last announced
    created_at   INTEGER NOT NULL,
    revoked_at   INTEGER,
    last_seen_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX agent_by_group ON agent (group_id, id);
CREATE INDEX agent_by_hostname ON agent (hostname, id);
-- Counts what a group holds without touching the rows.
CREATE INDEX agent_admitted ON agent (group_id) WHERE revoked_at IS NULL;

-- SHA-256 of the SubjectPublicKeyInfo; at most two an agent. A key is never shared by two agents.
CREATE TABLE agent_key (
    key_hash  BLOB PRIMARY KEY,
    agent_id  BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    pinned_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX agent_key_by_agent ON agent_key (agent_id);

CREATE TABLE join_token (
    id          BLOB PRIMARY KEY,
    secret_hash BLOB NOT NULL UNIQUE,
    group_id    BLOB REFERENCES agent_group (id),
    agent_id    BLOB REFERENCES agent (id) ON DELETE CASCADE,  -- re-keys this agent
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_at     INTEGER,
    used_by     BLOB,
    used_from   TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX join_token_by_expiry ON join_token (expires_at);

CREATE TABLE api_token (
    id           BLOB PRIMARY KEY,
    name         TEXT NOT NULL,
    role         TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    secret_hash  BLOB NOT NULL UNIQUE,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;
