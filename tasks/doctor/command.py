"""`python -m tasks doctor [--ground process|compose|kubernetes] [--short] [--format text|json] ...`: the preflight.

| option | what it says |
| --- | --- |
| `--ground` | where the stages will run; default: what `MILLRACE_LAUNCHER` says |
| `--short` | what `fine_tune` checks first: services, base model, disk, clock |
| `--format` | `text`, or `json` in one line |
| `--gpus N` | GPUs of each node that the next training asks for (kubernetes; default 1) |
| `--free-gb N` | free disk space asked for (default 2) |
| `--account [NAMESPACE:]NAME` | service account of Airflow, where an administrator asks (default millrace-launcher) |

Ends with 0 (nothing to mend), 2 (something to mend) or 75 (a service does not answer). Nothing that a check
makes stays. A line says `ok`, `mend` (with the next step), or `skip` (not checked, and why).
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Mapping

from tasks.doctor import cluster, compose, database, machine, model_access, pod, services
from tasks.doctor.examine import Check, Stopped, Wanted, examine
from tasks.doctor.report import AWAY, Finding, as_json, as_text, exit_code, mend, ok, skip, without_secrets
from tasks.errors import OptionError, SettingsError, nearest
from tasks.options import parse_options
from tasks.settings import Settings, load_settings

GROUNDS = ("process", "compose", "kubernetes")
OPTIONS = ("ground", "format", "gpus", "free_gb", "account")
POSTGRES = ("psycopg", "tasks.database")
S3 = ("boto3", "tasks.storage")
MODELS = (*S3, "huggingface_hub", "huggingface_hub.errors")
KUBERNETES = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")
# What a training needs until its model is registered.
SHORT = [
    Check("disk", machine.disk),
    Check("database", database.database, needs=POSTGRES),
    Check("pgvector", database.pgvector, needs=POSTGRES),
    Check("migrations", database.migrations, needs=POSTGRES),
    Check("bucket", services.bucket, needs=S3),
    Check("clock", services.clock, needs=S3),
    Check("registry", services.registry, 60, ("requests", "mlflow", "tasks.tracking")),
    Check("base model", model_access.of("base_model"), needs=MODELS),
]
VERSIONS = Check("versions", machine.versions)
PORTS, EMBEDDER = (
    Check("ports", services.ports, needs=POSTGRES),
    Check("embedder", model_access.of("embedder"), needs=MODELS),
)
HERE = [VERSIONS, PORTS, *SHORT, EMBEDDER]
# Airflow's side of a cluster verifies manifests in S3; everything else that stages speak to is asked from a pod.
BESIDE = [VERSIONS, *(check for check in SHORT if check.name in {"bucket", "clock"})]
CLUSTER = [
    Check("cluster", cluster.version, needs=KUBERNETES),
    Check("permissions", cluster.permissions, needs=KUBERNETES),
    Check("gpu nodes", cluster.gpu_nodes, needs=KUBERNETES),
    Check("gpu quota", cluster.gpu_quota, needs=KUBERNETES),
]
POD = Check("image", pod.image, pod.SECONDS, KUBERNETES)
COMPOSE = [
    Check("engine", compose.engine),
    Check("values", compose.values),
    Check("containers", compose.containers),
    Check("in the container", compose.inside, compose.SECONDS + 10),
]
# What only stages need; on Airflow's side it may be known to the pods' secret alone.
STAND_INS = {"MILLRACE_DATABASE_URL": "postgresql://pods", "MILLRACE_MLFLOW_TRACKING_URI": "http://pods"}
ALL_GONE = "what its checks had made was removed"
USAGE = "python -m tasks doctor --help"


def main(arguments: list[str]) -> int:
    """Run the checks of a ground, print their findings, return the exit code."""
    from tasks.provenance import code_revision

    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    short = "--short" in arguments
    given = parse_options([argument for argument in arguments if argument != "--short"])
    ground, form, wanted = _read(given)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a check made is taken back then too
    try:
        findings, settings = look(ground, wanted, short)
    except (KeyboardInterrupt, Stopped) as stopped:
        left = f"some of what its checks had made stays ({stopped})" if str(stopped) else ALL_GONE
        print(f"doctor: stopped; {left}.", file=sys.stderr)
        return AWAY
    finally:
        signal.signal(signal.SIGTERM, before)
    revision = code_revision(settings) if settings else "unknown"
    print(as_json(findings, ground=ground, code_revision=revision) if form == "json" else as_text(findings))
    return exit_code(findings)


def look(ground: str, wanted: Wanted, short: bool = False) -> tuple[list[Finding], Settings | None]:
    """Return the findings of all checks of a ground, and the settings where they could be read."""
    planned = checks(ground, short)
    try:
        settings = load_settings({**STAND_INS, **os.environ} if _beside(ground) else None)
    except SettingsError as error:
        # The packages may be why: they are compared all the same.
        able = [check for check in planned if check.run is machine.versions]
        rest = [skip(check.name, "the settings are wrong") for check in planned if check not in able]
        return [
            without_secrets(mend("settings", error)),
            *examine(able, load_settings(STAND_INS), wanted),
            *rest,
        ], None
    return [ok("settings", "every variable is known"), *examine(planned, settings, wanted)], settings


def checks(ground: str, short: bool) -> list[Check]:
    """Return the checks of a ground."""
    if ground == "compose" and _beside(ground):
        return COMPOSE[:3] if short else COMPOSE
    if _beside(ground):
        return [*BESIDE, *(CLUSTER if short else [*CLUSTER, POD])]
    here = SHORT if short else HERE
    return [*here, *CLUSTER] if ground == "kubernetes" else here


def _beside(ground: str) -> bool:
    """Say whether this is not where stages run: Airflow's side of a cluster, or the machine of a Compose installation."""
    if ground == "compose":
        return compose.outside()
    return ground == "kubernetes" and importlib.util.find_spec("kubernetes") is not None


def _read(given: Mapping[str, str]) -> tuple[str, str, Wanted]:
    """Return ground, format and what is wanted. Raises OptionError."""
    for name in given:
        if name not in OPTIONS:
            raise OptionError(f"--{name} is not an option of doctor.{nearest(name, OPTIONS)} Next: {USAGE}")
    launcher = os.environ.get("MILLRACE_LAUNCHER", "")
    ground = given.get("ground") or (launcher if launcher in GROUNDS else "process")
    form = given.get("format", "text")
    if ground not in GROUNDS or form not in {"text", "json"}:
        raise OptionError(
            f"expected a ground ({', '.join(GROUNDS)}) and text or json, found {ground}, {form}. Next: {USAGE}"
        )
    try:
        wanted = Wanted(
            free_gb=float(given.get("free_gb", Wanted.free_gb)),
            gpus=int(given.get("gpus", Wanted.gpus)),
            account=given.get("account", Wanted.account),
        )
    except ValueError as error:
        raise OptionError(f"expected numbers for --gpus and --free-gb, found {dict(given)}. Next: {USAGE}") from error
    return ground, form, wanted
