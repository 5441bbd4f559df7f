-- Which version of the prompt MLflow's registry has for the text of a release; null where MLflow was away, and in older rows.
ALTER TABLE releases ADD COLUMN prompt_version text;
