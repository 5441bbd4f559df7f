-- What later windows are compared with: the first days of requests that a model and a prompt answered. `release` is the first
-- release with that model and prompt; a release that changes the index only keeps it. The bytes are in S3; no question is in them.
CREATE TABLE drift_references (
    release    integer PRIMARY KEY,
    frozen_at  timestamptz NOT NULL DEFAULT now(),
    uri        text NOT NULL,
    sha256     text NOT NULL,
    rows       integer NOT NULL,
    total      integer NOT NULL, -- requests of its time, of which rows were kept
    first_at   timestamptz NOT NULL,
    last_at    timestamptz NOT NULL,
    embedder   text NOT NULL
);
-- Moments from which a reference begins anew, because somebody said that what is usual has changed.
CREATE TABLE drift_beginnings (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    release  integer NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    by       text NOT NULL,
    reason   text NOT NULL
);
-- `cause` is none, knowledge, behaviour or traffic; `detail` is its one word; `held_by` names the brake that held the action.
ALTER TABLE decisions ADD COLUMN detail text NOT NULL DEFAULT '', ADD COLUMN held_by text;
