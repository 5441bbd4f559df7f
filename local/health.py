"""When a server of the stack is healthy: each function returns a check, which says what is still missing.

The checks ask the servers on 127.0.0.1 and change nothing. A server that does not answer is not an error here.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime
from http.client import HTTPConnection, HTTPException

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local import postgres

# Returns what is still missing, or None when healthy. Its argument is when the process was started.
Health = Callable[[float], str | None]


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Return status and body of `GET path` on 127.0.0.1, past any proxy."""
    connection = HTTPConnection("127.0.0.1", port, timeout=3.0)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answers(port: int, path: str) -> Health:
    """Healthy when `GET path` is 200."""

    def health(_: float) -> str | None:
        try:
            status, _body = get(port, path)
        except (OSError, HTTPException) as error:
            return f"GET 127.0.0.1:{port}{path}: {error}"
        return None if status == 200 else f"GET 127.0.0.1:{port}{path}: status {status}"

    return health


def s3_readable(port: int, env: Mapping[str, str], path: str) -> Health:
    """Healthy when `path`, written at an earlier start, can be read, or does not exist yet.

    SeaweedFS answers its own `/healthz` before its volumes are known again: for seconds, on a busy machine, it
    lists every object and can read none (status 500).
    """
    credentials = Credentials(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])

    def health(_: float) -> str | None:
        request = AWSRequest("GET", f"http://127.0.0.1:{port}{path}")
        S3SigV4Auth(credentials, "s3", env["AWS_REGION"]).add_auth(request)
        try:
            status, _body = get(port, path, dict(request.headers.items()))
        except (OSError, HTTPException) as error:
            return f"GET 127.0.0.1:{port}{path}: {error}"
        return None if status in {200, 404} else f"GET 127.0.0.1:{port}{path}: status {status}"

    return health


def airflow_component(port: int, key: str, heartbeat: str) -> Health:
    """Healthy when Airflow's monitor says so, by a heartbeat later than the start of the process."""

    def health(started: float) -> str | None:
        try:
            status, body = get(port, "/api/v2/monitor/health")
            found = json.loads(body)[key] if status == 200 else {}
        except (OSError, HTTPException, ValueError, KeyError) as error:
            return f"airflow-api does not answer yet: {error}"
        if found.get("status") != "healthy":
            return f"airflow-api says {key} is {found.get('status')}"
        last = found.get(heartbeat)
        if last is not None and datetime.fromisoformat(last).timestamp() < started:
            return "no heartbeat since its start"
        return None

    return health


def postgres_ready(port: int) -> Health:
    """Healthy when `pg_isready` says that connections are accepted."""

    def health(_: float) -> str | None:
        command = [str(postgres.binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "3"]
        code = subprocess.run(command, check=False, capture_output=True).returncode
        return None if code == 0 else f"pg_isready -p {port} ended with {code}"

    return health
