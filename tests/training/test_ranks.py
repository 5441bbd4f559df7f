"""The processes of a training: what they get, what they must prove, what is made of their end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import MillraceError, RecipeError, SettingsError, TryAgain
from tasks.settings import load_settings
from tasks.training import ranks as module
from tasks.training.ranks import Ranks, environment
from tasks.training.recipes import Recipe, load_recipe
from tasks.training.team import Team, gather

RECIPE = load_recipe("smoke_cpu")
REQUIRED = {"MILLRACE_DATABASE_URL": "postgresql://u:p@h/d", "MILLRACE_MLFLOW_TRACKING_URI": "http://h:1"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a script in place of the launcher."""

    def run(script: str, world: int = 2, stopping: bool = False) -> list[tuple[int, dict[str, Any]]]:
        events: list[tuple[int, dict[str, Any]]] = []
        monkeypatch.setattr(module, "command", lambda folder, count: [sys.executable, "-c", script, str(folder)])
        with Ranks(tmp_path, RECIPE, Team(world)) as started:
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


def test_a_gpu_without_room_is_bad_input_and_says_what_to_lower(job: Any) -> None:
    """The same rows would need the same memory at every other try. The line as torch 2.13 ends a process with it."""
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9.00 GiB."
    noise = "print('File of another rank\\n' * 60);"
    with pytest.raises(RecipeError, match=r"found .*Tried to allocate 9.00 GiB.* Next: lower .*rows_per_batch"):
        job(START + f"print('[rank1]: {error}');" + noise + "sys.exit(1)")


def test_ranks_are_asked_to_stop(job: Any) -> None:
    wait = "\nwhile not os.path.exists(f'{f}/stop'): time.sleep(0.05)\n"
    job(START + wait + proof(0) + proof(1), stopping=True)


def test_nothing_runs_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    monkeypatch.setattr(module, "command", lambda folder, count: [sys.executable, "-c", child])
    with pytest.raises(RuntimeError), Ranks(tmp_path, RECIPE, Team(1)) as started:
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
    settings = load_settings(REQUIRED)
    assert gather(RECIPE, settings) == Team(2)
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="found 0"):
            gather(load_recipe("sft_lora_zero2"), settings)


def several(**changes: Any) -> Recipe:
    distribution = RECIPE.distribution.model_copy(update=changes)
    return RECIPE.model_copy(update={"distribution": distribution})


def test_a_node_knows_its_place() -> None:
    with pytest.raises(SettingsError, match="MILLRACE_NODE_RANK"):
        gather(several(nodes=2, ranks=1), load_settings(REQUIRED))
    second = REQUIRED | {"MILLRACE_NODE_RANK": "1", "MILLRACE_MASTER_ADDRESS": "10.0.0.1"}
    team = gather(several(nodes=2, ranks=2), load_settings(second))
    assert (team.world, list(team.here), team.master) == (4, [2, 3], "10.0.0.1")
    arguments = module.command(Path("job"), team)
    assert {"--node_rank=1", "--master_addr=10.0.0.1"} <= set(arguments)


def test_ranks_that_do_not_divide_a_step_are_refused() -> None:
    with pytest.raises(RecipeError, match="divides a step"):
        gather(several(ranks=3), load_settings(REQUIRED))
