"""The stage contract against a real S3 and Postgres."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ManifestError, OptionError, Preempted, ServiceUnavailable
from tasks.options import resolve_options
from tasks.settings import REPOSITORY, Settings, load_settings
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting, run_stage
from tasks.storage import Storage

LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u@127.0.0.1/x", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}


class Options(StageOptions):
    word: str = "default"
    times: int = 1
    corpus: str = from_setting("corpus")


def stage(run: Callable[[StageContext, Options], StageResult] | None = None, **changes: Any) -> Stage[Options]:
    def write(context: StageContext, options: Options) -> StageResult:
        artifact = context.storage.put_bytes(f"{context.folder}/out.txt", options.word.encode() * options.times)
        return StageResult(outputs={"out": artifact}, counts={"times": options.times})

    return Stage("tried", Options, run or write, **changes)


def test_each_option_says_where_it_came_from() -> None:
    _, resolved = resolve_options("tried", Options, load_settings(LEAST), {"times": "3"})
    assert {name: option.origin for name, option in resolved.items()} == {
        "word": "default", "times": "command", "corpus": "settings",
    }  # fmt: skip
    assert resolved["times"].value == 3


def test_wrong_options_are_told_together() -> None:
    with pytest.raises(OptionError) as caught:
        resolve_options("tried", Options, load_settings(LEAST), {"wrd": "x", "times": "many"})
    assert "--wrd is not an option of tried. Did you mean 'word'?" in str(caught.value)
    assert "--times" in str(caught.value)


@pytest.fixture
def settings(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    from tasks.database import migrate

    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    migrate(stack.env["MILLRACE_DATABASE_URL"])
    # The cost row goes through the process's settings.
    from tasks.settings import settings as process_settings

    process_settings.cache_clear()
    yield load_settings({k: v for k, v in stack.env.items() if k.startswith("MILLRACE_")})
    process_settings.cache_clear()


@pytest.fixture
def run(settings: Settings) -> str:
    return f"s3://{settings.s3_bucket}/runs/tests/{uuid.uuid4()}"


@pytest.mark.integration
def test_the_manifest_proves_the_stage(settings: Settings, run: str) -> None:
    manifest = run_stage(stage(), settings, run, None, {"word": "hi", "times": "2"})
    stored = Storage(settings.s3_endpoint_url).require_manifest(run, "tried")
    assert stored == manifest
    assert stored.outputs["out"].bytes == 4
    assert stored.options["times"].value == 2
    assert stored.resource_seconds["wall"] >= 0


@pytest.mark.integration
def test_the_same_inputs_again_do_nothing_and_others_do(settings: Settings, run: str) -> None:
    first = run_stage(stage(), settings, run, None, {})
    assert run_stage(stage(), settings, run, None, {}).started_at == first.started_at
    assert run_stage(stage(), settings, run, None, {"times": "2"}).started_at > first.started_at


@pytest.mark.integration
def test_what_a_stage_reads_besides_decides_whether_its_manifest_stands(settings: Settings, run: str) -> None:
    read = {"live": 1}
    reading = stage(reads=lambda context: {"stage": context.stage, **read})
    first = run_stage(reading, settings, run, None, {})
    assert run_stage(reading, settings, run, None, {}).started_at == first.started_at
    read["live"] = 2
    assert run_stage(reading, settings, run, None, {}).started_at > first.started_at


@pytest.mark.integration
def test_a_cost_row_is_written(settings: Settings, run: str) -> None:
    from tasks.database import connect

    run_stage(stage(), settings, run, "0001", {})
    with connect(settings.database_url.get_secret_value()) as connection:
        row = connection.execute("SELECT * FROM stage_costs WHERE run = %s", (run,)).fetchone()
    assert row is not None
    assert (row["stage"], row["part"], row["status"]) == ("tried", "0001", "complete")


@pytest.mark.integration
def test_a_stage_on_gpus_tells_their_energy(
    settings: Settings, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    lines = "2026/11/22 10:00:00.000, 0, 100.0\\n2026/11/22 10:00:02.000, 0, 100.0\\n"
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def work(gpus: int) -> Callable[[StageContext, Options], StageResult]:
        def wait(_context: StageContext, _options: Options) -> StageResult:
            time.sleep(0.5)
            return StageResult(gpus=gpus, metrics={"loss": 1.0})

        return wait

    found = [run_stage(stage(work(gpus)), settings, run, str(gpus), {}).metrics for gpus in (1, 0)]
    assert found == [{"loss": 1.0, "gpu_energy_joules": 200.0}, {"loss": 1.0}]


@pytest.mark.integration
def test_a_refusal_is_kept_with_its_reason_and_is_no_input(settings: Settings, run: str) -> None:
    def refuse(context: StageContext, options: Options) -> StageResult:
        return StageResult(status="refused", reason="worse than before")

    assert run_stage(stage(refuse), settings, run, None, {}).status == "refused"
    with pytest.raises(ManifestError, match="found refused: worse than before"):
        run_stage(Stage("next", Options, refuse, needs=("tried",)), settings, run, None, {})


@pytest.mark.integration
def test_a_missing_or_damaged_input_is_refused(settings: Settings, run: str) -> None:
    after = Stage("next", Options, lambda context, options: StageResult(), needs=("tried",))
    with pytest.raises(ManifestError, match="found no manifest"):
        run_stage(after, settings, run, None, {})
    manifest = run_stage(stage(), settings, run, None, {})
    Storage(settings.s3_endpoint_url).put_bytes(manifest.outputs["out"].uri, b"tampered")
    with pytest.raises(ManifestError, match="expected 7 bytes"):
        run_stage(after, settings, run, None, {})


def ended(name: str, run: str, **changes: Any) -> str:
    """Return how the stage `tried` ends in a process of its own, whose function `name` here sends SIGTERM to its process."""
    code = f"""
from tests import test_stage
from tasks.settings import settings
try:
    test_stage.run_stage(test_stage.stage(test_stage.{name}, **{changes!r}), settings(), {run!r}, None, {{}})
except test_stage.Preempted as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stopped_at_work(context: StageContext, options: Options) -> StageResult:
    os.kill(os.getpid(), signal.SIGTERM)
    return StageResult()


def stopped_and_saving(context: StageContext, options: Options) -> StageResult:
    os.kill(os.getpid(), signal.SIGTERM)
    raise Preempted(f"saved, stopping={context.stopping()}")


@pytest.mark.integration
def test_sigterm_leaves_no_manifest(settings: Settings, run: str) -> None:
    assert "expected tried to end, found SIGTERM" in ended("stopped_at_work", run)
    assert Storage(settings.s3_endpoint_url).read_manifest(f"{run}/tried/manifest.json") is None


@pytest.mark.integration
def test_a_graceful_stage_sees_the_signal_and_decides(settings: Settings, run: str) -> None:
    assert ended("stopped_and_saving", run, graceful=True) == "saved, stopping=True\n"


@pytest.mark.integration
def test_outputs_that_are_not_there_cannot_be_declared(settings: Settings, run: str) -> None:
    from tasks.contracts import Artifact

    def pretends(context: StageContext, options: Options) -> StageResult:
        return StageResult(outputs={"out": Artifact(uri=f"{context.folder}/none", sha256="0" * 64, bytes=1)})

    with pytest.raises(ManifestError, match="found nothing"):
        run_stage(stage(pretends), settings, run, None, {})


@pytest.mark.integration
def test_damaged_bytes_of_an_earlier_attempt_are_made_again(settings: Settings, run: str) -> None:
    first = run_stage(stage(), settings, run, None, {"word": "hi"})
    storage = Storage(settings.s3_endpoint_url)
    storage.put_bytes(first.outputs["out"].uri, b"tampered")
    again = run_stage(stage(), settings, run, None, {"word": "hi"})
    assert storage.get(again.outputs["out"]) == b"hi"


@pytest.mark.integration
def test_an_outdated_manifest_does_not_vouch_for_work_that_is_cut_short(settings: Settings, run: str) -> None:
    run_stage(stage(), settings, run, None, {"word": "old"})

    def broken(context: StageContext, options: Options) -> StageResult:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(stage(broken), settings, run, None, {"word": "new"})
    assert Storage(settings.s3_endpoint_url).read_manifest(f"{run}/tried/manifest.json") is None


@pytest.mark.integration
def test_a_store_that_is_away_does_not_end_a_stage_that_tells_its_progress(
    settings: Settings, run: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = Storage.put_json

    def away(storage: Storage, uri: str, value: Any) -> Any:
        if uri.endswith("progress.json"):
            raise ServiceUnavailable("S3 does not answer")
        return put(storage, uri, value)

    def work(context: StageContext, options: Options) -> StageResult:
        context.progress(1, 1, "rows")
        return StageResult(counts={"rows": 1})

    monkeypatch.setattr(Storage, "put_json", away)
    assert run_stage(stage(work), settings, run, None, {}).counts == {"rows": 1}
    assert "progress cannot be told now: S3 does not answer" in caplog.text
