-- What a candidate would have answered to a live question: beside it, for the record only. Its question and the answer that
-- the client got are in `requests`, under the same id. `latency_ms` and `live_ms` are of the generations alone, without waits.
CREATE TABLE shadow_answers (
    request_id         uuid NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    model_name         text NOT NULL,
    model_version      text NOT NULL,
    adapter_sha256     text NOT NULL,
    release            integer NOT NULL REFERENCES releases, -- the live one, which it is compared with
    answer             text,
    finish_reason      text,
    prompt_tokens      integer NOT NULL,
    completion_tokens  integer NOT NULL DEFAULT 0,
    latency_ms         real,
    grounded           real,
    error              text, -- Interrupted: a live request came
    live_ms            real NOT NULL,
    live_finish_reason text NOT NULL,
    PRIMARY KEY (request_id, model_name, model_version)
);
CREATE INDEX shadow_answers_version ON shadow_answers (model_name, model_version);
