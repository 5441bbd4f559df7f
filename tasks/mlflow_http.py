"""MLflow over plain HTTP, for a process that must not pay for importing it (160 MB and 2 s, measured): the assistant.

Writes spans to the server's OTLP endpoint (`/v1/traces`, MLflow 3.6 and later, a server with an SQL database) and deletes
traces, reads model versions of its registry, and makes an experiment where there is none. Credentials are MLflow's own variables:
MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Fails with `ServiceUnavailable` when the
server does not answer in seconds, and with `DataError` when it refuses what it was sent. Everything else that speaks to
MLflow does so through `tasks.tracking`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

from tasks.errors import DataError, ServiceUnavailable

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 15.0
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_AT_ONCE = 100  # the most traces that MLflow deletes by their ids in one request
_OF_AGE = 500  # how many it is asked to delete by age in one request, or to list on one page


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
        if (found := self._existing(name)) is not None:
            return found
        made = self._ask("POST", "/api/2.0/mlflow/experiments/create", json={"name": name})
        # None: another assistant has just made it.
        return str(made["experiment_id"]) if made else self.experiment(name)

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
        starts = range(0, len(trace_ids), _AT_ONCE)
        if not starts or (id := self._existing(experiment)) is None:
            return 0
        return sum(self._delete(id, {"request_ids": list(trace_ids[start : start + _AT_ONCE])}) for start in starts)

    def delete_traces_before(self, experiment: str, moment: datetime) -> int:
        """Delete the traces of an experiment that began before a moment, oldest first; return how many were."""
        if (id := self._existing(experiment)) is None:
            return 0
        of_age = {"max_timestamp_millis": _millis(moment) - 1, "max_traces": _OF_AGE}
        deleted = 0
        while now := self._delete(id, of_age):
            deleted += now
        return deleted

    def count_traces_before(self, experiment: str, moment: datetime) -> int:
        """Return how many traces `delete_traces_before` would delete."""
        id = self._existing(experiment)
        return sum(len(page) for page in self._pages(id, moment)) if id is not None else 0

    def _pages(self, experiment_id: str, moment: datetime) -> Iterator[list[Any]]:
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        body: dict[str, Any] = {"locations": [place], "filter": f"timestamp_ms < {_millis(moment)}"}
        token = ""
        while True:
            page = {"max_results": _OF_AGE} | ({"page_token": token} if token else {})
            said = self._ask("POST", "/api/3.0/mlflow/traces/search", json=body | page) or {}
            yield said.get("traces", [])
            if not (token := said.get("next_page_token", "")):
                return

    def _existing(self, experiment: str) -> str | None:
        """Return the id of an experiment, or None where there is none."""
        found = self._ask("GET", "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": experiment})
        return str(found["experiment"]["experiment_id"]) if found else None

    def _delete(self, experiment_id: str, which: Mapping[str, Any]) -> int:
        """Delete traces in one request; return how many were."""
        body = {"experiment_id": experiment_id, **which}
        said = self._ask("POST", "/api/2.0/mlflow/traces/delete-traces", json=body)
        return int(said.get("traces_deleted", 0)) if said else 0

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


def _millis(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
