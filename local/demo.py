"""`make demo`: start the embedded stack, run the whole loop through Airflow, print what was found.

Reads the stack's settings (`MILLRACE_LOCAL_*`). Writes `demo-summary.txt`, `demo.json` (every reference
and time) and `demo-times.json` in the stack's folder. The stack stays up. Exit code 1 when a step
fails, 2 for bad input, with one message each.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from local.airflow_api import AirflowClient, AirflowError
from local.errors import LocalError
from local.loop import EXPECTED, Loop, LoopFailed, password
from local.progress import Progress
from local.settings import REPOSITORY, load_settings, merged_environment, read_environment_file
from local.summary import render


def main(arguments: list[str]) -> int:
    """Run the demo; return the exit code."""
    if arguments:
        print(f"expected no arguments, found {' '.join(arguments)}. Next: make demo", file=sys.stderr)
        return 2
    try:
        return demo()
    except (LocalError, LoopFailed, AirflowError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return int(error.exit_code)


def demo() -> int:
    """Bring the stack up, run the loop, print and keep the summary."""
    from local.__main__ import main as local_command

    begun = time.monotonic()
    # Nobody sits at the demo: what its verdict calls better is released. A stack that runs already keeps its own way.
    if "MILLRACE_AUTO_PROMOTE" not in merged_environment(dict(os.environ), read_environment_file(REPOSITORY / ".env")):
        os.environ["MILLRACE_AUTO_PROMOTE"] = "default"
    code = local_command(["up"])
    if code:
        return code
    settings = load_settings(merged_environment(dict(os.environ), read_environment_file(REPOSITORY / ".env")))
    folder = settings.folder
    environment = read_environment_file(folder / "env")
    os.environ.update(environment)
    address = f"http://127.0.0.1:{settings.ports['airflow']}"
    progress = Progress(EXPECTED, folder / "demo-times.json")
    airflow = AirflowClient(address, "admin", password(folder))
    findings = Loop(airflow, dict(os.environ), progress).run()
    progress.finish()
    seconds = time.monotonic() - begun
    text = render(findings, places(folder, address, environment), seconds)
    (folder / "demo-summary.txt").write_text(text + "\n", encoding="utf-8")
    kept = {**dataclasses.asdict(findings), "seconds_by_step": findings.seconds, "seconds": seconds}
    (folder / "demo.json").write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
    print("\n" + text)
    return 0


def places(folder: Path, airflow: str, environment: dict[str, str]) -> dict[str, str]:
    """Return where a person looks next."""
    if folder.is_relative_to(REPOSITORY):
        folder = folder.relative_to(REPOSITORY)
    return {
        "Airflow": f"{airflow}   user admin, password in {folder / 'airflow' / 'passwords.json'}",
        "MLflow": environment["MILLRACE_MLFLOW_TRACKING_URI"],
        "assistant": f"{environment['MILLRACE_ASSISTANT_URL']}/v1/chat/completions",
        "stop it": "make down   (data stays in " + str(folder) + "; to remove it: make clean)",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
