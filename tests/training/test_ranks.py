"""The processes of a training: what they get, what they must prove, what is made of their end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import MillraceError, RecipeError, TryAgain
from tasks.training import ranks as module
from tasks.training.ranks import Ranks, environment, world_size
from tasks.training.recipes import load_recipe

RECIPE = load_recipe("smoke_cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a script in place of the launcher."""

    def run(script: str, world: int = 2, stopping: bool = False) -> list[tuple[int, dict[str, Any]]]:
        events: list[tuple[int, dict[str, Any]]] = []
        monkeypatch.setattr(module, "command", lambda folder, count: [sys.executable, "-c", script, str(folder)])
        with Ranks(tmp_path, RECIPE, world) as started:
            started.follow(lambda rank, event: events.append((rank, event)), lambda: stopping)
            started.proofs()
        return events

    return run


def proof(rank: int, step: int = 3, world: int = 2) -> str:
    return f"open(f'{{f}}/done.rank{rank}.json', 'w').write({json.dumps(json.dumps({'world': world, 'step': step, 'steps': 3}))});"


START = "import os, signal, sys, time; f = sys.argv[1];"
EVENT = "open(f'{f}/events.rank1.jsonl', 'a').write('{\"step\": 1}\\n');"


def test_events_arrive_also_those_written_last(job: Any) -> None:
    assert job(START + EVENT + proof(0) + proof(1)) == [(1, {"step": 1})]


def test_an_exit_code_of_zero_is_no_proof(job: Any) -> None:
    with pytest.raises(MillraceError, match=r"no done\.rank1\.json"):
        job(START + proof(0))


@pytest.mark.parametrize("second", [proof(1, step=2), proof(1, world=3)])
def test_ranks_that_disagree(job: Any, second: str) -> None:
    with pytest.raises(MillraceError, match="to end at one step"):
        job(START + proof(0) + second)


def test_a_rank_that_was_killed_is_tried_again(job: Any) -> None:
    with pytest.raises(TryAgain, match="SIGKILL"):
        job(START + proof(0) + proof(1) + "sys.exit(-9)")
    with pytest.raises(TryAgain, match="SIGKILL"):
        job(START + "os.kill(os.getpid(), 9)")


def test_a_rank_that_failed_is_not(job: Any) -> None:
    with pytest.raises(MillraceError, match="the reason") as caught:
        job(START + "print('the reason', file=sys.stderr); sys.exit(1)")
    assert caught.value.exit_code == 1


def test_ranks_are_asked_to_stop(job: Any) -> None:
    wait = "\nwhile not os.path.exists(f'{f}/stop'): time.sleep(0.05)\n"
    job(START + wait + proof(0) + proof(1), stopping=True)


def test_nothing_runs_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    monkeypatch.setattr(module, "command", lambda folder, count: [sys.executable, "-c", child])
    with pytest.raises(RuntimeError), Ranks(tmp_path, RECIPE, 1) as started:
        time.sleep(0.5)
        group = started._process.pid
        raise RuntimeError
    time.sleep(0.2)
    left = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    assert all(state.startswith("Z") for state in left)


def test_ranks_get_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MILLRACE_DATABASE_URL", "AIRFLOW__CORE__FERNET_KEY"):
        monkeypatch.setenv(name, "secret-value")
    found = environment(RECIPE)
    assert "secret-value" not in found.values()
    assert (found["DS_ACCELERATOR"], found["OMP_NUM_THREADS"], found["PATH"]) == ("cpu", "1", os.environ["PATH"])


def test_a_gpu_recipe_without_gpus() -> None:
    assert world_size(RECIPE) == 2
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="found 0"):
            world_size(load_recipe("sft_lora_zero2"))
