"""The commands of backups.

| command | what it does |
| --- | --- |
| `python -m tasks backup --to PLACE [--keep N] [--verify]` | dump the three databases, copy what is new in the buckets |
| `python -m tasks backups --at PLACE` | list the backups of a place |
| `python -m tasks verify_backup --at PLACE [--backup ID]` | read every byte of a backup again |
| `python -m tasks restore --from PLACE [--backup ID] [--into empty, beside, replace] [--only PARTS]` | see docs/backup.md |
| `python -m tasks reconcile` | make MLflow's aliases say what the ledger says |

PLACE is s3://bucket/prefix or a folder. PARTS are of airflow, millrace, mlflow, objects, with commas. `--keep N` deletes older
backups, never the newest that was verified. Exit codes: 0 done; 2 wrong input, or a backup with problems; 75 try again.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import cast

from tasks.backup import catalogue
from tasks.backup.check import verify_backup as examine
from tasks.backup.contract import Backup
from tasks.backup.lock import alone
from tasks.backup.make import make_backup
from tasks.backup.postgres import databases
from tasks.backup.restore import PARTS, Into, Restored
from tasks.backup.restore import restore as restore_backup
from tasks.backup.targets import Target, open_target
from tasks.errors import OptionError, nearest
from tasks.options import parse_options
from tasks.settings import Settings, settings

DAMAGED = 2


def backup(arguments: list[str]) -> int:
    """Make a backup; with --verify read it again; with --keep delete older ones."""
    given = _read(arguments, "backup", ("to", "keep"), ("verify",))
    if given is None:
        return 0
    keep = _whole_number(given["keep"]) if "keep" in given else None
    chosen, began = settings(), time.monotonic()
    target = open_target(chosen, _required(given, "to", "backup"))
    made = make_backup(chosen, target)
    counts = made.counts
    print(f"backup {made.id} at {target.name}: {made.status}, {time.monotonic() - began:.1f} s")
    print(f"  databases  {_size(counts['dump_bytes'])} in {len(made.dumps)} dumps, live release {made.live_release}")
    print(
        f"  objects    {counts['objects']} of {_size(counts['object_bytes'])}; "
        f"new: {counts['copied']} of {_size(counts['copied_bytes'])}"
    )
    if counts["models_elsewhere"]:
        print(f"  not in it  {counts['models_elsewhere']} models in other buckets; see MILLRACE_BACKUP_BUCKETS")
    code = _tell(made.problems, counts["problems"])
    if "verify" in given and not code:
        code = _verify(chosen, target, made)
    if keep is not None and not code:
        with alone(databases(chosen)["millrace"].url, "deleting old backups"):
            gone, contents = catalogue.retire(target, keep)
        print(f"  deleted    {len(gone)} older backups, {contents} contents that no backup names any more")
    return code


def backups(arguments: list[str]) -> int:
    """List the backups of a place."""
    given = _read(arguments, "backups", ("at",))
    if given is None:
        return 0
    target = open_target(settings(), _required(given, "at", "backups"))
    found = catalogue.finished(target)
    print(f"{len(found)} backups at {target.name}")
    for item in found:
        state = "verified" if catalogue.is_verified(target, item.id) else "not verified"
        size = _size(item.counts["object_bytes"] + item.counts["dump_bytes"])
        print(
            f"{item.id}  {item.ended_at:%Y-%m-%d %H:%M:%S}  {item.status}, {state}  release {item.live_release or 'none'}  "
            f"{item.counts['objects']} objects  {size}  revision {item.code_revision[:12]}"
        )
    return 0


def verify_backup(arguments: list[str]) -> int:
    """Read every byte of a backup again."""
    given = _read(arguments, "verify_backup", ("at", "backup"))
    if given is None:
        return 0
    target = open_target(settings(), _required(given, "at", "verify_backup"))
    return _verify(settings(), target, catalogue.choose(target, given.get("backup")))


def restore(arguments: list[str]) -> int:
    """Restore a backup."""
    given = _read(arguments, "restore", ("from", "backup", "into", "only"))
    if given is None:
        return 0
    into, parts = given.get("into", "empty"), tuple(given.get("only", ",".join(PARTS)).split(","))
    if into not in {"empty", "beside", "replace"} or set(parts) - set(PARTS):
        raise OptionError(
            f"expected --into empty, beside or replace and --only of {', '.join(PARTS)}, found {into} and {','.join(parts)}. "
            "Next: python -m tasks restore --help"
        )
    began = time.monotonic()
    target = open_target(settings(), _required(given, "from", "restore"))
    chosen = catalogue.choose(target, given.get("backup"))
    done = restore_backup(settings(), target, chosen, cast(Into, into), parts)
    _say(chosen, done, time.monotonic() - began)
    return 0


def reconcile(arguments: list[str]) -> int:
    """Mirror the ledger into MLflow."""
    from tasks.errors import ServiceUnavailable
    from tasks.release.mirror import reconcile_mirrors

    if _read(arguments, "reconcile", ()) is None:
        return 0
    state = reconcile_mirrors(settings())
    if state.problem:
        raise ServiceUnavailable(state.problem)
    numbers = ", ".join(map(str, state.mirrored))
    print(f"MLflow shows release {numbers} now" if numbers else "MLflow shows what the ledger says")
    return 0


def _verify(chosen: Settings, target: Target, made: Backup) -> int:
    began = time.monotonic()
    problems = examine(chosen, target, made)
    if not problems:
        print(f"  verified   backup {made.id}: every byte read in {time.monotonic() - began:.1f} s")
        catalogue.record(databases(chosen)["millrace"].url, target, made, verified=True)
    return _tell(problems, len(problems))


def _say(chosen: Backup, done: Restored, seconds: float) -> None:
    print(f"restored backup {chosen.id} of {chosen.ended_at:%Y-%m-%d %H:%M:%S} UTC, {seconds:.1f} s")
    print(
        f"  objects    {done.objects.objects} put back ({_size(done.objects.bytes)}), {done.objects.aside} moved aside"
    )
    if done.databases:
        print(f"  databases  {', '.join(done.databases)}{'' if done.switched else ' (beside the present ones)'}")
    if done.kept:
        print(f"  kept       {', '.join(done.kept)}: drop them when you are sure")
    if done.switched:
        print("Next: start everything (embedded stack: make up), then python -m tasks reconcile")


def _tell(problems: Sequence[str], count: int) -> int:
    """Print problems to stderr; return the exit code they mean."""
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if count:
        print(f"{count} problems: this backup is not a good one. Next: docs/runbooks/restore.md", file=sys.stderr)
    return DAMAGED if count else 0


def _read(
    arguments: list[str], command: str, options: tuple[str, ...], flags: tuple[str, ...] = ()
) -> Mapping[str, str] | None:
    """Return the options of a command, None where help was asked for and given. Raises OptionError."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return None
    given = parse_options([argument for argument in arguments if argument.removeprefix("--") not in flags])
    for name in given:
        if name not in options:
            raise OptionError(
                f"--{name} is not an option of {command}.{nearest(name, (*options, *flags))} "
                f"Next: python -m tasks {command} --help"
            )
    return given | {flag: "yes" for flag in flags if f"--{flag}" in arguments}


def _required(given: Mapping[str, str], name: str, command: str) -> str:
    if name not in given:
        raise OptionError(
            f"expected --{name} s3://bucket/prefix or a folder, found none. Next: python -m tasks {command} --help"
        )
    return given[name]


def _whole_number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise OptionError(f"expected --keep to be a whole number from 1, found {text!r}. Next: correct it.")
    return int(text)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
