"""The metrics of Airflow that rules, dashboard and docs may name, with their labels, as a collector's Prometheus exporter
calls them. tests/plugins/test_scheduler.py sees each of them arrive from a running Airflow."""

NAMES: dict[str, set[str]] = {
    "airflow_scheduler_heartbeat_total": set(),
    "airflow_dag_processor_heartbeat_total": set(),
    "airflow_dag_processing_import_errors": set(),
    "airflow_dag_processing_total_parse_time": set(),
    "airflow_executor_open_slots": {"executor_class_name", "status"},
    "airflow_executor_queued_tasks": {"executor_class_name", "status"},
    "airflow_executor_running_tasks": {"executor_class_name", "status"},
    "airflow_pool_starving_tasks": {"pool_name"},
    "airflow_ti_running": {"queue", "dag_id", "task_id"},
    "airflow_ti_start_total": {"dag_id", "task_id"},
    "airflow_ti_finish_total": {"dag_id", "task_id", "state"},
    "airflow_dagrun_duration_success_milliseconds_count": {"dag_id", "run_type"},
    "airflow_dagrun_duration_success_milliseconds_sum": {"dag_id", "run_type"},
}
