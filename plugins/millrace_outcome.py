"""What both launchers share: the command of a stage, and what its end means to Airflow.

Reads the manifest of the stage in S3 and verifies the bytes it names; the exit code alone proves nothing
(a killed pod can be reported as a success). Returns `Manifest.reference()`, which becomes the XCom.

| end of the stage                        | the task                                            |
| 0, complete manifest, bytes verified    | succeeds (is skipped, where `skip_when` is a true fact) |
| 0 without it                            | fails, is tried again                               |
| 2 bad input or settings                 | fails at once                                       |
| 3 with a manifest that says `refused`   | is skipped, or fails at once (`on_refusal`); XCom is kept |
| 75, a signal, anything else             | fails, is tried again                               |
"""

import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context

REPOSITORY = Path(__file__).resolve().parent.parent
BAD_INPUT, REFUSED, TRY_AGAIN = 2, 3, 75
RETURN_VALUE = "return_value"
LEVEL = re.compile(r"^\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


def run_uri(context: "Context") -> str:
    """Return the run folder, `s3://BUCKET/runs/DAG_ID/RUN_ID`, the run id reduced to harmless characters."""
    run = context["dag_run"]
    bucket = os.environ.get("MILLRACE_S3_BUCKET") or "millrace"
    return f"s3://{bucket}/runs/{run.dag_id}/{re.sub(r'[^A-Za-z0-9._=-]', '_', run.run_id)}"


def command_line(stage: str, run: str, part: str | None, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `python -m tasks`. An option that rendered empty is not given: its default holds."""
    arguments = [stage, "--run", run]
    if part is not None:
        arguments += ["--part", part]
    for name, value in options.items():
        if value is not None and str(value).strip() not in {"", "None"}:
            arguments.append(f"--{name.replace('_', '-')}={value}")
    return arguments


def tell(log: Any, text: str) -> None:
    """Put a line of a stage's log, text or JSON, into the task's log, at its own level."""
    level = LEVEL.match(text)
    name = level.group(1) if level else str(_line(text).get("level", "INFO"))
    log.log(logging.getLevelNamesMapping().get(name, logging.INFO), "%s", text)


def words(text: str) -> str:
    """Return what a line of a stage's log says, without the fields of a JSON line."""
    line = _line(text)
    return f"{line['level']} {line['message']}" if {"level", "message"} <= line.keys() else text


def _line(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {}
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


class MlflowRunLink(BaseOperatorLink):
    """The button "MLflow run" on a task whose stage recorded one."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address, or nothing where the stage has no MLflow run."""
        run = (getattr(operator, "reference", None) or {}).get("facts", {}).get("mlflow_run_id")
        server = os.environ.get("MILLRACE_MLFLOW_TRACKING_URI", "").rstrip("/")
        return f"{server}/#/runs/{run}" if run and server.startswith("http") else ""


class StageOutcome:
    """Mixed into both operators: it holds what a stage was asked, and judges how it ended."""

    stage: str
    part: str | None
    options: dict[str, Any]
    on_refusal: Literal["fail", "skip"]
    skip_when: str | None
    reference: dict[str, Any] | None
    outlets: list[Any]

    def conclude(
        self, context: "Context", exit_code: int, last_words: str = "", times: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the reference of the verified manifest, or raise what the end of the stage means.

        `times` says when the command began and ended, where the launcher saw it; it is added to the reference,
        so that what Airflow adds to the stages' own time can be measured.
        """
        words = f" Its last words: {last_words}" if last_words else ""
        if exit_code == BAD_INPUT:
            raise AirflowFailException(f"{self.stage}: bad input or settings; a retry cannot help.{words}")
        if exit_code == TRY_AGAIN:
            raise AirflowException(f"{self.stage} asks to be tried again (exit code 75).{words}")
        if exit_code not in {0, REFUSED}:
            raise AirflowException(f"{self.stage} ended with exit code {exit_code}.{words}")
        self.reference = self.verified("complete" if exit_code == 0 else "refused", context) | dict(times or {})
        return self._hand_on(context, self.reference)

    def verified(self, status: str, context: "Context", part: str | None = None) -> dict[str, Any]:
        """Return the reference of the manifest (or of that of another part) after checking its status and the bytes
        it names."""
        if importlib.util.find_spec("tasks") is None:  # Airflow knows dags/ and plugins/, not the repository's root
            sys.path.append(str(REPOSITORY))
        from tasks.contracts import manifest_uri
        from tasks.errors import ManifestError
        from tasks.storage import Storage

        uri = manifest_uri(run_uri(context), self.stage, part or self.part)
        storage = Storage(os.environ.get("MILLRACE_S3_ENDPOINT_URL") or None)
        try:
            manifest = storage.read_manifest(uri)
            found = "no manifest" if manifest is None else f"status {manifest.status}: {manifest.reason}"
            if manifest is None or manifest.status != status:
                raise AirflowException(
                    f"expected {self.stage} to leave a manifest with status {status} at {uri}, found {found}. "
                    "Next: it is tried again; see the log above for what stopped it."
                )
            for artifact in manifest.outputs.values():
                storage.verify(artifact)
        except ManifestError as error:
            raise AirflowException(f"{self.stage} did not leave what it claims: {error}") from error
        return manifest.reference()

    def _hand_on(self, context: "Context", reference: dict[str, Any]) -> dict[str, Any]:
        """Return the reference; or push it and raise, where the stage's word is to skip or to stop."""
        facts = reference["facts"]
        if reference["status"] == "refused" or (self.skip_when and facts.get(self.skip_when)):
            # A raised exception loses the return value, and with it the reason: push it first.
            context["ti"].xcom_push(key=RETURN_VALUE, value=reference)
        if reference["status"] == "refused":
            text = f"{self.stage} refused: {reference['reason']}"
            raise (AirflowSkipException if self.on_refusal == "skip" else AirflowFailException)(text)
        if self.skip_when and facts.get(self.skip_when):
            raise AirflowSkipException(f"{self.stage}: nothing to do ({self.skip_when}). See {reference['manifest']}")
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {
                name: reference[name] for name in ("manifest", "sha256", "stage", "counts")
            }
        return reference
