"""A tiny real stage, started as launchers start `tasks`: it writes to S3 and ends as its option `end` says."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.contracts import Manifest, stage_uri
from tasks.options import parse_options
from tasks.storage import Storage


def manifest(stage: str, run: str, part: str | None, status: str, end: str, **facts: Any) -> None:
    """Write an output and the manifest that names it."""
    storage = Storage(os.environ["MILLRACE_S3_ENDPOINT_URL"])
    now = datetime.now(UTC)
    output = storage.put_bytes(f"{stage_uri(run, stage, part)}/out.txt", b"real bytes", rows=1)
    storage.write_manifest(
        Manifest(
            stage=stage, part=part, run=run, status=status, reason="too few rows" if status == "refused" else None,
            fingerprint=end, outputs={"out": output}, counts={"rows": 1},
            facts={"parts": ["0000", "0001"], "noop": end == "noop", "mlflow_run_id": "abc", **facts},
            code_revision="test", host=platform.node(), started_at=now, ended_at=now,
        )
    )  # fmt: skip
    if end == "tampered":
        storage.put_bytes(output.uri, b"other bytes")


def linger(pids: Path) -> None:
    """Start a child here and one in a session of its own, tell their ids, and wait to be stopped."""
    children = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=elsewhere)
        for elsewhere in (False, True)
    ]
    lines = "\n".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children)))
    temporary = pids.with_suffix(".partial")
    temporary.write_text(lines)
    temporary.replace(pids)
    time.sleep(600)


def work(seconds: int) -> None:
    """Say every second how far it is; asked to stop, end as a stage that saved what it has."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    for second in range(seconds):
        print(f"second {second} of {seconds}", flush=True)
        time.sleep(1)


def fill_memory() -> None:
    """Take memory until somebody stops it."""
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1 << 20) * 64))


def main(arguments: list[str]) -> int:
    """Behave as asked."""
    stage, options = arguments[0], parse_options(arguments[1:])
    end, run = options.get("end", "complete"), options["run"]
    print("2026-11-20 10:00:00,000 WARNING fixture a line of its log", file=sys.stderr)
    print(f"trace={os.environ.get('TRACEPARENT')} {os.environ.get('BAGGAGE')}", file=sys.stderr)
    work(int(options.get("seconds", "0")))
    if end == "memory":
        fill_memory()
    if end in {"complete", "tampered", "noop"}:
        facts = json.loads(options.get("facts", "{}"))
        manifest(stage, run, options.get("part"), "complete", end, **facts)
    if end == "refused":
        manifest(stage, run, None, "refused", end)
        return 3
    if end == "environment":
        print(sorted(name for name in os.environ if "AIRFLOW" in name))
        manifest(stage, run, None, "complete", end)
    if end == "linger":
        pids = Path(options["pids"])

        def save(_number: int, _frame: object) -> None:
            time.sleep(0.5)  # as long as saving takes
            pids.with_suffix(".saved").touch()
            print("saved a checkpoint", flush=True)
            sys.exit(75)

        signal.signal(signal.SIGTERM, signal.SIG_IGN if options.get("deaf") else save)
        linger(pids)
    if end.startswith("code-"):
        print(f"OptionError: expected better, found {end}", file=sys.stderr)
        return int(end.removeprefix("code-"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
