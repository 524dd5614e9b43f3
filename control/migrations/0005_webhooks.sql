-- Webhooks: who is told what happens; and batches: one action on many processes.

CREATE TABLE webhook (
    id            BLOB PRIMARY KEY,
    url           TEXT NOT NULL,
    events        TEXT NOT NULL,      -- JSON: patterns such as ["process.*"]
    agent_id      BLOB,               -- only events about this agent
    kind          TEXT,               -- only events about processes of this driver
    description   TEXT NOT NULL,
    secret        BLOB NOT NULL,      -- as it is: signing needs it whole
    old_secret    BLOB,               -- signs as well until old_until
    old_until     INTEGER,
    disabled_at   INTEGER,
    disabled_why  TEXT,
    generation    INTEGER NOT NULL,   -- raised whenever somebody moves the cursor by hand
    cursor        INTEGER NOT NULL,   -- every event up to here is delivered, kept below, or not wanted
    missed        INTEGER NOT NULL,   -- events that were trimmed before they were read
    failing_since INTEGER,            -- the first failure since the last success
    created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Deliveries that wait for another attempt, those that were given up, and the last that succeeded.
CREATE TABLE webhook_delivery (
    webhook_id BLOB NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    seq        INTEGER NOT NULL,      -- the event
    type       TEXT NOT NULL,
    body       TEXT NOT NULL,         -- the event itself may be trimmed before the last attempt
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'succeeded', 'dead')),
    attempts   INTEGER NOT NULL,
    status     INTEGER,               -- of the last attempt, where there was an answer
    took_ms    INTEGER NOT NULL,
    error      TEXT,
    first_at   INTEGER NOT NULL,      -- what the time until it is given up counts from
    last_at    INTEGER NOT NULL,
    next_at    INTEGER,
    PRIMARY KEY (webhook_id, seq)
) STRICT;

CREATE INDEX webhook_delivery_by_state ON webhook_delivery (webhook_id, state, seq);

CREATE TABLE batch (
    id          BLOB PRIMARY KEY,
    action      TEXT NOT NULL,
    filter      TEXT NOT NULL,        -- JSON, as the API shows it
    state       TEXT NOT NULL CHECK (state IN ('running', 'finished', 'cancelled')),
    cursor      BLOB NOT NULL,        -- processes up to this id are behind it
    last        BLOB NOT NULL,        -- the last id that it looks at
    max         INTEGER NOT NULL,
    rate        INTEGER NOT NULL,     -- processes a second
    matched     INTEGER NOT NULL,     -- when it was made
    done        INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    by          TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    finished_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX batch_unfinished ON batch (id) WHERE finished_at IS NULL;
