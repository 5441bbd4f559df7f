-- A held rejection is closed when a sync has indexed its document, no longer finds it, or has judged other bytes of it.
ALTER TABLE quarantine DROP CONSTRAINT quarantine_status_check;
ALTER TABLE quarantine ADD CONSTRAINT quarantine_status_check
    CHECK (status IN ('held', 'passed', 'accepted', 'purged', 'superseded'));
