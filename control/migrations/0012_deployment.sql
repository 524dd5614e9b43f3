-- Whose store this is; see control/src/store/deployment.rs.

CREATE TABLE deployment (
    id       INTEGER PRIMARY KEY CHECK (id = 1),  -- there is one
    root_key BLOB    NOT NULL,                    -- SHA-256 of the key of its root certificate
    begun_at INTEGER NOT NULL                     -- when this was written down
) STRICT;
