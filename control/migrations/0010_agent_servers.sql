-- Agent servers on machines of their own, as whoever reaches them writes them down; see control/src/gateways.rs.

CREATE TABLE agent_server (
    run        BLOB PRIMARY KEY,      -- of its gateway: what group_owner.owner_id names
    link       TEXT NOT NULL,         -- where process servers reach it; of two runs there the later is alive
    addresses  TEXT NOT NULL,         -- where agents reach it: a JSON list
    shards     INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,      -- when somebody has reached it last
    draining   INTEGER NOT NULL DEFAULT 0  -- 1: it gives its groups to the others, until its run is over
) STRICT, WITHOUT ROWID;

-- Where a group is to be, while that agent server is there and does not drain.
CREATE TABLE group_pin (
    group_id BLOB PRIMARY KEY REFERENCES agent_group (id) ON DELETE CASCADE,
    link     TEXT NOT NULL            -- of the agent server
) STRICT, WITHOUT ROWID;
