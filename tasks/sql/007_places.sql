-- The last page that a chunk reaches, and the names of all headings that any of it stands under, for filters. Chunks made
-- before have none: they are found by where they start, until the next sync makes them again.
DO $$
DECLARE version record;
BEGIN
    FOR version IN SELECT table_name FROM index_versions WHERE status <> 'retired' LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN last_page integer, ADD COLUMN covered text[]', version.table_name);
    END LOOP;
END $$;
