-- Feedback that a training may use outlives its request: before a day of requests is dropped, what was asked, what was
-- answered, and from which documents (an erasure must find it) move here.
ALTER TABLE feedback
    ADD COLUMN key_name      text NOT NULL DEFAULT '',  -- the name of the API key that gave it
    ADD COLUMN question      text,                      -- null: `requests` has it, or nobody needs it
    ADD COLUMN answer        text,
    ADD COLUMN hits          jsonb,
    ADD COLUMN index_version integer;

-- Every row stays, but of what one key said about one request the last thumb counts. The nightly check reads this.
CREATE VIEW feedback_thumbs AS
    SELECT DISTINCT ON (request_id, key_name) request_id, key_name, created_at, rating
    FROM feedback WHERE status <> 'rejected'
    ORDER BY request_id, key_name, id DESC;
