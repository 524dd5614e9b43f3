-- Agent servers on machines of their own, as whoever reaches them writes them down; see control/src/gateways.rs.

CREATE TABLE agent_server (
    run        BYTEA            PRIMARY KEY,  -- of its gateway: what group_owner.owner_id names
    link       TEXT COLLATE "C" NOT NULL,     -- where process servers reach it; of two runs there the later is alive
    addresses  TEXT             NOT NULL,     -- where agents reach it: a JSON list
    shards     BIGINT           NOT NULL,
    renewed_at BIGINT           NOT NULL,     -- when somebody has reached it last
    draining   BIGINT           NOT NULL DEFAULT 0  -- 1: it gives its groups to the others, until its run is over
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Where a group is to be, while that agent server is there and does not drain.
CREATE TABLE group_pin (
    group_id BYTEA            PRIMARY KEY REFERENCES agent_group (id) ON DELETE CASCADE,
    link     TEXT COLLATE "C" NOT NULL            -- of the agent server
);
