"""What was measured, shown in MLflow beside the training's curve: the table of scores, and the means as metrics.

Writes to the MLflow run of the training. Fails with `ManifestError` when that run is gone, and with `ServiceUnavailable` when
MLflow does not answer.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks import tracking
from tasks.contracts import Artifact
from tasks.errors import ManifestError
from tasks.evaluation.table import COLUMNS
from tasks.settings import Settings

FOLDER = "evaluation"


def publish(
    settings: Settings, run_id: str, table: Sequence[dict[str, Any]], written: Artifact, metrics: Mapping[str, float]
) -> str:
    """Log table and metrics in the run `run_id`, and return the table's path there, which its digest names.

    MLflow adds to a table that is there: a name that tells the bytes keeps evaluations of one training apart, and one of
    that name that is there already is left as it is.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    path = f"{FOLDER}/scores-{written.sha256[:12]}.json"
    now = int(time.time() * 1000)
    try:
        with tracking.answering(settings) as client:
            # A retry after the table was written would add its rows to it once more.
            if path not in {file.path for file in client.list_artifacts(run_id, FOLDER)}:
                client.log_table(run_id, {name: [row.get(name) for row in table] for name in COLUMNS}, path)
            client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ManifestError(
            f"expected the MLflow run {run_id} of the training, found none. Next: restore it from a backup, or train again."
        ) from error
    return path
