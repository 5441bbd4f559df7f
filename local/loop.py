"""The whole loop, run as a user would: by triggering DAGs through Airflow's REST API.

Reads the environment of a running stack, `examples/`, and the references that tasks hand on. Writes
nothing itself but requests and feedback to the assistant. Returns `Findings`, which `local.summary`
prints and the end-to-end test checks. Fails with `LoopFailed`, naming the task and the end of its log,
when a DAG run that should succeed does not.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from local.airflow_api import AirflowClient
from local.progress import Progress
from local.settings import REPOSITORY

DAGS = ["sync_knowledge", "fine_tune", "promote_release", "watch_drift", "roll_back", "housekeeping"]
# Seconds measured on 2 cores; the first guess of the progress line.
EXPECTED = {
    "knowledge": 60.0, "fine-tuning": 130.0, "release": 25.0, "questions": 25.0,
    "requests": 20.0, "drift": 40.0, "retraining": 120.0,
}  # fmt: skip
CLIENT = "demo"
QUESTIONS = (
    "What does the pass statement do?",
    "What is a lambda expression?",
    "What is the nonlocal statement for?",
)


class LoopFailed(Exception):
    """A step of the loop failed; the text says which task, and ends with the end of its log."""

    exit_code = 1


@dataclass
class Findings:
    """What the loop found, step by step; every value comes from a manifest, the API or a DAG run."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    references: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    replays: dict[str, dict[str, Any]] = field(default_factory=dict)
    feedback: int = 0
    approved: str | None = None
    started: dict[str, Any] | None = None
    waiting: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Loop:
    """One pass through the loop."""

    def __init__(self, airflow: AirflowClient, environment: Mapping[str, str], progress: Progress) -> None:
        self.airflow = airflow
        self.environment = dict(environment)
        self.progress = progress
        self.assistant = environment["MILLRACE_ASSISTANT_URL"]
        key = environment.get("MILLRACE_ASSISTANT_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.findings = Findings()

    def run(self, requests_limit: int | None = None) -> Findings:
        """Run every step; return what was found."""
        self.airflow.wait_for_dags(DAGS)
        self._dag("knowledge", "sync_knowledge", {})
        tuned = self._dag("fine-tuning", "fine_tune", {})
        self._release(tuned)
        self._questions()
        since = self._requests(requests_limit)
        self._drift(since)
        self.findings.seconds = self.progress.taken
        return self.findings

    def _dag(self, step: str, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        self.progress.begin(step)
        run_id = f"demo__{self.stamp}"
        self.airflow.trigger(dag_id, run_id, conf)
        return self._follow(step, dag_id, run_id)

    def _follow(
        self, step: str, dag_id: str, run_id: str, watch: "Callable[[Tasks], None] | None" = None
    ) -> dict[str, Any]:
        """Wait for a DAG run, keep its references; raise LoopFailed when it failed."""

        def show(tasks: "Tasks") -> None:
            self.progress.show(f"{dag_id} {self._active(dag_id, run_id, tasks)}")
            if watch:
                watch(tasks)

        run = self.airflow.wait(dag_id, run_id, show, timeout=1800)
        tasks = self.airflow.tasks(dag_id, run_id)
        if run["state"] != "success":
            raise LoopFailed(self._failure(dag_id, run_id, tasks))
        self.findings.runs[step] = run
        self.findings.references[step] = self._references(dag_id, run_id, tasks)
        return run

    def _references(self, dag_id: str, run_id: str, tasks: "Tasks") -> dict[str, dict[str, Any]]:
        found = {}
        for task in tasks:
            reference = self.airflow.reference(dag_id, run_id, task["task_id"], task["map_index"])
            if reference and "manifest" in reference:
                name = task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else "")
                found[name] = reference
        return found

    def _active(self, dag_id: str, run_id: str, tasks: "Tasks") -> str:
        """Describe what runs now: the task, and how far it says it is."""
        running = [task for task in tasks if task["state"] in {"running", "awaiting_input", "deferred"}]
        ended = sum(task["state"] in {"success", "skipped"} for task in tasks)
        if not running:
            return f"{ended} of {len(tasks)} tasks done"
        task = running[0]
        text = str(task["task_id"]) + (f" ({len(running)} at once)" if len(running) > 1 else "")
        return text + self._stage_progress(dag_id, run_id, task)

    def _stage_progress(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        from tasks.errors import MillraceError
        from tasks.storage import Storage

        part = f"/part-{task['map_index']:04d}" if task["map_index"] >= 0 else ""
        run = f"s3://{self.environment.get('MILLRACE_S3_BUCKET', 'millrace')}/runs/{dag_id}/{run_id}"
        try:
            body = Storage(self.environment.get("MILLRACE_S3_ENDPOINT_URL")).get_bytes(
                f"{run}/{task['task_id']}{part}/progress.json"
            )
        except MillraceError:
            return ""  # most stages are too short to say how far they are
        value = json.loads(body)
        return f": {value['done']:g} of {value['total']:g} {value['unit']}"

    def _failure(self, dag_id: str, run_id: str, tasks: "Tasks") -> str:
        failed = [task for task in tasks if task["state"] == "failed"]
        if not failed:
            return f"expected {dag_id} {run_id} to succeed, found it failed without a failed task. Next: see {self._page(dag_id, run_id)}"
        log = self.airflow.log(dag_id, run_id, failed[0]).splitlines()[-25:]
        return (
            f"expected {dag_id} to succeed, found task {failed[0]['task_id']} failed. The end of its log:\n  "
            + "\n  ".join(log)
            + f"\nNext: see {self._page(dag_id, run_id)}"
        )

    def _page(self, dag_id: str, run_id: str) -> str:
        return f"{self.airflow.url}/dags/{dag_id}/runs/{run_id}"

    def _release(self, tuned: dict[str, Any]) -> None:
        """Follow the promotion that the candidate started; where a person is asked, approve as the one in charge would."""
        self.progress.begin("release")
        registered = self.findings.references["fine-tuning"].get("register")
        if registered is None:
            return  # the gate said no: nothing to release, the live release stays
        run_id = self._promotion_of(registered["manifest"], tuned["end_date"])
        self._follow("release", "promote_release", run_id, lambda tasks: self._approve(run_id, tasks))

    def _promotion_of(self, manifest: str, since: str) -> str:
        """Return the id of the promote_release run that was started by this candidate."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for run in self.airflow.runs("promote_release"):
                proposal = self.airflow.reference("promote_release", run["dag_run_id"], "propose")
                if proposal and proposal["facts"].get("candidate") == manifest:
                    return str(run["dag_run_id"])
            self.progress.show("promote_release: waiting for the candidate's event")
            time.sleep(0.7)
        raise LoopFailed(
            f"expected promote_release to start for the candidate registered after {since}, found no such run in 120 s"
        )

    def _approve(self, run_id: str, tasks: "Tasks") -> None:
        for task in tasks:
            if task["task_id"] == "approve" and task["state"] == "awaiting_input":
                # An answer in the second of the question can overtake the end of the asking process: Airflow 3.3.2
                # then takes the task for a killed one, and its next try asks again (and is answered again).
                time.sleep(2)
                self.airflow.answer_approval(
                    "promote_release", run_id, "approve", "Approve", "make demo approves its own candidate"
                )
                self.findings.approved = run_id

    def _questions(self) -> None:
        """Ask the released assistant; keep the answers with the documents used."""
        self.progress.begin("questions")
        self._ready()
        for number, question in enumerate(QUESTIONS, start=1):
            self.progress.show(f"asking: {number} of {len(QUESTIONS)}")
            body = {"model": "millrace", "messages": [{"role": "user", "content": question}], "max_tokens": 80}
            answer = httpx.post(f"{self.assistant}/v1/chat/completions", json=body, headers=self.headers, timeout=120)
            if answer.is_error:
                raise LoopFailed(f"expected the assistant to answer, found {answer.status_code} {answer.text[:300]}")
            self.findings.answers.append({"question": question, **answer.json()})

    def _ready(self) -> None:
        deadline = time.monotonic() + 120
        while (answer := httpx.get(f"{self.assistant}/readyz", timeout=10)).status_code != 200:
            if time.monotonic() > deadline:
                raise LoopFailed(f"expected the assistant to be ready, found {answer.text[:300]}")
            self.progress.show("assistant: loading the release")
            time.sleep(0.5)

    def _requests(self, limit: int | None) -> datetime:
        """Send the requests before and after the shift, and a reviewer's corrections; return the moment of the shift."""
        self.progress.begin("requests")
        self.findings.replays["before"] = self._replay("requests_before.jsonl", limit)
        shift = datetime.now(UTC)
        self.findings.replays["after"] = self._replay("requests_after.jsonl", limit)
        self.findings.feedback = self._correct(shift)
        return shift

    def _replay(self, name: str, limit: int | None) -> dict[str, Any]:
        self.progress.show(f"replay: {name}")
        command = [sys.executable, "-m", "tasks", "replay", f"examples/{name}", "--kind", "search", "--client", CLIENT]
        command += ["--limit", str(limit)] if limit else []
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LoopFailed(
                f"expected the replay of {name} to end, found exit code {done.returncode}:\n{done.stderr[-1500:]}"
            )
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def _correct(self, shift: datetime) -> int:
        """Send the reviewer's corrections for the requests served after the shift; return how many were taken."""
        from tasks.database import connect

        lines = (REPOSITORY / "examples" / "corrections.jsonl").read_text(encoding="utf-8").splitlines()
        corrections = {row["question"]: row for row in map(json.loads, lines)}
        with connect(self.environment["MILLRACE_DATABASE_URL"]) as connection:
            rows = connection.execute(
                "SELECT id, question FROM requests WHERE client = %s AND created_at >= %s AND question = ANY(%s)",
                (CLIENT, shift, list(corrections)),
            ).fetchall()
        for row in rows:
            correction = corrections[row["question"]]
            body = {
                "request_id": str(row["id"]), "rating": correction["rating"],
                "correction": correction["answer"], "reviewed_by": "demo reviewer",
            }  # fmt: skip
            feedback = httpx.post(f"{self.assistant}/v1/feedback", json=body, headers=self.headers, timeout=30)
            feedback.raise_for_status()
        return len(rows)

    def _drift(self, since: datetime) -> None:
        """Run the nightly check, follow the DAG run it started, and see whether a new candidate waits for a person.

        One window may act alone here (`agree`): the demo has one night.
        """
        self._dag("drift", "watch_drift", {"since": since.isoformat(), "agree": 1})
        facts = self.findings.references["drift"]["decide"]["facts"]
        if not facts["dag_id"]:
            return
        self.progress.begin("retraining")
        self.findings.started = self._follow("retraining", facts["dag_id"], facts["dag_run_id"])
        if registered := self.findings.references["retraining"].get("register"):
            run_id = self._promotion_of(registered["manifest"], self.findings.started["end_date"])
            if self._asks(run_id):
                self.findings.waiting = run_id
            else:
                self._follow("second release", "promote_release", run_id)

    def _asks(self, run_id: str) -> bool:
        """Say whether a promotion waits for a person, as its proposal says."""
        proposal = self.airflow.reference("promote_release", run_id, "propose")
        return bool((proposal or {}).get("facts", {}).get("needs_approval", True))


Tasks = list[dict[str, Any]]


def password(folder: Path) -> str:
    """Return the password of Airflow's user `admin`."""
    text = (folder / "airflow" / "passwords.json").read_text(encoding="utf-8")
    return str(json.loads(text)["admin"])
