"""The process launcher: a stage as a child process group of the Airflow worker.

Runs `python -m tasks STAGE ...` from the repository's root under `millrace_warden.py`, line by line into
the task's log. The stage sees the worker's environment without Airflow's own variables (they hold
Airflow's secrets, and no stage needs them). Fails as `millrace_outcome.py` says.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator
from millrace_outcome import REPOSITORY, MlflowRunLink, StageOutcome, command_line, run_uri, tell, words
from millrace_trace import trace_environment

if TYPE_CHECKING:
    from airflow.sdk import Context

WARDEN = Path(__file__).resolve().parent / "millrace_warden.py"
LAST_LINES = 3


class ProcessStage(StageOutcome, BaseOperator):
    """Runs one stage as a process of this machine."""

    template_fields = ("options", "part")
    template_fields_renderers = {"options": "json"}
    operator_extra_links = (MlflowRunLink(),)
    ui_color = "#e3eef9"
    module = "tasks"

    def __init__(
        self,
        *,
        stage: str,
        options: dict[str, Any] | None = None,
        part: str | None = None,
        on_refusal: Literal["fail", "skip"] = "fail",
        skip_when: str | None = None,
        grace: int = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.options = options or {}
        self.part = part
        self.on_refusal = on_refusal
        self.skip_when = skip_when
        self.grace = grace
        self.reference = None
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: "Context") -> dict[str, Any]:
        """Run the stage; return the reference of its verified manifest."""
        run = run_uri(context)
        arguments = command_line(self.stage, run, self.part, self.options)
        self.log.info("python -m %s %s", self.module, " ".join(arguments))
        last: deque[str] = deque(maxlen=LAST_LINES)
        started = datetime.now(UTC)
        self._process = self._start(f"{run}/{self.stage}/{self.part}", arguments, trace_environment(context))
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                text = line.rstrip("\n")
                last.append(text)
                tell(self.log, text)
            exit_code = self._process.wait()
        finally:
            self.on_kill()  # an execution timeout or any other exception must not leave the stage behind
        times = {"command_started_at": started.isoformat(), "command_ended_at": datetime.now(UTC).isoformat()}
        return self.conclude(context, exit_code, " | ".join(words(text) for text in last if text)[-1500:], times)

    def on_kill(self) -> None:
        """Ask the warden to stop the stage; it ends within the grace period, even after this process."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def _start(self, place: str, arguments: list[str], trace: dict[str, str]) -> "subprocess.Popen[str]":
        lock = Path(tempfile.gettempdir()) / f"millrace-{os.getuid()}" / hashlib.sha256(place.encode()).hexdigest()
        environment = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
        return subprocess.Popen(
            [sys.executable, str(WARDEN), str(os.getpid()), str(self.grace), str(lock)]
            + [sys.executable, "-m", self.module, *arguments],
            cwd=REPOSITORY,
            env=environment | trace | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # Airflow kills the task's group after 5 s; the warden must be able to take longer
        )
