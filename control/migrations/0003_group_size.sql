-- How many agents of a group may connect, kept as they come and go: every enrolment asks which
-- automatic group has the fewest, and counting them each time made a large fleet's joining quadratic.
ALTER TABLE agent_group ADD COLUMN admitted INTEGER NOT NULL DEFAULT 0;

UPDATE agent_group SET admitted =
    (SELECT count(*) FROM agent a WHERE a.group_id = agent_group.id AND a.revoked_at IS NULL);
