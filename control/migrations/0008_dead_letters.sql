-- Batches that do more than cancel, failed processes as a list to be worked off, and webhooks by tenant.

ALTER TABLE batch ADD COLUMN step    INTEGER;  -- where a replay goes on; NULL: at the step at hand
ALTER TABLE batch ADD COLUMN trouble TEXT;     -- why the last process that could not be dealt with was not

ALTER TABLE webhook ADD COLUMN tenant TEXT;    -- only events about processes of this tenant

CREATE INDEX process_dead ON process (finished_at, id) WHERE state = 'failed';
