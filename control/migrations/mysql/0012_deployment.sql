-- Whose store this is; see control/src/store/deployment.rs.

CREATE TABLE deployment (
    id       BIGINT     PRIMARY KEY,  -- 1: there is one
    root_key BINARY(32) NOT NULL,     -- SHA-256 of the key of its root certificate
    begun_at BIGINT     NOT NULL      -- when this was written down
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;
