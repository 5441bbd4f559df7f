"""The environment that every part and stage of the embedded stack runs with.

Reads and, the first time, makes `secrets.json`; writes `env` and `airflow.env` (all three 0600, in the
stack's folder). `env` is what stages and people use (`set -a; . .millrace/env`); `airflow.env` is added for
Airflow's own processes. A user's MILLRACE_* variables override what is generated, from the process
environment or from a `.env` file; a `.env` file may set other names (AWS_*) too. No secret is ever printed.
"""

import base64
import json
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from local.errors import LocalError
from local.settings import PREFIX, REPOSITORY, LocalSettings
from local.state import write_private

BUCKET = "millrace"
# Written at every start, read by the health check of S3.
PROBE = ".stack/readable"
RELEASE_KEYS = {"MILLRACE_SIGNING_KEY": "signing_key", "MILLRACE_VERIFY_KEY": "verify_key"}
ROLE = "millrace"
ADMIN = "admin"
# Other tools' variables in the user's shell would reach into the stack (a real AWS account, another Airflow).
DROPPED = ("AIRFLOW_", "AWS_", "MLFLOW_", "PG", "MILLRACE_", "PYTHON", "VIRTUAL_ENV", "S3_")
SECRET_NAME = re.compile(r"(^|_)(KEY|PASSWORD|SECRET|TOKEN|CONN)(_|$)")


def load_secrets(folder: Path) -> dict[str, str]:
    """Return the stack's secrets and creation time, made at the first call and kept since."""
    path = folder / "secrets.json"
    if path.exists():
        try:
            kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LocalError(
                f"{path}: expected the secrets of this stack as JSON, found {error}. "
                "Next: restore the file, or `make clean` to start without the old data."
            ) from error
        return kept
    from tasks.release.signing_keys import make_pair

    private, public = make_pair()
    made = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "postgres_password": secrets.token_hex(16),
        "s3_access_key": secrets.token_hex(10).upper(),
        "s3_secret_key": secrets.token_hex(20),
        "airflow_admin_password": secrets.token_urlsafe(12),
        "airflow_jwt_secret": secrets.token_hex(40),
        "airflow_fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "signing_key": private,
        "verify_key": public,
    }
    write_private(path, json.dumps(made, indent=1))
    return made


def database_url(settings: LocalSettings, kept: Mapping[str, str], database: str, driver: str = "") -> str:
    """Return the URL of one of the stack's databases."""
    password = kept["postgres_password"]
    return f"postgresql{driver}://{ROLE}:{password}@127.0.0.1:{settings.ports['postgres']}/{database}"


def generated(settings: LocalSettings, kept: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `env` as this stack makes them."""
    ports = settings.ports
    # A stack from before there were keys goes on without: its releases are not signed (docs/signing.md).
    keys = {variable: kept[name] for variable, name in RELEASE_KEYS.items() if name in kept}
    return keys | {
        "MILLRACE_DATABASE_URL": database_url(settings, kept, "millrace"),
        "MILLRACE_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "MILLRACE_S3_BUCKET": BUCKET,
        "MILLRACE_MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "MILLRACE_LAUNCHER": "process",
        "MILLRACE_ASSISTANT_URL": f"http://127.0.0.1:{ports['assistant']}",
        "MILLRACE_CACHE_DIR": str(settings.folder / "cache"),
        "MILLRACE_SCHEDULE_START": kept["created"],
        "AWS_ACCESS_KEY_ID": kept["s3_access_key"],
        "AWS_SECRET_ACCESS_KEY": kept["s3_secret_key"],
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "ITERATIVE_DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "DS_ACCELERATOR": "cpu",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def airflow_generated(settings: LocalSettings, kept: Mapping[str, str]) -> dict[str, str]:
    """Return what Airflow's processes get besides; its address stands in three places."""
    folder = settings.folder / "airflow"
    address = f"http://127.0.0.1:{settings.ports['airflow']}"
    return {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__CORE__FERNET_KEY": kept["airflow_fernet_key"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url(settings, kept, "airflow", "+psycopg2"),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(settings.ports["airflow"]),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__SECRET_KEY": kept["airflow_jwt_secret"],
        "AIRFLOW__API_AUTH__JWT_SECRET": kept["airflow_jwt_secret"],
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        # A task whose worker was killed is noticed in one minute instead of five.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }


def overrides(environment: Mapping[str, str], dotenv: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what the user set, as name: (value, where)."""
    found = {name: (value, ".env") for name, value in dotenv.items() if not name.startswith(PREFIX)}
    for name, value in environment.items():
        if name.startswith("MILLRACE_") and not name.startswith(PREFIX):
            found[name] = (value, "your environment")
    return found


def stage_environment(
    settings: LocalSettings, environment: Mapping[str, str], dotenv: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of `env`, and where each came from."""
    values = generated(settings, load_secrets(settings.folder))
    origins = dict.fromkeys(values, "generated")
    for name, (value, where) in overrides(environment, dotenv).items():
        values[name], origins[name] = value, where
    return values, origins


def write_environment(settings: LocalSettings, values: Mapping[str, str]) -> None:
    """Write `env`, `airflow.env` and, once, Airflow's password file."""
    folder = settings.folder
    kept = load_secrets(folder)
    write_private(folder / "env", shell_lines(values))
    write_private(folder / "airflow.env", shell_lines(airflow_generated(settings, kept)))
    passwords = folder / "airflow" / "passwords.json"
    if not passwords.exists():
        write_private(passwords, json.dumps({ADMIN: kept["airflow_admin_password"]}))


def shell_lines(values: Mapping[str, str]) -> str:
    """Return `export K=V` lines that any POSIX shell reads back."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def is_secret(name: str, value: str) -> bool:
    """Say whether a value must not be shown: by its name, or because it is a URL with a password."""
    return bool(SECRET_NAME.search(name)) or bool(re.search(r"://[^/@]+:[^/@]+@", value))


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what parts keep of the user's environment, with this Python's programs first on the path."""
    kept = {name: value for name, value in environment.items() if not name.startswith(DROPPED)}
    kept["PYTHONPATH"] = str(REPOSITORY)
    kept["PYTHONUNBUFFERED"] = "1"
    # Threaded servers otherwise keep an arena of freed memory per thread.
    kept["MALLOC_ARENA_MAX"] = "2"
    # Torch's threads otherwise spin while they wait, which on a busy small machine costs more than it saves:
    # a token of the assistant took 1.4 s instead of 0.14 s with four processes on two cores.
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return kept
