-- Locks and events that go through the store where there is no service for them. Hints: nothing refers to them.

CREATE TABLE lock_lease (
    name   TEXT COLLATE "C" PRIMARY KEY,
    holder BYTEA            NOT NULL,  -- 16 bytes: differs with each time that it is taken
    until  BIGINT           NOT NULL   -- milliseconds since the epoch; from then on it is free
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE TABLE event_ring (
    topic TEXT COLLATE "C" PRIMARY KEY,
    rings BIGINT           NOT NULL    -- how often something was published
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
