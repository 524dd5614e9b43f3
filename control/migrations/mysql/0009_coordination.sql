-- Locks and events that go through the store where there is no service for them. Hints: nothing refers to them.

CREATE TABLE lock_lease (
    name   VARBINARY(255) PRIMARY KEY,
    holder BINARY(16)     NOT NULL,  -- differs with each time that it is taken
    until  BIGINT         NOT NULL   -- milliseconds since the epoch; from then on it is free
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE event_ring (
    topic VARBINARY(255) PRIMARY KEY,
    rings BIGINT         NOT NULL    -- how often something was published
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;
