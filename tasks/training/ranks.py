"""The processes of one training: DeepSpeed's launcher and the ranks it starts.

Reads the files that the ranks write into the job's folder (see `tasks.training.worker`); writes the file
`stop` there. The ranks get an environment without credentials: no `MILLRACE_*`, no `AWS_*`. Fails with
`TryAgain` when a rank was killed (out of memory, a lost node), with `RecipeError` when a GPU had too little memory,
and with `MillraceError` when one failed, or ended without its proof of a finished training: an exit code of zero alone is not believed.
"""

import base64
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.errors import MillraceError, RecipeError, TryAgain
from tasks.settings import REPOSITORY
from tasks.training.recipes import Recipe
from tasks.training.team import Team

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.3
_LAST_LINES = 40
_LAUNCHER = "tasks.training.launcher"
_GPU_FULL = "torch.OutOfMemoryError"


class Ranks:
    """A context manager: inside it the ranks run; after it none of them does."""

    def __init__(self, folder: Path, recipe: Recipe, team: Team) -> None:
        self.folder, self.recipe, self.team = folder, recipe, team
        self._offsets = dict.fromkeys(team.here, 0)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._gpu_full = ""
        self._process: subprocess.Popen[str]
        self._pump: threading.Thread

    def __enter__(self) -> "Ranks":
        self._process = subprocess.Popen(
            command(self.folder, self.team),
            cwd=REPOSITORY,
            env=environment(self.recipe),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # a SIGTERM to our group must not reach ranks in the middle of a step
            preexec_fn=_die_with_parent,
        )
        self._pump = threading.Thread(target=self._read_log, daemon=True)
        self._pump.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pump.join(timeout=5)

    def follow(self, on_event: Callable[[int, dict[str, Any]], None], stopping: Callable[[], bool]) -> None:
        """Pass on every event (rank, event) until the ranks have ended; ask them to stop when `stopping()`.

        Raises TryAgain or MillraceError when they did not end well.
        """
        while True:
            ended = self._process.poll() is not None  # looked at first, so that no event is left unread
            for rank in self.team.here:
                for event in self._new_events(rank):
                    on_event(rank, event)
            if ended:
                break
            if stopping():
                (self.folder / "stop").touch()
            time.sleep(_POLL_SECONDS)
        self._pump.join(timeout=5)
        if code := self._process.returncode:
            raise self._failure(code)

    def proofs(self) -> list[dict[str, Any]]:
        """Return what each rank wrote at its end. Raises MillraceError when one is missing or they disagree."""
        found = []
        for rank in self.team.here:
            path = self.folder / f"done.rank{rank}.json"
            if not path.is_file():
                raise MillraceError(
                    f"expected {self.team.per_node} ranks to prove that they ended, found no {path.name}. Next: see the log."
                )
            found.append(json.loads(path.read_text(encoding="utf-8")))
        ends = {(proof["world"], proof["step"], proof["steps"]) for proof in found}
        if len(ends) != 1 or found[0]["world"] != self.team.world:
            raise MillraceError(
                f"expected {self.team.world} ranks to end at one step, found (ranks, step, steps) {sorted(ends)}. "
                "Next: see the log."
            )
        return found

    def _new_events(self, rank: int) -> list[dict[str, Any]]:
        path = self.folder / f"events.rank{rank}.jsonl"
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(self._offsets[rank])
            body = file.read()
        whole = body[: body.rfind(b"\n") + 1]  # the last line may be half written
        self._offsets[rank] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip()
            if text:
                self._last.append(text)
                self._gpu_full = self._gpu_full or (text if _GPU_FULL in text else "")
                log.info("ranks: %s", text)

    def _failure(self, code: int) -> MillraceError:
        if self._gpu_full:
            # The same rows on the same GPUs would need the same memory at the next try.
            return RecipeError(
                f"expected a training that fits into the memory of the GPUs, found {self._gpu_full[-500:]}. Next: lower "
                "optimisation.rows_per_batch or data.max_tokens, turn gradient_checkpointing on, or take a recipe with ZeRO-3."
            )
        number = -code if code < 0 else code - 256 if code > 192 else 0  # sys.exit(-9) arrives as 247
        last = " | ".join(list(self._last)[-12:])[-1500:]
        if number:
            name = signal.Signals(abs(number)).name
            return TryAgain(
                f"expected {self.team.world} ranks to end the training, found one ended by {name} (out of memory?): {last}. "
                "Next: it goes on from the newest checkpoint at the next try."
            )
        return MillraceError(
            f"expected {self.team.world} ranks to end the training, found exit code {code}: {last}. Next: see the log above."
        )


def command(folder: Path, team: Team) -> list[str]:
    """Return the command that starts the ranks of this machine."""
    slots = {f"node-{node}": list(range(team.per_node)) for node in range(team.nodes)}
    machines = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    return [
        *(sys.executable, "-m", _LAUNCHER),
        *(f"--world_info={machines}", f"--node_rank={team.node}"),
        *(f"--master_addr={team.master}", f"--master_port={team.port or _free_port()}"),
        *("--module", "tasks.training.worker", str(folder)),
    ]


def without_credentials() -> dict[str, str]:
    """Return this process's environment without settings and credentials, for processes that need none."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "AWS_", "AIRFLOW"))}


def environment(recipe: Recipe) -> dict[str, str]:
    """Return the environment of the ranks: ours without credentials, and nothing is fetched from a hub."""
    kept = without_credentials() | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if recipe.distribution.accelerator == "cpu":
        kept |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return kept


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Runs in the launcher before it starts: the kernel ends it when this stage is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
