CREATE EXTENSION IF NOT EXISTS vector;

-- What the corpus looked like at the last switched sync. One row a document that is in the current index.
CREATE TABLE documents (
    uri           text PRIMARY KEY,
    corpus        text NOT NULL,
    title         text NOT NULL,
    source_sha256 text NOT NULL,
    text_sha256   text NOT NULL,
    bytes         bigint NOT NULL,
    chunks        integer NOT NULL,
    first_seen    timestamptz NOT NULL DEFAULT now(),
    last_changed  timestamptz NOT NULL DEFAULT now()
);

-- Nothing is dropped in silence: what was rejected, by which rule, why, in which run.
CREATE TABLE quarantine (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('document', 'chunk', 'example', 'request')),
    item        text NOT NULL,
    rule        text NOT NULL,
    reason      text NOT NULL,
    excerpt     text NOT NULL,
    run         text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (run, kind, item, rule)
);

-- Vectors by the text they were made from and the embedder that made them; survives index versions.
CREATE TABLE embedding_cache (
    chunk_sha256 text NOT NULL,
    embedder     text NOT NULL,
    embedding    vector NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chunk_sha256, embedder)
);

-- One build of all chunks with one pipeline fingerprint. Its chunks are in the table named here.
CREATE TABLE index_versions (
    version      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint  text NOT NULL,
    corpus       text NOT NULL,
    corpus_sha256 text NOT NULL,
    embedder     text NOT NULL,
    dimensions   integer NOT NULL,
    table_name   text NOT NULL UNIQUE,
    status       text NOT NULL CHECK (status IN ('building', 'checked', 'current', 'former', 'refused', 'retired')),
    documents    integer,
    chunks       integer,
    metrics      jsonb NOT NULL DEFAULT '{}',
    run          text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    switched_at  timestamptz
);
CREATE UNIQUE INDEX index_versions_one_current ON index_versions ((true)) WHERE status = 'current';
CREATE UNIQUE INDEX index_versions_one_build_a_run ON index_versions (run);

-- One served question. Partitions are made by day; what has no partition yet lands in the default one.
CREATE TABLE requests (
    id                uuid NOT NULL,
    created_at        timestamptz NOT NULL,
    kind              text NOT NULL CHECK (kind IN ('chat', 'search')),
    client            text NOT NULL DEFAULT '',
    question          text NOT NULL,
    answer            text,
    hits              jsonb NOT NULL DEFAULT '[]',
    best_score        real,
    release           integer,
    index_version     integer,
    latency_ms        real NOT NULL,
    prompt_tokens     integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    error             text,
    embedding         vector,
    PRIMARY KEY (created_at, id)
) PARTITION BY RANGE (created_at);
CREATE TABLE requests_default PARTITION OF requests DEFAULT;
CREATE INDEX requests_id ON requests (id);

CREATE TABLE feedback (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id  uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    rating      text NOT NULL CHECK (rating IN ('up', 'down')),
    correction  text,
    comment     text,
    status      text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'accepted', 'rejected'))
);
CREATE INDEX feedback_request ON feedback (request_id);

CREATE TABLE drift_windows (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run            text NOT NULL UNIQUE,
    reference_from timestamptz, reference_to timestamptz, reference_rows integer NOT NULL,
    current_from   timestamptz, current_to   timestamptz, current_rows   integer NOT NULL,
    metrics        jsonb NOT NULL,
    report_uri     text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- What drift led to, and why. A decision to do nothing is a row too.
CREATE TABLE decisions (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run          text NOT NULL UNIQUE,
    window_id    bigint REFERENCES drift_windows,
    action       text NOT NULL CHECK (action IN ('none', 'refresh_knowledge', 'train_again', 'alert')),
    cause        text NOT NULL,
    reason       text NOT NULL,
    evidence     jsonb NOT NULL,
    dag_id       text,
    dag_run_id   text,
    created_at   timestamptz NOT NULL DEFAULT now()
);

-- The ledger. Rows are only added; the live release is the newest row.
CREATE TABLE releases (
    release        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at     timestamptz NOT NULL DEFAULT now(),
    kind           text NOT NULL CHECK (kind IN ('promotion', 'rollback')),
    model_name     text NOT NULL,
    model_version  text NOT NULL,
    adapter_uri    text,
    adapter_sha256 text,
    base_model     text NOT NULL,
    base_revision  text NOT NULL,
    prompt_sha256  text NOT NULL,
    prompt         text NOT NULL,
    index_version  integer NOT NULL REFERENCES index_versions,
    embedder       text NOT NULL,
    dataset_sha256 text,
    code_revision  text NOT NULL,
    evidence_uri   text NOT NULL,
    evidence_sha256 text NOT NULL,
    approved_by    text NOT NULL,
    reason         text NOT NULL,
    run            text NOT NULL UNIQUE,
    restores       integer REFERENCES releases
);
CREATE FUNCTION releases_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'expected the ledger of releases to be only added to, found %. Next: promote or roll back.', TG_OP;
END $$;
CREATE TRIGGER releases_are_final BEFORE UPDATE OR DELETE ON releases FOR EACH ROW EXECUTE FUNCTION releases_are_final();

-- Which releases stand in MLflow as well (the mirror may fail, and is then reconciled).
CREATE TABLE release_mirrors (
    release     integer PRIMARY KEY REFERENCES releases,
    mirrored_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE stage_costs (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run              text NOT NULL,
    stage            text NOT NULL,
    part             text,
    status           text NOT NULL,
    started_at       timestamptz NOT NULL,
    ended_at         timestamptz NOT NULL,
    resource_seconds jsonb NOT NULL,
    host             text NOT NULL
);
CREATE INDEX stage_costs_run ON stage_costs (run);
