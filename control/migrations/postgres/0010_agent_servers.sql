-- Agent servers on machines of their own, as whoever reaches them writes them down; see control/src/gateways.rs.

CREATE TABLE agent_server (
    run        BYTEA            PRIMARY KEY,  -- of its gateway: what group_owner.owner_id names
    link       TEXT COLLATE "C" NOT NULL,     -- where process servers reach it; of two runs there the later is alive
    addresses  TEXT             NOT NULL,     -- where agents reach it: a JSON list
    shards     BIGINT           NOT NULL,
    renewed_at BIGINT           NOT NULL      -- when somebody has reached it last
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
