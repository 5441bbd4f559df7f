"""A Compose project of its own: its values, its ports, its volumes; nothing of it is left when it is closed."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from local.checks import free_port_base
from local.settings import REPOSITORY, read_environment_file

NAME = "millrace-test"
SERVERS = (
    "postgres", "s3", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "assistant",
    "metrics",
)  # fmt: skip
JOBS = ("prepare", "models")


def missing() -> str | None:
    """Return why the tests cannot run here, or None."""
    if shutil.which("docker") is None:
        return "needs docker"
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, check=False)
    if done.returncode:
        return "needs Docker Compose v2"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return f"needs a Docker engine: {done.stderr.strip()[:120]}" if done.returncode else None


def made_values() -> str:
    """Return what make_env.sh prints: what a new user puts into `.env`."""
    script = REPOSITORY / "docker" / "compose" / "make_env.sh"
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True).stdout


class Project:
    """docker-compose.yml under another name, with values of its own."""

    def __init__(self, folder: Path) -> None:
        self.env_file = folder / "compose.env"
        base = free_port_base()
        ports = {"AIRFLOW_PORT": base, "MLFLOW_PORT": base + 1, "ASSISTANT_PORT": base + 2, "METRICS_PORT": base + 3}
        chosen = {**ports, "IMAGE_TAG": "test", "MILLRACE_RECIPE": "smoke_cpu", "MILLRACE_DRIFT_MIN_REQUESTS": 40}
        # Where an engine's bridge has no way to a package index, TEST_BUILD_NETWORK=host may have one.
        chosen["BUILD_NETWORK"] = os.environ.get("TEST_BUILD_NETWORK", "default")
        lines = "".join(f"{name}={value}\n" for name, value in chosen.items())
        self.env_file.write_text(made_values() + lines, encoding="utf-8")
        self.values = read_environment_file(self.env_file)
        self.airflow = f"http://127.0.0.1:{ports['AIRFLOW_PORT']}"
        self.metrics = f"http://127.0.0.1:{ports['METRICS_PORT']}/metrics"
        self.assistant = f"http://127.0.0.1:{ports['ASSISTANT_PORT']}"

    def compose(self, *words: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` in the repository's root, without variables of whoever runs the tests."""
        command = ["docker", "compose", "--project-name", NAME, "--env-file", str(self.env_file), *words]
        keep = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "XDG_RUNTIME_DIR")
        env = {name: os.environ[name] for name in keep if name in os.environ}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def states(self) -> dict[str, dict[str, Any]]:
        """Return what `docker compose ps` says of each service."""
        lines = self.compose("ps", "--all", "--format", "json").stdout.splitlines()
        return {found["Service"]: found for found in map(json.loads, lines)}

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        done = subprocess.run(
            ["docker", "inspect", f"{NAME}-{service}-1"], capture_output=True, text=True, check=True
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def restart(self, service: str, seconds: float = 180) -> None:
        """Restart a container; return when it is healthy again."""
        before = self.inspect(service)["State"]["StartedAt"]
        self.compose("restart", service)
        self.wait_healthy(service, seconds)
        assert self.inspect(service)["State"]["StartedAt"] != before

    def wait_healthy(self, service: str, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while (state := self.inspect(service)["State"])["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, f"{service} did not get healthy again: {state}"
            time.sleep(0.5)

    def query(self, database: str, statement: str) -> list[str]:
        """Return the rows of a query, asked inside Postgres' container."""
        words = ["psql", "-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1", "-Atc", statement]
        return self.compose("exec", "-T", "postgres", *words).stdout.splitlines()

    def left(self) -> list[str]:
        """Return what stands of the project: containers, volumes, networks."""
        found = []
        for kind, name in (("container", "{{.Names}}"), ("volume", "{{.Name}}"), ("network", "{{.Name}}")):
            listing = ["docker", kind, "ls", "--format", name, "--filter", f"label=com.docker.compose.project={NAME}"]
            listing += ["--all"] if kind == "container" else []
            found += subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
        return found
