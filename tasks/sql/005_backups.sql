-- Which backups were made, so that the age of the last good one can be shown and alarmed upon. The truth about a backup is
-- beside it (backup.json); this table is restored with the rest, and then shows the backups made before the restored one.
CREATE TABLE backups (
    id          text PRIMARY KEY,
    target      text NOT NULL,
    status      text NOT NULL CHECK (status IN ('complete', 'damaged')),
    problems    integer NOT NULL,
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz NOT NULL,
    verified_at timestamptz,
    counts      jsonb NOT NULL
);
CREATE INDEX backups_good ON backups (ended_at) WHERE status = 'complete';
