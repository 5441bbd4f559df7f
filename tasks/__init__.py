"""What each stage of Millrace does. Importable and testable without Airflow."""
