-- Agent servers on machines of their own, as whoever reaches them writes them down; see control/src/gateways.rs.

CREATE TABLE agent_server (
    run        BINARY(16)     PRIMARY KEY,  -- of its gateway: what group_owner.owner_id names
    link       VARBINARY(512) NOT NULL,     -- where process servers reach it; of two runs there the later is alive
    addresses  LONGTEXT       NOT NULL,     -- where agents reach it: a JSON list
    shards     BIGINT         NOT NULL,
    renewed_at BIGINT         NOT NULL,     -- when somebody has reached it last
    draining   BIGINT         NOT NULL DEFAULT 0  -- 1: it gives its groups to the others, until its run is over
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Where a group is to be, while that agent server is there and does not drain.
CREATE TABLE group_pin (
    group_id BINARY(16)     PRIMARY KEY,
    link     VARBINARY(512) NOT NULL,             -- of the agent server
    FOREIGN KEY (group_id) REFERENCES agent_group (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;
