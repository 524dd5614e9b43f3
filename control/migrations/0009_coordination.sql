-- Locks and events that go through the store where there is no service for them. Hints: nothing refers to them.

CREATE TABLE lock_lease (
    name   TEXT    NOT NULL PRIMARY KEY,
    holder BLOB    NOT NULL,            -- 16 bytes: differs with each time that it is taken
    until  INTEGER NOT NULL             -- milliseconds since the epoch; from then on it is free
) STRICT, WITHOUT ROWID;

CREATE TABLE event_ring (
    topic TEXT    NOT NULL PRIMARY KEY,
    rings INTEGER NOT NULL              -- how often something was published
) STRICT, WITHOUT ROWID;
