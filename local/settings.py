"""Where the embedded stack keeps its data and which ports it uses.

Reads `MILLRACE_LOCAL_*` from the process environment and from a `.env` file in the repository root (the
process environment wins). Writes nothing. Fails with LocalError, naming every problem at once, on unknown
names and malformed values.
"""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.errors import LocalError

REPOSITORY = Path(__file__).resolve().parent.parent
PREFIX = "MILLRACE_LOCAL_"
PORT_VARIABLES = {
    "postgres": "MILLRACE_LOCAL_POSTGRES_PORT",
    "s3": "MILLRACE_LOCAL_S3_PORT",
    "mlflow": "MILLRACE_LOCAL_MLFLOW_PORT",
    "airflow": "MILLRACE_LOCAL_AIRFLOW_PORT",
    "assistant": "MILLRACE_LOCAL_ASSISTANT_PORT",
}
DEFAULT_PORTS = {"postgres": 54329, "s3": 8333, "mlflow": 5000, "airflow": 8080, "assistant": 8000}
# What MILLRACE_LOCAL_PORT_BASE adds for each; S3 is last because it takes a block (see S3_OFFSETS).
BASE_OFFSETS = {"postgres": 0, "airflow": 1, "mlflow": 2, "assistant": 3, "s3": 4}
# SeaweedFS is several servers in one process. Its admin server insists on a second port 10000 above the first.
S3_OFFSETS = {
    "s3": 0,
    "s3.grpc": 1,
    "master": 2,
    "master.grpc": 3,
    "volume": 4,
    "volume.grpc": 5,
    "filer": 6,
    "filer.grpc": 7,
    "admin": 8,
    "admin.grpc": 10008,
}
VARIABLES = {
    "MILLRACE_LOCAL_DIR": "Folder of the embedded stack's data",
    "MILLRACE_LOCAL_POSTGRES_PORT": "Port of Postgres",
    "MILLRACE_LOCAL_S3_PORT": "First of nine ports of SeaweedFS (S3 itself); it also takes the one 10008 above",
    "MILLRACE_LOCAL_MLFLOW_PORT": "Port of the MLflow server",
    "MILLRACE_LOCAL_AIRFLOW_PORT": "Port of Airflow's API and web UI",
    "MILLRACE_LOCAL_ASSISTANT_PORT": "Port of the assistant",
    "MILLRACE_LOCAL_PORT_BASE": "Moves all ports at once: Postgres, Airflow, MLflow, assistant, then nine for S3",
    "MILLRACE_LOCAL_WITHOUT": "Parts that `make up` leaves out, separated by commas",
    "MILLRACE_LOCAL_MIN_FREE_GB": "Free disk space that `make setup` (default 6) and `make up` (default 2) ask for",
    "MILLRACE_LOCAL_START_TIMEOUT": "Seconds a part has to get healthy",
}


@dataclass(frozen=True)
class LocalSettings:
    """One stack: its folder, its ports and its limits."""

    folder: Path
    ports: dict[str, int]
    without: tuple[str, ...] = ()
    min_free_gb: float = 2.0
    start_timeout: float = 180.0

    def s3_ports(self) -> dict[str, int]:
        """Return every port SeaweedFS listens on, by the name of its option."""
        return {name: self.ports["s3"] + offset for name, offset in S3_OFFSETS.items()}


def read_environment_file(path: Path) -> dict[str, str]:
    """Return the `K=V` or `export K=V` lines of a shell file; LocalError on any other line."""
    if not path.exists():
        return {}
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise LocalError(f"{path}, line {number}: expected NAME=value, found a line with {error}.") from error
        name, equals, value = words[0].partition("=")
        if len(words) != 1 or not equals or not name.isidentifier():
            raise LocalError(
                f"{path}, line {number}: expected NAME=value, found {name!r} and more. "
                "Next: quote values that hold spaces, or remove the line."
            )
        values[name] = value
    return values


def _number(name: str, text: str, problems: list[str], least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        problems.append(f"{name}: expected a number from {least:g} to {most:g}, found {text!r}")
    return value


def load_settings(environment: Mapping[str, str]) -> LocalSettings:
    """Return the settings found in `environment` (see `merged_environment`); LocalError lists all problems."""
    found = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value}
    problems = []
    for name in sorted(set(found) - set(VARIABLES)):
        near = difflib.get_close_matches(name, VARIABLES, n=1)
        problems.append(f"{name} is not a setting." + (f" Did you mean {near[0]!r}?" if near else ""))
    ports = dict(DEFAULT_PORTS)
    if "MILLRACE_LOCAL_PORT_BASE" in found:
        name = "MILLRACE_LOCAL_PORT_BASE"
        base = _number(name, found[name], problems, 1024, 55000)
        if not problems:
            ports = {part: int(base) + offset for part, offset in BASE_OFFSETS.items()}
    for part, name in PORT_VARIABLES.items():
        if name in found:
            port = _number(name, found[name], problems, 1, 55527 if part == "s3" else 65535)
            ports[part] = int(port) if port == port else 0
    limits = {}
    for key, name in (("min_free_gb", "MIN_FREE_GB"), ("start_timeout", "START_TIMEOUT")):
        if PREFIX + name in found:
            limits[key] = _number(PREFIX + name, found[PREFIX + name], problems, 0, 100000)
    if problems:
        raise LocalError(
            "expected the MILLRACE_LOCAL_* settings of .env.example, found:\n  "
            + "\n  ".join(problems)
            + "\nNext: correct the environment or the .env file."
        )
    folder = Path(found.get("MILLRACE_LOCAL_DIR") or REPOSITORY / ".millrace").expanduser().absolute()
    without = tuple(name.strip() for name in found.get("MILLRACE_LOCAL_WITHOUT", "").split(",") if name.strip())
    return LocalSettings(folder=folder, ports=ports, without=without, **limits)


def merged_environment(environment: Mapping[str, str], dotenv: Mapping[str, str]) -> dict[str, str]:
    """Return `dotenv` overlaid by `environment`: what the user set, wherever they set it."""
    return {**dotenv, **environment}
