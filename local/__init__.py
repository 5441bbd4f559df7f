"""The embedded stack: Postgres, S3, MLflow, Airflow and the assistant as plain processes on 127.0.0.1."""
