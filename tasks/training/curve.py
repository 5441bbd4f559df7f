"""The loss curve of a training, in MLflow while it grows.

Writes metrics, parameters and tags to one MLflow run. A server that goes away in the middle does not stop
the training: what could not be sent is kept and sent with the next step; `close` raises
`ServiceUnavailable` when it still cannot be sent, before anything is declared complete.
"""

import logging
import time
from typing import Any

from tasks import tracking
from tasks.errors import ServiceUnavailable
from tasks.settings import Settings

log = logging.getLogger(__name__)
_BATCH = 200  # steps in one call; MLflow takes 1,000 metrics, and a step has up to four


class Curve:
    """One training's curve. `rows` holds every step, also those before a resume."""

    def __init__(self, settings: Settings, name: str, tags: dict[str, str], parameters: dict[str, Any]) -> None:
        self._settings = settings
        self.rows: list[dict[str, Any]] = []
        self._sent = 0
        with tracking.answering(settings) as client:
            self.run_id = tracking.run_for(client, name, tags)
            self._describe(client, parameters)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a step, and send all that was not sent yet."""
        self.rows.append(row)
        try:
            self._send()
        except ServiceUnavailable as error:
            log.warning("metrics wait for MLflow: %s", error)

    def close(self, status: str, metrics: dict[str, float]) -> None:
        """Send the rest and end the run as FINISHED, FAILED or KILLED. Raises ServiceUnavailable."""
        self._send()
        with tracking.answering(self._settings) as client:
            for name, value in metrics.items():
                client.log_metric(self.run_id, name, value)
            client.set_terminated(self.run_id, status)

    def _describe(self, client: Any, parameters: dict[str, Any]) -> None:
        from mlflow.entities import Param

        client.update_run(self.run_id, status="RUNNING")
        client.log_batch(self.run_id, params=[Param(name, str(value)[:500]) for name, value in parameters.items()])

    def _send(self) -> None:
        from mlflow.entities import Metric

        while waiting := self.rows[self._sent : self._sent + _BATCH]:
            metrics = [
                Metric(name, float(value), int(row.get("at", time.time()) * 1000), int(row["step"]))
                for row in waiting
                for name, value in row.items()
                if name not in {"step", "steps", "at"}
            ]
            with tracking.answering(self._settings) as client:
                client.log_batch(self.run_id, metrics=metrics)
            self._sent += len(waiting)
