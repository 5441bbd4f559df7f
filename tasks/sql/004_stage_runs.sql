-- Every try of a stage: a row when it starts, its end when it ends. A try that was killed (out of memory, a lost node)
-- leaves a row without an end: that is how it is seen. `stage_costs` holds what complete tries cost.
CREATE TABLE stage_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run         text NOT NULL,
    stage       text NOT NULL,
    part        text,
    try         integer,
    trace_id    text NOT NULL,
    host        text NOT NULL,
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    exit_code   integer,
    error       text,
    reused      boolean NOT NULL DEFAULT false,
    verdict     text,
    counts      jsonb NOT NULL DEFAULT '{}',
    CHECK ((ended_at IS NULL) = (exit_code IS NULL))
);
-- The last try of a place, and the last end of a stage.
CREATE INDEX stage_runs_place ON stage_runs (run, stage, id);
CREATE INDEX stage_runs_stage ON stage_runs (stage, id);
