-- What operators have set about limits. Keys of agents and groups are 32 hex digits; the one of `global` is `all`.
CREATE TABLE limit_def (
    scope  TEXT NOT NULL CHECK (scope IN ('agent', 'work', 'resource', 'tenant', 'group', 'global')),
    key    TEXT NOT NULL,
    min    INTEGER,                     -- agents only: an adaptive limit is never lower
    max    INTEGER,
    pin    INTEGER,                     -- agents only: it is this, and nothing is learnt
    weight INTEGER,                     -- tenants only: their share, where several wait
    set_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
