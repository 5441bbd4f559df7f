"""`nightly_check`: the three stages of watch_drift over a night of 100,000 requests, each in a process of its own.

Has a Postgres, S3 and MLflow of its own (the embedded stack's). The requests are made up (topics as clusters of random
vectors, gamma and beta figures, five wordings a hundred); a tenth of the night is about new topics that find nothing, so
that everything which a drifting night does is done. The memory is the largest of a stage's process.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy

from benchmarks.result import Result

REQUESTS, REFERENCE, DIMENSIONS = 100_000, 30_000, 384
SECONDS, GIGABYTES = 60.0, 2.0
STAGES = ("collect_requests", "report_drift", "decide")
_WORDS = (
    "how",
    "does",
    "the",
    "statement",
    "function",
    "class",
    "value",
    "import",
    "loop",
    "list",
    "name",
    "return",
    "error",
)


def nightly_check() -> Result:
    """Seconds and memory of the nightly check over 100,000 requests."""
    from local.stack import EmbeddedStack

    with (
        tempfile.TemporaryDirectory() as place,
        EmbeddedStack(Path(place) / "stack", parts=("postgres", "s3", "mlflow"), ports="free") as stack,
    ):
        environment = {**os.environ, **stack.env, "MILLRACE_CODE_REVISION": "benchmark"}
        _stage(environment, "migrate")
        now = datetime.now(UTC)
        _fill(stack.env["MILLRACE_DATABASE_URL"], now)
        run = f"s3://{stack.env.get('MILLRACE_S3_BUCKET', 'millrace')}/runs/watch_drift/benchmark"
        since = (now - timedelta(hours=24)).isoformat()
        options = {"collect_requests": [f"--since={since}"], "decide": ["--agree=1"]}
        taken = {name: _stage(environment, name, f"--run={run}", *options.get(name, [])) for name in STAGES}
    seconds = sum(item[0] for item in taken.values())
    gigabytes = max(item[1] for item in taken.values())
    return Result(
        figure=f"{seconds:.1f} s, {gigabytes:.2f} GB",
        bound=f"{SECONDS:g} s, {GIGABYTES:g} GB",
        holds=seconds <= SECONDS and gigabytes <= GIGABYTES,
        details=[
            f"{REQUESTS} requests of a night with vectors of {DIMENSIONS}, {REFERENCE} before it",
            *(f"{name}: {spent:.1f} s, {memory:.2f} GB" for name, (spent, memory) in taken.items()),
        ],
    )


def _stage(environment: dict[str, str], *command: str) -> tuple[float, float]:
    """Run a command of `tasks`; return its seconds and the most memory of its process in GB."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tasks", *command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - begun, usage.ru_maxrss * 1024 / 1e9


def _fill(url: str, now: datetime) -> None:
    """Write the requests before the night, and those of it."""
    from tasks.database import connect

    names = (
        "id", "created_at", "kind", "client", "question", "answer", "best_score", "latency_ms", "prompt_tokens",
        "completion_tokens", "grounded", "embedding",
    )  # fmt: skip
    with connect(url) as connection, connection.cursor() as cursor:
        copying = cursor.copy(f"COPY requests ({', '.join(names)}) FROM STDIN (FORMAT BINARY)".encode())
        with copying as copy:
            copy.set_types(
                ["uuid", "timestamptz", "text", "text", "text", "text", "real", "real", "integer", "integer", "real", "vector"]
            )  # fmt: skip
            for row in _rows(now):
                copy.write_row(row)


def _rows(now: datetime) -> Iterator[tuple[Any, ...]]:
    random = numpy.random.default_rng(1)
    topics = random.standard_normal((24, DIMENSIONS))
    for number in range(REFERENCE + REQUESTS):
        tonight = number >= REFERENCE
        new = tonight and random.random() < 0.1
        vector = topics[random.integers(20, 24) if new else random.integers(20)] + 1.2 * random.standard_normal(
            DIMENSIONS
        )
        vector /= numpy.linalg.norm(vector)
        back = 23.9 * (1 - (number - REFERENCE) / REQUESTS) if tonight else 24 + 24 * 6 * (1 - number / REFERENCE)
        question = " ".join(random.choice(_WORDS, random.integers(5, 14))) + f" {number % 5_000}?"
        yield (
            uuid.UUID(int=int(random.integers(2**62)) * 2**60 + number),
            now - timedelta(hours=back),
            "chat",
            f"team {random.integers(20)}",
            question,
            "an answer " * int(random.integers(3, 40)),
            float((0.35 if new else 0.6) + 0.06 * random.standard_normal()),
            float(random.gamma(8, 100)),
            int(random.integers(200, 600)),
            int(random.integers(10, 120)),
            float(random.beta(11, 4)),
            vector.astype(numpy.float32),
        )
