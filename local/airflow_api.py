"""A small client of Airflow's REST API (v2): what the demo and the end-to-end test need.

Fails with `AirflowError` when the API refuses a call, with its own words.
"""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

ENDED = {"success", "failed"}


class AirflowError(Exception):
    """The API refused a call, or a DAG run did not come."""

    exit_code = 1


class AirflowClient:
    """A session with one Airflow, signed in by user and password; signs in again when the token has expired."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url.rstrip("/")
        self._credentials = {"username": user, "password": password}
        self._http = httpx.Client(base_url=self.url, timeout=30, transport=httpx.HTTPTransport(retries=3))
        self._sign_in()

    def _sign_in(self) -> None:
        answer = self._http.post("/auth/token", json=self._credentials)
        if answer.status_code != 201:
            raise AirflowError(
                f"expected Airflow to accept the password file, found {answer.status_code}. Next: make down up"
            )
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Return the JSON of `method /api/v2/path`. Raises AirflowError for an error status."""
        answer = self._http.request(method, f"/api/v2/{path}", **arguments)
        if answer.status_code == 401:
            self._sign_in()
            answer = self._http.request(method, f"/api/v2/{path}", **arguments)
        if answer.is_error:
            raise AirflowError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def wait_for_dags(self, dag_ids: list[str], timeout: float = 120) -> None:
        """Wait until every DAG has been parsed; make sure none is paused."""
        deadline = time.monotonic() + timeout
        while True:
            known = {dag["dag_id"]: dag for dag in self.call("GET", "dags", params={"limit": 100})["dags"]}
            missing = [dag_id for dag_id in dag_ids if dag_id not in known]
            if not missing:
                break
            if time.monotonic() > deadline:
                errors = self.call("GET", "importErrors")["import_errors"]
                found = "; ".join(f"{e['filename']}: {e['stack_trace'][-400:]}" for e in errors) or "no import error"
                raise AirflowError(f"expected Airflow to parse {', '.join(missing)} in {timeout:g} s, found {found}")
            time.sleep(0.5)
        for dag_id in dag_ids:
            if known[dag_id]["is_paused"]:
                self.call("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a DAG run."""
        self.call("POST", f"dags/{dag_id}/dagRuns", json={"dag_run_id": run_id, "logical_date": None, "conf": conf})

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return one DAG run."""
        found: dict[str, Any] = self.call("GET", f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
        return found

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the newest DAG runs, newest first."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": 20}
        )["dag_runs"]
        return found

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a DAG run, mapped ones each."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        found: list[dict[str, Any]] = self.call("GET", path, params={"limit": 1000})["task_instances"]
        return found

    def reference(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any] | None:
        """Return what a task handed on (its XCom), or None when it has not handed on anything."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/return_value"
        answer = self._http.get(f"/api/v2/{path}", params={"map_index": map_index, "deserialize": "true"})
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        value = answer.json()["value"]
        return value if isinstance(value, dict) else None

    def answer_approval(self, dag_id: str, run_id: str, task_id: str, option: str, reason: str) -> None:
        """Answer a task that waits for a person."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/-1/hitlDetails"
        self.call("PATCH", path, json={"chosen_options": [option], "params_input": {"reason": reason}})

    def wait(
        self, dag_id: str, run_id: str, watch: Callable[[list[dict[str, Any]]], None], timeout: float
    ) -> dict[str, Any]:
        """Wait for a DAG run to end, showing its task instances to `watch` about once a second; return the run."""
        deadline = time.monotonic() + timeout
        while True:
            run = self.run(dag_id, run_id)
            watch(self.tasks(dag_id, run_id))
            if run["state"] in ENDED:
                return run
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"expected {dag_id} {run_id} to end in {timeout:g} s, found it {run['state']}. Next: see its page."
                )
            time.sleep(0.7)

    def log(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        """Return the log of a task instance's last try as plain text."""
        path = (
            f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task['task_id']}"
            f"/logs/{max(1, task['try_number'])}"
        )
        found = self.call("GET", path, params={"full_content": "true", "map_index": task["map_index"]})
        events = found.get("content", [])
        return "\n".join(str(e.get("event", e)) if isinstance(e, dict) else str(e) for e in events)
