"""`state.json` of a stack: which daemon runs it and what each part is doing.

The daemon writes it (whole, then renamed into place); `up`, `down` and `status` read it. A file that cannot
be read is taken as no file: it says nothing that the processes themselves do not say.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from local.processes import Identity, alive

# waiting: for another part. starting: runs, not healthy yet. done: a job that ended well.
RUNNING = ("starting", "healthy", "restarting", "waiting")


@dataclass
class PartState:
    """What one part is doing."""

    kind: str = "server"
    state: str = "waiting"
    identity: Identity | None = None
    fingerprint: str = ""
    family: list[Identity] = field(default_factory=list)
    started: float = 0.0
    seconds: float = 0.0
    restarts: int = 0
    message: str = ""


@dataclass
class StackState:
    """The daemon and its parts."""

    daemon: Identity | None = None
    config: str = ""
    parts: dict[str, PartState] = field(default_factory=dict)

    def daemon_alive(self) -> bool:
        """Say whether the daemon that wrote this still runs."""
        return self.daemon is not None and alive(self.daemon)


def write_private(path: Path, text: str) -> None:
    """Write `text` so that only the owner reads it, and so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def save(path: Path, state: StackState) -> None:
    """Write the state file."""
    write_private(path, json.dumps(asdict(state), indent=1))


def load(path: Path) -> StackState:
    """Read the state file; an empty state when there is none, or none that can be read."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            name: PartState(
                **{
                    **part,
                    "identity": Identity(**part["identity"]) if part["identity"] else None,
                    "family": [Identity(**one) for one in part["family"]],
                }
            )
            for name, part in raw["parts"].items()
        }
        daemon = Identity(**raw["daemon"]) if raw["daemon"] else None
        return StackState(daemon=daemon, config=raw["config"], parts=parts)
    except (OSError, ValueError, KeyError, TypeError):
        return StackState()
