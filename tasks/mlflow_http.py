"""MLflow over plain HTTP, for a process that must not pay for importing it (160 MB and 2 s, measured): the assistant.

Writes spans to the server's OTLP endpoint (`/v1/traces`, MLflow 3.6 and later, a server with an SQL database) and deletes
traces, reads model versions of its registry, and makes an experiment where there is none. Credentials are MLflow's own variables:
MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Fails with `ServiceUnavailable` when the
server does not answer in seconds, and with `DataError` when it refuses what it was sent. Everything else that speaks to
MLflow does so through `tasks.tracking`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tasks.errors import DataError, ServiceUnavailable

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 15.0
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_AT_ONCE = 100  # the most traces that MLflow deletes by their ids in one request


class MlflowFailed(ServiceUnavailable):
    """MLflow answered, and said that it failed: it may be away for a moment, or for this one request always."""


class MlflowHttp:
    """A server. Its methods wait for an answer, so they are for threads on which no request waits."""

    def __init__(self, uri: str, *, environment: Mapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        self._uri = uri.rstrip("/")
        token, user = found.get("MLFLOW_TRACKING_TOKEN"), found.get("MLFLOW_TRACKING_USERNAME")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        auth = (user, found.get("MLFLOW_TRACKING_PASSWORD", "")) if user and not token else None
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.Client(base_url=self._uri, headers=headers, auth=auth, timeout=timeout)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made when there is none."""
        found = self._ask("GET", "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": name})
        if found is None:
            made = self._ask("POST", "/api/2.0/mlflow/experiments/create", json={"name": name})
            # None: another assistant has just made it.
            return str(made["experiment_id"]) if made else self.experiment(name)
        return str(found["experiment"]["experiment_id"])

    def write_spans(self, experiment_id: str, spans: Sequence[Mapping[str, Any]], service: str) -> None:
        """Write spans in OTLP's JSON form. The same spans again change nothing."""
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
        scope = {"scope": {"name": "millrace"}, "spans": list(spans)}
        body = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
        answer = self._send("POST", "/v1/traces", json=body, headers={"x-mlflow-experiment-id": experiment_id})
        if answer.is_error:
            raise self._refused(answer)

    def delete_traces(self, experiment: str, trace_ids: Sequence[str]) -> int:
        """Delete traces of an experiment, those that are not there aside; return how many were."""
        found = self._ask("GET", "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": experiment})
        deleted = 0
        for start in range(0, len(trace_ids) if found else 0, _AT_ONCE):
            assert found is not None  # there are steps
            body = {
                "experiment_id": found["experiment"]["experiment_id"],
                "request_ids": list(trace_ids[start : start + _AT_ONCE]),
            }
            said = self._ask("POST", "/api/2.0/mlflow/traces/delete-traces", json=body)
            deleted += int(said.get("traces_deleted", 0)) if said else 0
        return deleted

    def model_version(self, name: str, version: str) -> dict[str, str] | None:
        """Return the tags of a model version, or None where there is no such version."""
        path = "/api/2.0/mlflow/model-versions/get"
        found = self._ask("GET", path, params={"name": name, "version": version})
        return {tag["key"]: tag["value"] for tag in found["model_version"].get("tags", ())} if found else None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, **given: Any) -> dict[str, Any] | None:
        """Return what the server says; None where it says that there is none, or that it is there already."""
        answer = self._send(method, path, **given)
        if answer.is_error:
            if answer.status_code in {400, 404} and any(word in answer.text for word in (_ABSENT, _EXISTS)):
                return None
            raise self._refused(answer)
        said: dict[str, Any] = answer.json()
        return said

    def _send(self, method: str, path: str, **given: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **given)
        except httpx.TransportError as error:
            raise self._away(str(error) or type(error).__name__) from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise MlflowFailed(str(self._away(f"status {answer.status_code}")))
        return answer

    def _away(self, found: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"expected MLflow to answer at {self._uri}, found {found}. Next: `make status`; retry."
        )

    def _refused(self, answer: httpx.Response) -> DataError:
        return DataError(
            f"expected MLflow at {self._uri} to take what it was sent, found status {answer.status_code} for "
            f"{answer.request.url.path}: {answer.text[:200]}. Next: check its version (3.6 or later), its database (SQL), and MLFLOW_TRACKING_*."
        )
