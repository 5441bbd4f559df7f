"""Airflow for these tests is prepared before anything imports it."""

from tests.airflow_home import prepare

prepare()
