-- Whose store this is; see control/src/store/deployment.rs.

CREATE TABLE deployment (
    id       BIGINT PRIMARY KEY CHECK (id = 1),  -- there is one
    root_key BYTEA  NOT NULL,                    -- SHA-256 of the key of its root certificate
    begun_at BIGINT NOT NULL                     -- when this was written down
);
