"""Airflow for the tests that import it: a home of its own, and the plugins on the path."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = "millrace-test-airflow-"


def prepare() -> None:
    """Set the environment; call it before Airflow is imported, as often as you like."""
    if OURS not in os.environ.get("AIRFLOW_HOME", ""):
        home = tempfile.mkdtemp(prefix=OURS)
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # A fresh clone has no bytecode yet: the Kubernetes client alone can take half a minute on a busy machine.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        }
    if str(REPOSITORY / "plugins") not in sys.path:
        sys.path.append(str(REPOSITORY / "plugins"))
