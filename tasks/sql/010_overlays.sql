-- Of a version that shows rows of an earlier version's table: that table. Its own rows are in TABLE_NAME_own, what it does not
-- show is in TABLE_NAME_hidden, and TABLE_NAME is a view of both.
ALTER TABLE index_versions ADD COLUMN base_table text;
