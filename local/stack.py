"""The embedded stack for tests and benchmarks: in a folder and on ports of its own, gone at the end.

    with EmbeddedStack(folder, parts=("postgres", "s3", "mlflow"), ports="free") as stack:
        subprocess.run([...], env={**os.environ, **stack.env})

The daemon watches the process that made the stack: when that one is killed, the stack stops by itself.
Nothing of the user's MILLRACE_* environment or `.env` file reaches it, only what `overrides` holds.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from local.checks import free_port_base
from local.client import down, status, up
from local.environment import RELEASE_KEYS, database_url, load_secrets
from local.errors import LocalError, PartFailed
from local.processes import Identity
from local.settings import LocalSettings, load_settings, read_environment_file

ATTEMPTS = 3


def _quiet(_: str) -> None:
    """Say nothing."""


class EmbeddedStack:
    """One stack; `env` is what a stage runs with, `settings` its folder and ports."""

    def __init__(
        self,
        folder: Path | str,
        parts: tuple[str, ...] = ("postgres", "s3", "mlflow"),
        ports: int | str = "free",
        overrides: Mapping[str, str] | None = None,
        start_timeout: float = 180.0,
    ) -> None:
        self.folder, self.parts, self.ports = Path(folder).absolute(), parts, ports
        self.overrides = dict(overrides or {})
        self.start_timeout = start_timeout
        self.settings: LocalSettings

    def start(self) -> "EmbeddedStack":
        """Start the parts and wait until they are healthy."""
        owner = Identity.of(os.getpid())
        for attempt in range(1, ATTEMPTS + 1):
            base = free_port_base(21000 + os.getpid() % 500 * 20) if self.ports == "free" else int(self.ports)
            self.settings = load_settings(
                {
                    "MILLRACE_LOCAL_DIR": str(self.folder),
                    "MILLRACE_LOCAL_PORT_BASE": str(base),
                    "MILLRACE_LOCAL_START_TIMEOUT": str(self.start_timeout),
                    "MILLRACE_LOCAL_MIN_FREE_GB": "4",
                }
            )
            try:
                up(self.settings, self.overrides, {}, _quiet, self.parts, owner)
            except PartFailed:
                self.stop()
                raise
            except LocalError:
                # Another test run may have taken a free port between the look and the start.
                if self.ports != "free" or attempt == ATTEMPTS:
                    raise
            else:
                break
        return self

    def stop(self) -> None:
        """Stop all parts; the folder stays."""
        down(self.folder, _quiet)

    def healthy(self) -> bool:
        """Say whether every part answers now."""
        return status(self.settings, _quiet)

    @property
    def env(self) -> dict[str, str]:
        """The variables of `.millrace/env`, less the keys of releases: nobody signs what a test puts into the ledger."""
        found = read_environment_file(self.folder / "env")
        return {name: value for name, value in found.items() if name not in RELEASE_KEYS}

    @property
    def airflow_env(self) -> dict[str, str]:
        """The variables that Airflow's processes have besides."""
        return read_environment_file(self.folder / "airflow.env")

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's API and web UI."""
        return f"http://127.0.0.1:{self.settings.ports['airflow']}"

    @property
    def airflow_password(self) -> str:
        """Password of the user `admin` of Airflow."""
        return load_secrets(self.folder)["airflow_admin_password"]

    @property
    def database_url(self) -> str:
        """URL of the database `millrace`."""
        return self.env["MILLRACE_DATABASE_URL"]

    def url_of(self, database: str) -> str:
        """Return the URL of another database of the same server."""
        return database_url(self.settings, load_secrets(self.folder), database)

    def __enter__(self) -> "EmbeddedStack":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
