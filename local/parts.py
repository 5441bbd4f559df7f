"""The parts of the embedded stack as a table: what each needs, how it is started, when it is healthy.

A *server* runs until the stack stops; a *job* runs once at every start and ends. To add a part, add a row.
Reads nothing but the settings and the secrets it is given; starts nothing.
"""

import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from local import postgres
from local.environment import BUCKET, PROBE, ROLE, database_url, load_secrets
from local.errors import LocalError
from local.health import Health, airflow_component, answers, postgres_ready, s3_readable
from local.settings import LocalSettings, read_environment_file


@dataclass(frozen=True)
class Part:
    """One row of the table. `env` is added to what all parts inherit (`environment.inherited`)."""

    name: str
    needs: tuple[str, ...]
    command: list[str]
    env: dict[str, str]
    health: Health | None = None
    ports: dict[str, int] = field(default_factory=dict)
    address: str = ""
    cwd: Path | None = None
    before: Callable[[], None] | None = None
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 10.0

    @property
    def kind(self) -> str:
        """`server` or `job`."""
        return "server" if self.health else "job"

    def fingerprint(self) -> str:
        """Return a digest of what the process would be started with: same digest, same process."""
        text = json.dumps([self.command, sorted(self.env.items())])
        return hashlib.sha256(text.encode()).hexdigest()


def table(settings: LocalSettings) -> list[Part]:
    """Return all parts in order of dependency. `write_environment` has to have been called before."""
    folder, ports = settings.folder, settings.ports
    kept = load_secrets(folder)
    stage = read_environment_file(folder / "env")
    airflow = {**stage, **read_environment_file(folder / "airflow.env")}
    credentials = {"AWS_ACCESS_KEY_ID": kept["s3_access_key"], "AWS_SECRET_ACCESS_KEY": kept["s3_secret_key"]}
    credentials["AWS_REGION"] = credentials["AWS_DEFAULT_REGION"] = "us-east-1"
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    data = folder / "postgres"
    client = {"PGHOST": "127.0.0.1", "PGPORT": str(ports["postgres"]), "PGUSER": ROLE}
    client["PGPASSWORD"] = kept["postgres_password"]
    mlflow = {
        **{name: value for name, value in stage.items() if not name.startswith("MILLRACE_")},
        **credentials,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_BACKEND_STORE_URI": database_url(settings, kept, "mlflow", "+psycopg2"),
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    python = [sys.executable, "-m"]

    def job(name: str, needs: tuple[str, ...], env: dict[str, str]) -> Part:
        return Part(name, needs, [*python, "local.jobs", name], env)

    def component(name: str, command: str, key: str, heartbeat: str) -> Part:
        health = airflow_component(ports["airflow"], key, heartbeat)
        # airflow-api runs as long as they do: they start together, and their health is read from it.
        return Part(name, ("airflow-migrate",), [*python, "airflow", *command.split()], airflow, health)

    return [
        job("initdb", (), {"MILLRACE_JOB_DATA": str(data), "PGPASSWORD": kept["postgres_password"]}),
        Part(
            "postgres",
            ("initdb",),
            postgres.server_command(data, ports["postgres"]),
            {},
            postgres_ready(ports["postgres"]),
            {"postgres": ports["postgres"]},
            f"127.0.0.1:{ports['postgres']}",
            before=lambda: postgres.clear_stale_pid(data),
            stop_signal=signal.SIGINT,  # "fast": ends the connections; SIGTERM would wait for them
            stop_seconds=20.0,
        ),
        s3_part(settings, credentials),
        job("databases", ("postgres",), client),
        job("bucket", ("s3",), {**credentials, "MILLRACE_JOB_S3_URL": endpoint, "MILLRACE_JOB_BUCKET": BUCKET}),
        job("mlflow-migrate", ("databases",), client),
        Part(
            "mlflow",
            ("mlflow-migrate", "bucket"),
            [*python, "local.mlflow_server", str(ports["mlflow"])],
            mlflow,
            answers(ports["mlflow"], "/health"),
            {"mlflow": ports["mlflow"]},
            f"http://127.0.0.1:{ports['mlflow']}",
            cwd=folder,
        ),
        job("airflow-migrate", ("databases",), {**airflow, **client}),
        Part("millrace-migrate", ("databases",), [*python, "tasks", "migrate"], stage),
        Part(
            "airflow-api",
            ("airflow-migrate",),
            [*python, "airflow", "api-server", "--workers", "1"],
            airflow,
            answers(ports["airflow"], "/api/v2/monitor/health"),
            {"airflow": ports["airflow"]},
            f"http://127.0.0.1:{ports['airflow']}",
        ),
        component("airflow-scheduler", "scheduler --skip-serve-logs", "scheduler", "latest_scheduler_heartbeat"),
        component("airflow-dag-processor", "dag-processor", "dag_processor", "latest_dag_processor_heartbeat"),
        component("airflow-triggerer", "triggerer --skip-serve-logs", "triggerer", "latest_triggerer_heartbeat"),
        Part(
            "assistant",
            ("millrace-migrate", "bucket"),
            [*python, "tasks", "serve", "--host", "127.0.0.1", "--port", str(ports["assistant"])],
            {name: value for name, value in stage.items() if name != "MILLRACE_SIGNING_KEY"},
            answers(ports["assistant"], "/healthz"),
            {"assistant": ports["assistant"]},
            f"http://127.0.0.1:{ports['assistant']}",
        ),
    ]


def s3_part(settings: LocalSettings, env: dict[str, str]) -> Part:
    """Return the row of SeaweedFS: every port set, everything that is not needed closed."""
    data = settings.folder / "s3"
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=.", f"-bucket={BUCKET}"]
    for name, port in settings.s3_ports().items():
        server, dot, kind = name.partition(".")
        options.append(f"-{server}.port{dot}{kind}={port}")
    # -disableHttp: the filer behind S3 would hand out files without credentials.
    options += ["-disableHttp", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # SeaweedFS divides the free disk into volumes of this size and gives a bucket several at once: with large ones, a
    # disk with a few GB left had none for a new bucket, and every write was answered 500.
    options += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    # Sockets relative to the folder it runs in: Unix socket paths are limited to about 100 characters.
    options += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]

    def before() -> None:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        # It would start again with the options of last time (ports that have moved since).
        (data / "mini.options").unlink(missing_ok=True)

    return Part(
        "s3",
        (),
        [str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "mini", *options],
        # No GOMEMLIMIT: below what it needs, the collector ran without pause (13 % of a core while idle, for 13 MB).
        {**env, "GOGC": "50", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        s3_readable(settings.ports["s3"], env, f"/{BUCKET}/{PROBE}"),
        settings.s3_ports(),
        f"http://127.0.0.1:{settings.ports['s3']}",
        cwd=data,
        before=before,
    )


def select(parts: list[Part], only: Iterable[str] = (), without: Iterable[str] = ()) -> list[Part]:
    """Return the parts named (all when none is) with all they need, less those left out and all that need them."""
    names = [part.name for part in parts]
    for name in (*only, *without):
        if name not in names:
            raise LocalError(f"expected parts among {', '.join(names)}; found {name!r}. Next: correct the name.")
    wanted = set(only) or set(names)
    if "postgres" in wanted:
        wanted.add("databases")
    if "s3" in wanted:
        wanted.add("bucket")
    for part in reversed(parts):
        if part.name in wanted:
            wanted.update(part.needs)
    left_out = set(without)
    for part in parts:
        if left_out.intersection(part.needs):
            left_out.add(part.name)
    return [part for part in parts if part.name in wanted and part.name not in left_out]
