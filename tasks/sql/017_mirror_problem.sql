-- Why MLflow cannot show a release, such as a version that its registry lost; null where it shows it.
ALTER TABLE release_mirrors ADD COLUMN problem text;
