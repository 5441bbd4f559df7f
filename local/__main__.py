"""`python -m local up|down|status|env|clean|run`: the embedded stack.

Exit codes: 0 good; 1 a part is not healthy; 2 bad input (settings, ports, disk), with one message.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from local.client import down, status, up
from local.environment import is_secret, stage_environment
from local.errors import LocalError
from local.parts import select, table
from local.processes import Identity
from local.settings import REPOSITORY, LocalSettings, load_settings, merged_environment, read_environment_file
from local.supervisor import Supervisor


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def run_daemon(folder: Path, config: str) -> int:
    """Be the daemon of the stack that `stack.json` describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    raw = json.loads((folder / "stack.json").read_text(encoding="utf-8"))
    fields = {**raw["settings"], "folder": folder, "without": tuple(raw["settings"]["without"])}
    settings = LocalSettings(**fields)
    parts = select(table(settings), tuple(raw["only"]), settings.without)
    owner = Identity(**raw["owner"]) if raw["owner"] else None
    Supervisor(folder, parts, config, settings.start_timeout, owner).run()
    return 0


def show_environment(settings: LocalSettings, environment: dict[str, str], dotenv: dict[str, str]) -> None:
    """Print each variable and where it came from; never the value of a secret."""
    values, origins = stage_environment(settings, environment, dotenv)
    for name, value in values.items():
        say(f"{name:<32} {'(secret)' if is_secret(name, value) else value}  [{origins[name]}]")
    say(f"\nTo use it in a shell: set -a; . {settings.folder / 'env'}; set +a")


def show_addresses(settings: LocalSettings, only: tuple[str, ...]) -> None:
    """Print where to look, for the parts that run."""
    names = {part.name for part in select(table(settings), only, settings.without)}
    say("")
    if "airflow-api" in names:
        say(f"Airflow    http://127.0.0.1:{settings.ports['airflow']}   user: admin, password: in")
        say(f"           {settings.folder / 'airflow' / 'passwords.json'}")
    if "mlflow" in names:
        say(f"MLflow     http://127.0.0.1:{settings.ports['mlflow']}")
    if "assistant" in names:
        say(f"Assistant  http://127.0.0.1:{settings.ports['assistant']}")
    say("Stop       make down")


def remove(folder: Path) -> None:
    """Delete a stack's folder; LocalError when it does not look like one."""
    if not folder.exists():
        say(f"{folder} is not there.")
        return
    if any(folder.iterdir()) and not (folder / "lock").exists():
        raise LocalError(
            f"expected the folder of a stack, found {folder} without the file `lock`. "
            "Next: look at MILLRACE_LOCAL_DIR; delete the folder yourself if it is meant."
        )
    shutil.rmtree(folder)
    say(f"{folder} is deleted.")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start what does not run, wait until all is healthy")
    start.add_argument("--only", type=_names, default=(), help="parts, with commas; what they need comes too")
    start.add_argument("--without", type=_names, default=(), help="parts to leave out, with all that need them")
    commands.add_parser("down", help="stop all parts in reverse order")
    commands.add_parser("clean", help="stop all parts and delete the stack's folder")
    commands.add_parser("status", help="a table; exit code 0 only when all is healthy")
    commands.add_parser("env", help="the environment of parts and stages, and where each value came from")
    daemon = commands.add_parser("run", help="be the daemon (started by `up`)")
    daemon.add_argument("--folder", type=Path, required=True)
    daemon.add_argument("--config", required=True)
    return top


def main(arguments: list[str]) -> int:
    """Run one command."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "run":
            return run_daemon(options.folder, options.config)
        dotenv = read_environment_file(REPOSITORY / ".env")
        environment = dict(os.environ)
        settings = load_settings(merged_environment(environment, dotenv))
        if options.command == "up":
            wanted = replace(settings, without=(*settings.without, *options.without))
            up(wanted, environment, dotenv, say, options.only)
            show_addresses(wanted, options.only)
        elif options.command == "down":
            say("All parts are stopped." if down(settings.folder, say) else "Nothing was running.")
        elif options.command == "clean":
            down(settings.folder, say)
            remove(settings.folder)
        elif options.command == "status":
            return 0 if status(settings, say) else 1
        else:
            show_environment(settings, environment, dotenv)
    except LocalError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. Parts that were started go on; `make status` shows them, `make down` stops them.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
