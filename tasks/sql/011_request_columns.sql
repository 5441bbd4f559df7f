-- What the nightly check compares, and what a guardrail did.
ALTER TABLE requests
    ADD COLUMN key_name       text NOT NULL DEFAULT '',   -- the name of the API key that asked
    ADD COLUMN guardrails     jsonb NOT NULL DEFAULT '[]', -- events: {"rule", "where": question | document | answer, "action"}
    ADD COLUMN refused        boolean NOT NULL DEFAULT false, -- answered "I do not know": no document was good enough
    ADD COLUMN grounded       real,  -- share of the answer's words that its documents or its question hold; null: no answer
    ADD COLUMN retrieval_ms   real,
    ADD COLUMN first_token_ms real,
    ADD COLUMN trace_id       text;
