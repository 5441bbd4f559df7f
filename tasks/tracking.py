"""The only module that speaks to MLflow.

Reads and writes the tracking server and model registry at `MILLRACE_MLFLOW_TRACKING_URI`. Fails with
`ServiceUnavailable` when the server does not answer, and with `SettingsError` when it refuses access (401, 403). What a
person is shown of the address is without the user and password that it may hold (`public`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.settings import Settings

EXPERIMENT = "millrace"
_USER = re.compile(r"(?<=://)[^/\s]*@")
_REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}


def public(text: str) -> str:
    """Return an address, or a text with some, without `user:password@`: it goes into forms, mails and tickets."""
    return _USER.sub("", text)


def client(settings: Settings) -> Any:
    """Return an `mlflow.MlflowClient` of the configured server."""
    import os

    # A server that is away must be told in seconds, not after MLflow's seven retries of two minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is the reference's
    import mlflow

    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    return mlflow.MlflowClient(tracking_uri=settings.mlflow_tracking_uri)


@contextmanager
def answering(settings: Settings) -> Iterator[Any]:
    """Yield a client; inside the block a connection that fails is ServiceUnavailable, access that is refused SettingsError."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield client(settings)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _away(settings, error) from error
    except MlflowException as error:
        if error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}:
            raise _away(settings, error) from error
        if error.error_code in _REFUSED:
            raise SettingsError(
                f"expected MLflow at {public(settings.mlflow_tracking_uri)} to let us in, found {error.error_code}: "
                f"{public(error.message)[:300]}. Next: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, of one who may."
            ) from error
        raise


@contextmanager
def tried_once(seconds: int = 10) -> Iterator[None]:
    """Inside the block a request to MLflow is tried once, and not for longer: what matters more must not wait for it."""
    import os

    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in short}
    os.environ.update(short)  # MLflow reads them at each request
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _away(settings: Settings, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"expected MLflow to answer at {public(settings.mlflow_tracking_uri)}, found {public(str(error))[:300]}. "
        "Next: `make status`; retry."
    )


def run_for(mlflow_client: Any, name: str, tags: Mapping[str, str], experiment: str = EXPERIMENT) -> str:
    """Return the id of the MLflow run named `name` (a retry finds the one it made before), making it when there is none.

    `name` must be unique to the work it stands for: we use `DAG_RUN_ID STAGE`.
    """
    found = mlflow_client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else mlflow_client.create_experiment(experiment)
    escaped = name.replace("'", "\\'")
    runs = mlflow_client.search_runs([experiment_id], f"attributes.run_name = '{escaped}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(mlflow_client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
