-- How much an agent server is given, and pins that end by themselves; see control/src/gateways.rs.

-- Agents that it is given at most, while another one has room.
ALTER TABLE agent_server ADD COLUMN capacity INTEGER NOT NULL DEFAULT 10000;

-- When the pin ends; none: when somebody removes it.
ALTER TABLE group_pin ADD COLUMN ends_at INTEGER;
