-- Agent servers on machines of their own, as whoever reaches them writes them down; see control/src/gateways.rs.

CREATE TABLE agent_server (
    run        BLOB PRIMARY KEY,      -- of its gateway: what group_owner.owner_id names
    link       TEXT NOT NULL,         -- where process servers reach it; of two runs there the later is alive
    addresses  TEXT NOT NULL,         -- where agents reach it: a JSON list
    shards     INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL       -- when somebody has reached it last
) STRICT, WITHOUT ROWID;
