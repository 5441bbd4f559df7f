-- Several corpora, each by its name; what was the only one is now the corpus `default`.
ALTER TABLE documents
    ADD COLUMN status text NOT NULL DEFAULT 'indexed' CHECK (status IN ('indexed', 'rejected')),
    ADD COLUMN stamp text NOT NULL DEFAULT '',      -- as the listing told it; '' is read again at the next sync
    ADD COLUMN fingerprint text NOT NULL DEFAULT '',-- the pipeline that judged it
    ADD COLUMN rule text,                           -- of a rejected document: the first rule it breaks
    ADD COLUMN same_as text,                        -- of a rejected copy: the document that stands for it
    ADD COLUMN signature bytea,                     -- MinHash of its text, for near-duplicates
    ADD COLUMN bands bigint[] NOT NULL DEFAULT '{}';-- the signature's bands: near-duplicates share one
ALTER TABLE documents RENAME COLUMN source_sha256 TO content_sha256;
ALTER TABLE documents DROP CONSTRAINT documents_pkey;
UPDATE documents SET corpus = 'default';
ALTER TABLE documents ADD PRIMARY KEY (corpus, uri);
CREATE INDEX documents_bands ON documents USING gin (bands);
CREATE INDEX documents_text ON documents (corpus, text_sha256);

ALTER TABLE index_versions
    ADD COLUMN source text NOT NULL DEFAULT '',
    ADD COLUMN vector_type text NOT NULL DEFAULT 'vector' CHECK (vector_type IN ('vector', 'halfvec')),
    ADD COLUMN text_search text NOT NULL DEFAULT 'english',
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}'; -- the corpus' settings it was made with
UPDATE index_versions SET source = corpus, corpus = 'default';
DROP INDEX index_versions_one_current;
CREATE UNIQUE INDEX index_versions_one_current ON index_versions (corpus) WHERE status = 'current';

-- Where a chunk stands in its document, what is known about the document, and its words for full text search.
DO $$
DECLARE version record;
BEGIN
    FOR version IN SELECT table_name FROM index_versions WHERE status <> 'retired' LOOP
        EXECUTE format(
            'ALTER TABLE %1$I ADD COLUMN headings text[] NOT NULL DEFAULT ''{}'', ADD COLUMN page integer, '
            'ADD COLUMN metadata jsonb NOT NULL DEFAULT ''{}'', ADD COLUMN words tsvector GENERATED ALWAYS AS '
            '(setweight(to_tsvector(''english'', title), ''A'') || to_tsvector(''english'', text)) STORED', version.table_name);
        EXECUTE format('CREATE INDEX %1$I ON %2$I USING gin (words)', version.table_name || '_words', version.table_name);
        EXECUTE format('CREATE INDEX %1$I ON %2$I USING gin (metadata jsonb_path_ops)', version.table_name || '_metadata', version.table_name);
    END LOOP;
END $$;

-- A rejected document keeps its bytes (body_uri), so that it can be looked at again without its source.
ALTER TABLE quarantine
    ADD COLUMN corpus text NOT NULL DEFAULT 'default',
    ADD COLUMN content_sha256 text,
    ADD COLUMN body_uri text,
    ADD COLUMN status text NOT NULL DEFAULT 'held' CHECK (status IN ('held', 'passed', 'accepted', 'purged')),
    ADD COLUMN decided_by text,
    ADD COLUMN decided_at timestamptz,
    ADD COLUMN note text;
CREATE INDEX quarantine_item ON quarantine (kind, item);
-- A person stands for this content, as it is, against that rule.
CREATE TABLE acceptances (
    corpus         text NOT NULL,
    content_sha256 text NOT NULL,
    rule           text NOT NULL,
    accepted_by    text NOT NULL,
    note           text NOT NULL,
    accepted_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (corpus, content_sha256, rule)
);

-- Who had which document erased, what was removed, and what had been built on it. An erased document does not come back.
CREATE TABLE erasures (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    corpus       text NOT NULL,
    uri          text NOT NULL,
    requested_by text NOT NULL,
    reason       text NOT NULL,
    removed      jsonb NOT NULL,
    built_on     jsonb NOT NULL,
    erased_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX erasures_uri ON erasures (corpus, uri);
