-- Ready processes wait by agent and line: what a step needs permits of, as gateways grant them.
-- `line` is written as control/src/store/lines.rs writes it: how urgent (0 is what undoes a step), tenant,
-- kind, sort of work and shared resources, each behind a character 31. Text, so that its order is that of
-- urgency first. Fixed for each step of a process.

CREATE TABLE process_ready_by_line (
    target_id   BLOB NOT NULL,
    line        TEXT NOT NULL,
    ready_at    INTEGER NOT NULL,
    process_id  BLOB NOT NULL,
    deadline_at INTEGER NOT NULL,
    tenant      TEXT NOT NULL,          -- for pauses
    kind        TEXT NOT NULL,          -- the process's own, for pauses
    PRIMARY KEY (target_id, line, ready_at, process_id)
) STRICT, WITHOUT ROWID;

INSERT INTO process_ready_by_line
SELECT r.target_id,
       iif(p.step & 0x8000, 0, p.class) || char(31) || p.tenant || char(31)
       || iif(s.step IS NULL, p.kind,
              substr(p.kind || '.' || s.name || iif(p.step & 0x8000, '.undo', ''), 1, 64))
       || char(31) || coalesce(s.class, '')
       || coalesce((SELECT group_concat(char(31) || named.value, '')
                    FROM (SELECT DISTINCT value FROM json_each(s.resources)
                          ORDER BY value LIMIT 4) AS named), ''),
       r.ready_at, r.process_id, p.deadline_at, p.tenant, p.kind
FROM process_ready AS r
JOIN process AS p ON p.id = r.process_id
LEFT JOIN process_plan AS s ON s.process_id = p.id AND s.step = p.step & 0x801f;

DROP TABLE process_ready;
ALTER TABLE process_ready_by_line RENAME TO process_ready;
