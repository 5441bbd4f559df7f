-- Of a version that a person made current again: who, and why.
ALTER TABLE index_versions ADD COLUMN switched_by text, ADD COLUMN switch_reason text;
