"""`python -m tasks doctor` as a person and a pod call it: options, exit codes, JSON, and the images it runs in."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

import pytest

from tasks.settings import REPOSITORY

from .conftest import LEAST

pytestmark = [pytest.mark.integration]
# Makes packages look as if they were not installed, then runs the command.
HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
import importlib.util as util
find, util.find_spec = util.find_spec, lambda name, *a: None if name.split(".")[0] in HIDDEN else find(name, *a)
sys.meta_path.insert(0, Hidden())
from tasks.__main__ import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""


def doctor(environment: dict[str, str], *arguments: str, hidden: set[str] | None = None) -> Any:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "KUBECONFIG"))}
    start = ["-m", "tasks", "doctor"] if hidden is None else ["-c", f"HIDDEN = {hidden!r}{HIDING}"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=REPOSITORY, env=base | environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def env(stack: Any) -> dict[str, str]:
    from tasks.database import migrate

    migrate(stack.database_url)
    return dict(stack.env)


def lines(text: str) -> dict[str, str]:
    """Return the status of each check."""
    found = re.findall(r"^(ok|mend|skip)  +(.+?)(?:  |$)", text, re.MULTILINE)
    return {name: status for status, name in found}


def test_all_is_well(env: dict[str, str]) -> None:
    done = doctor(env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "12 ok"
    assert set(lines(done.stdout).values()) == {"ok"}


def test_json_has_every_line_and_the_exit_code(env: dict[str, str]) -> None:
    done = doctor(env, "--short", "--format", "json", "--free-gb", "1e9")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert (found["exit_code"], found["ground"]) == (2, "process")
    disk = next(each for each in found["findings"] if each["check"] == "disk")
    assert (disk["status"], disk["code"]) == ("mend", 2)
    assert "expected 1e+09 GB of free disk space" in disk["found"] and "point MILLRACE_CACHE_DIR" in disk["next"]
    assert all(each["seconds"] >= 0 and set(each) == set(disk) for each in found["findings"])


def test_a_service_that_is_away_ends_with_75_and_a_wrong_setting_with_2(env: dict[str, str]) -> None:
    away = {"MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = doctor(env | away, "--short")
    assert done.returncode == 75, done.stdout
    assert lines(done.stdout)["registry"] == "mend" and lines(done.stdout)["bucket"] == "ok"
    assert doctor(env | away | {"MILLRACE_S3_BUCKET": "no-such-bucket"}, "--short").returncode == 2


def test_no_password_is_printed_whatever_is_wrong(env: dict[str, str]) -> None:
    secret = "pass-w0rd-%20"
    wrong = {"MILLRACE_DATABASE_URL": f"postgresql://millrace:{secret}@127.0.0.1:9/x", "AWS_SECRET_ACCESS_KEY": secret}
    wrong["MILLRACE_MLFLOW_TRACKING_URI"] = f"http://admin:{secret}@127.0.0.1:9"
    for form in ("text", "json"):
        done = doctor(env | wrong, "--format", form)
        assert done.returncode == 2
        assert "w0rd" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_wrong_settings_are_told_and_nothing_else_is_called_ok() -> None:
    done = doctor({"MILLRACE_DATABSE_URL": "x"})
    found = lines(done.stdout)
    assert done.returncode == 2
    assert found.pop("settings") == "mend" and found.pop("versions") == "ok"
    assert set(found.values()) == {"skip"}
    assert "Did you mean 'MILLRACE_DATABASE_URL'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--grund", "process"], "Did you mean 'ground'"),
        (["--ground", "moon"], "expected a ground (process, compose, kubernetes)"),
        (["--format", "xml"], "text or json"),
        (["--gpus", "many"], "expected numbers"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], told: str) -> None:
    done = doctor({}, *arguments)
    assert done.returncode == 2 and told in done.stderr


def test_the_help_shows_every_option() -> None:
    from tasks.doctor.command import OPTIONS

    text = doctor({}, "--help").stdout
    assert all(f"`--{name.replace('_', '-')}" in text for name in (*OPTIONS, "short"))


def test_in_the_stage_image_the_cluster_was_not_checked(env: dict[str, str]) -> None:
    done = doctor(env, "--ground", "kubernetes", hidden={"kubernetes"})
    found = lines(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["database"] == found["registry"] == "ok"
    assert {found[name] for name in ("cluster", "permissions", "gpu nodes", "gpu quota")} == {"skip"}
    assert done.stdout.count("the package kubernetes is not installed here") == 4


def pinned(lock: str) -> set[str]:
    text = (REPOSITORY / "requirements" / lock).read_text(encoding="utf-8")
    return {name.lower() for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def test_on_airflows_side_it_runs_with_the_packages_of_airflows_image(env: dict[str, str]) -> None:
    absent = pinned("local.txt") - pinned("airflow.txt")
    assert {"mlflow", "pgvector", "torch"} <= absent
    modules = metadata.packages_distributions()
    hidden = {name for name, owners in modules.items() if {owner.lower() for owner in owners} <= absent}
    services = {name: value for name, value in env.items() if "DATABASE" not in name and "MLFLOW" not in name}
    done = doctor(services, "--ground", "kubernetes", hidden=hidden)
    found = lines(done.stdout)
    assert found["settings"] == found["bucket"] == found["clock"] == "ok", done.stdout + done.stderr
    assert found["cluster"] == "skip" and "set KUBECONFIG" in done.stdout
    assert "database" not in found  # the pods' secret knows it; the pod asks


class Hanging(BaseHTTPRequestHandler):
    """An MLflow that registers a model, and then hangs over its version; it remembers what it was asked to delete."""

    made, release, deleted = threading.Event(), threading.Event(), list[str]()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if "model-versions" in self.path:
            self.made.set()
            self.release.wait(30)
        if self.command == "DELETE":
            self.deleted.append(json.loads(body)["name"])
        answer = json.dumps({"registered_model": {"name": json.loads(body)["name"]}} if body else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_doctor_that_is_stopped_takes_back_what_it_made(number: int, env: dict[str, str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hanging.made.clear()
    Hanging.release.clear()
    Hanging.deleted.clear()
    mlflow = {"MILLRACE_MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks", "doctor", "--short"],
        cwd=REPOSITORY, env=os.environ | env | mlflow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert Hanging.made.wait(60)
    process.send_signal(number)
    _out, words = process.communicate(timeout=60)
    Hanging.release.set()
    server.shutdown()
    server.server_close()
    assert process.returncode == 75
    assert "what its checks had made was removed" in words
    assert [name.startswith("millrace-doctor-") for name in Hanging.deleted] == [True]


def test_settings_that_name_no_server_are_enough_to_be_refused() -> None:
    done = doctor(LEAST, "--short")
    assert done.returncode in {2, 75}
    assert lines(done.stdout)["database"] == "mend"
