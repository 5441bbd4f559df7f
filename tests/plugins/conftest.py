"""Airflow for these tests: a home of its own, set before Airflow is imported, and the plugins on the path."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = "millrace-test-airflow-"

if OURS not in os.environ.get("AIRFLOW_HOME", ""):
    home = tempfile.mkdtemp(prefix=OURS)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }
if str(REPOSITORY / "plugins") not in sys.path:
    sys.path.append(str(REPOSITORY / "plugins"))
