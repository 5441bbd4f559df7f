"""Checks of a Compose installation, from the machine whose engine runs it.

Asks `docker compose` in the repository's root, so COMPOSE_FILE, COMPOSE_PROJECT_NAME and COMPOSE_ENV_FILES choose the
installation as they do for every other command. What only the containers know (addresses, passwords) the doctor is asked
inside one of them, where stages run. Changes nothing.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tasks.doctor.examine import NotChecked, Place
from tasks.doctor.report import Finding, from_json, mend, ok
from tasks.errors import BadInput, ServiceUnavailable
from tasks.settings import REPOSITORY

WORKER = "airflow-scheduler"
COMMAND = ["python", "-m", "tasks", "doctor", "--ground", "process", "--format", "json"]
SECONDS = 120.0
UP = "docker compose up --build --wait"


def outside() -> bool:
    """Say whether this is the machine with the engine, not one of the containers."""
    return shutil.which("docker") is not None or not Path("/.dockerenv").exists()


def engine(place: Place) -> str:
    """Ask the container engine and its Compose for their versions."""
    if shutil.which("docker") is None:
        raise BadInput("expected `docker` on the PATH, found none. Next: install Docker and its Compose plugin.")
    server = _docker("version", "--format", "{{.Server.Version}}")
    return f"Docker {server}, Compose {_docker('compose', 'version', '--short')}"


def values(place: Place) -> str:
    """Ask whether every value that docker-compose.yml has no default for is set."""
    done = _run("compose", "config", "--quiet")
    if done.returncode:
        raise BadInput(
            f"expected docker-compose.yml with all its values, found: {_last(done.stderr)}. "
            "Next: sh docker/compose/make_env.sh >> .env"
        )
    return "every value is set"


def containers(place: Place) -> list[Finding]:
    """Return a finding for each service: servers are healthy, jobs have ended well."""
    done = _run("compose", "ps", "--all", "--format", "json")
    if done.returncode:
        raise BadInput(f"expected `docker compose ps` to list the services, found: {_last(done.stderr)}. Next: {UP}")
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    if not found:
        raise NotChecked(f"no container of this installation was made yet; `{UP}`")
    return [_of(each) for each in sorted(found, key=lambda each: str(each["Service"]))]


def _of(service: dict[str, Any]) -> Finding:
    name, state, health = service["Service"], service["State"], service["Health"]
    told = f"{state}, {health}" if health else f"{state} ({service['ExitCode']})"
    if health == "healthy" or (state == "exited" and service["ExitCode"] == 0 and not health):
        return ok(f"container {name}", told)
    error = BadInput(f"expected {name} to be healthy, found {told}. Next: docker compose logs --tail 50 {name}")
    return mend(f"container {name}", error)


def inside(place: Place) -> list[Finding]:
    """Ask the doctor in the container where stages run; return its findings after one of our own."""
    done = _run("compose", "exec", "--no-TTY", WORKER, *COMMAND, seconds=SECONDS)
    answer = from_json(done.stdout)
    if answer is None:
        raise ServiceUnavailable(
            f"expected the doctor to answer in {WORKER}, found: {_last(done.stderr or done.stdout)}. Next: {UP}"
        )
    facts, findings = answer
    revision = str(facts.get("code_revision", "unknown"))[:12]
    first = ok("in the container", f"{WORKER} answers (code {revision})")
    return [first, *(Finding(**{**vars(each), "check": f"in it: {each.check}"}) for each in findings)]


def _run(*arguments: str, seconds: float = 15.0) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["docker", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=seconds
        )
    except FileNotFoundError as error:
        raise NotChecked("there is no `docker` on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceUnavailable(
            f"expected `docker {' '.join(arguments[:2])}` to answer, found none in {seconds:g} s. Next: see the Docker daemon."
        ) from error


def _docker(*arguments: str) -> str:
    done = _run(*arguments)
    if done.returncode:
        words = _last(done.stderr)
        kind = ServiceUnavailable if "daemon" in words.lower() else BadInput
        asked = f"docker {' '.join(arguments[:2])}"
        raise kind(f"expected `{asked}` to answer, found: {words}. Next: start Docker; install its Compose plugin.")
    return done.stdout.strip()


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
