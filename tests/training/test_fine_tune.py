"""The stages of a fine-tune for real: DeepSpeed with two ranks, S3, MLflow, Postgres."""

import json
import math
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.contracts import Manifest, digest_of
from tasks.database import connect
from tasks.errors import ReleaseError
from tasks.evaluation.measures import BASE, CANDIDATE
from tasks.evaluation.sets import NO_INDEX
from tasks.evaluation.table import read_table
from tasks.release import evidence as proofs
from tasks.release.evidence import Evidence
from tasks.serving.prompt import prompt_digest
from tasks.settings import repository_path
from tasks.settings import settings as process_settings
from tasks.training import reproduce
from tasks.training.adapters import files_of
from tests.training.bench import TINY, Bench, copy_dataset, make_release, validate_new, wait_for_rank

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(bench: Bench, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder whose candidate, of the tiny model, is trained and evaluated. Tests leave it as it was."""
    run = validate_new(bench, tmp_path_factory.mktemp("trained"))
    bench.train(run, recipe=TINY, base_model=tiny)
    bench.run("evaluate", run)
    return run


def kept(bench: Bench, run: str) -> list[str]:
    """Return what stands below models/ that was trained on the run's dataset."""
    found = []
    rows = bench.manifest(run, "validate_dataset").facts["dataset_sha256"]
    for uri, _size, _etag in bench.storage.list(f"{bench.bucket}/models/"):
        if uri.endswith("/training.json") and rows in bench.storage.get_bytes(uri).decode():
            found.append(uri)
    return found


def test_what_was_trained_is_recorded_and_the_same_inputs_train_nothing(bench: Bench, trained: str, tiny: str) -> None:
    """The real model goes the same way in tests/end_to_end."""
    train, evaluate = bench.manifest(trained, "train"), bench.manifest(trained, "evaluate")
    assert train.counts["steps"] == 3
    assert train.facts["ranks"] == 2
    assert train.metrics["loss_end"] < train.metrics["loss_start"]
    assert evaluate.metrics["difference_high"] < 0
    assert evaluate.facts["output_changed"] is True
    assert bench.run("gate", trained)["facts"]["verdict"] == "promote"
    assert digest_of(files_of(train.outputs)) == train.facts["adapter_sha256"]

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=bench.mlflow)
    history = client.get_metric_history(train.facts["mlflow_run_id"], "loss")
    assert [point.step for point in history] == [1, 2, 3]
    assert client.get_run(train.facts["mlflow_run_id"]).info.status == "FINISHED"

    second = bench.train(copy_dataset(bench, trained), recipe=TINY, base_model=tiny)
    assert second["counts"]["steps"] == 0
    assert second["facts"]["reused"] is True
    assert second["facts"]["adapter_sha256"] == train.facts["adapter_sha256"]


def test_what_was_asked_is_frozen_and_every_row_is_in_the_table(bench: Bench, trained: str) -> None:
    """No index serves here, so no golden questions: tests/evaluation and tests/end_to_end have them."""
    evaluate = bench.manifest(trained, "evaluate")
    facts, outputs = evaluate.facts, evaluate.outputs
    assert facts["left_out"] == {"golden": NO_INDEX}
    assert (facts["index_version"], facts["prompt_sha256"]) == (None, digest_of_prompt())
    assert {name: told["rows"] for name, told in facts["sets"].items()} == {"held_out": 12, "safety": 3, "format": 2}
    assert facts["sets"]["safety"]["sha256"] == outputs["sets/safety"].sha256
    assert len(list(bench.storage.get_rows(outputs["sets/safety"]))) == 3
    table = read_table(bench.storage, outputs["scores"])
    assert Counter((row["set"], row["model"]) for row in table) == {
        (name, model): rows for name, rows in (("held_out", 12), ("safety", 3), ("format", 2)) for model in (BASE, CANDIDATE)
    }  # fmt: skip
    losses = {row["id"]: row["loss"] for row in bench.storage.get_rows(outputs["rows"])}
    assert {row["id"]: row["loss"] for row in table if row["set"] == "held_out" and row["model"] == CANDIDATE} == {
        name: loss[CANDIDATE] for name, loss in losses.items()
    }
    answered = [row for row in table if row["set"] != "held_out"]
    assert all(row["answer"] for row in answered)
    assert evaluate.metrics["candidate_refused"] == 1
    assert evaluate.counts["answer_tokens"] > 0

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=bench.mlflow)
    run_id = bench.manifest(trained, "train").facts["mlflow_run_id"]
    assert facts["mlflow_table"] in [file.path for file in client.list_artifacts(run_id, "evaluation")]
    assert client.get_run(run_id).data.metrics["candidate_refused"] == 1


def digest_of_prompt() -> str:
    return prompt_digest(repository_path("tasks/serving/prompts/assistant.md").read_text(encoding="utf-8"))


def test_a_killed_rank_is_no_success(bench: Bench, validated: str, tiny: str) -> None:
    bench.plan(validated, recipe=TINY, base_model=tiny)
    process = bench.start("train", validated, recipe=TINY, base_model=tiny)
    wait_for_rank(process, 1).kill()
    out, log = process.communicate()
    assert process.returncode == 75, log[-3000:]
    assert not out.strip()
    assert "SIGKILL" in log
    assert bench.storage.read_manifest(f"{validated}/train/manifest.json") is None
    assert kept(bench, validated) == []


def test_a_damaged_result_is_trained_again(bench: Bench, trained: str, tiny: str) -> None:
    first = bench.manifest(trained, "train")
    bench.storage.delete_prefix(first.outputs["packages"].uri)
    second = bench.train(trained, recipe=TINY, base_model=tiny)
    assert second["counts"]["steps"] == 3
    assert second["facts"]["adapter_uri"] != first.facts["adapter_uri"]
    for artifact in files_of(first.outputs).values():
        bench.storage.verify(artifact)  # a release may name them
    assert second["facts"]["adapter_sha256"] == first.facts["adapter_sha256"], "the same inputs, the same bytes"


def test_what_was_trained_before_is_judged_by_the_recipe_of_now(
    bench: Bench, trained: str, tiny: str, tmp_path: Path
) -> None:
    """`evaluation` trains nothing: the same training is found, and its evaluation follows this run's recipe."""
    text = repository_path(TINY).read_text(encoding="utf-8")
    assert "min_rows: 8" in text
    stricter = tmp_path / "stricter.yaml"
    stricter.write_text(text.replace("min_rows: 8", "min_rows: 13"), encoding="utf-8")
    run = copy_dataset(bench, trained)
    found = bench.train(run, recipe=str(stricter), base_model=tiny)
    assert found["facts"]["reused"] is True
    bench.run("evaluate", run)
    judged = bench.run("gate", run, expect=3)
    assert "13" in judged["reason"]
    assert "recipe" in bench.manifest(trained, "train").outputs, "what was trained keeps its own"


def test_preferences_are_judged_as_preferences(bench: Bench, tiny: str, tmp_path: Path) -> None:
    """The loss of the better answer may rise while a model learns to choose: the gate looks at the pairs."""
    recipe = yaml.safe_load(repository_path(TINY).read_text(encoding="utf-8")) | {"method": "dpo"}
    recipe["optimisation"] |= {"beta": 0.5, "epochs": 4, "rows_per_step": 4, "learning_rate": 0.01}
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = validate_new(bench, tmp_path, str(path), rejected="Nobody knows what that may be.")
    trained = bench.train(run, recipe=str(path), base_model=tiny)
    assert trained["facts"]["outcome"] == "complete"
    found = bench.run("evaluate", run)
    assert found["facts"]["measure"] == "preference loss of pairs"
    assert found["metrics"]["base_loss"] == pytest.approx(math.log(2))
    assert found["metrics"]["candidate_loss"] < found["metrics"]["base_loss"]
    assert found["metrics"]["candidate_answer_loss"] != found["metrics"]["base_answer_loss"]
    rows = list(bench.storage.get_rows(bench.manifest(run, "evaluate").outputs["rows"]))
    assert len(rows) == found["counts"]["rows"] == 12
    judged = bench.run("gate", run)
    assert judged["facts"]["verdict"] == "promote"


def test_a_model_without_weights_is_bad_input(bench: Bench, validated: str) -> None:
    reference = f"{bench.bucket}/tiny/{uuid.uuid4().hex}"
    bench.storage.put_bytes(f"{reference}/config.json", b"{}")
    found = bench.run("plan_training", validated, expect=2, recipe=TINY, base_model=reference)
    assert "ModelError: expected safetensors weights" in found["log"], "before a GPU is asked for"


Change = Callable[[Manifest], dict[str, Any]]


def better(manifest: Manifest) -> dict[str, Any]:
    return {"metrics": manifest.metrics | {"difference": -1.0, "difference_low": -2.0, "difference_high": -0.5}}


def other_adapter(manifest: Manifest) -> dict[str, Any]:
    return {"facts": manifest.facts | {"weights_sha256": "0" * 64}}


def other_rows(manifest: Manifest) -> dict[str, Any]:
    return {"facts": manifest.facts | {"held_out_sha256": "0" * 64}}


def more_rows(manifest: Manifest) -> dict[str, Any]:
    return {"facts": manifest.facts | {"rows": 10_000}}


def a_champion(manifest: Manifest) -> dict[str, Any]:
    return {"facts": manifest.facts | {"champion_release": 7}}


def test_the_gate_believes_no_figure_that_was_changed(bench: Bench, trained: str) -> None:
    honest = bench.manifest(trained, "evaluate")
    changes: dict[Change, str] = {
        better: "the scores of the rows give",
        other_adapter: "another adapter",
        other_rows: "another held-out set",
        more_rows: "not those of the held-out rows",
        a_champion: "disagree about the champion",
    }
    for change, told in changes.items():
        tampered = honest.model_copy(update=change(honest))
        bench.storage.put_bytes(honest.uri, tampered.to_bytes())
        result = bench.run("gate", trained, expect=3)
        assert result["facts"]["verdict"] == "hold"
        assert told in result["facts"]["reason"]
    train = bench.manifest(trained, "train")
    bench.storage.put_bytes(honest.uri, honest.to_bytes())
    adapter = train.outputs["adapter/adapter_model.safetensors"]
    body = bench.storage.get(adapter)
    bench.storage.put_bytes(adapter.uri, body[:-1] + bytes([body[-1] ^ 1]))
    assert "ManifestError" in bench.run("gate", trained, expect=2)["log"]
    bench.storage.put_bytes(adapter.uri, body)


def test_the_champion_again_is_nothing_new(bench: Bench, trained: str, tiny: str) -> None:
    release = make_release(bench, bench.manifest(trained, "train").facts, tiny)
    # As a cleared task: another release is live, so that it is measured again.
    result = bench.run("evaluate", trained)
    assert result["facts"]["champion_release"] == release
    assert result["metrics"]["champion_loss"] == pytest.approx(result["metrics"]["candidate_loss"])
    gate = bench.run("gate", trained, expect=3)
    assert gate["facts"]["verdict"] == "hold"
    assert "nothing new was learned" in gate["facts"]["reason"]


def test_a_released_training_is_done_again_to_the_same_loss(bench: Bench, trained: str, tiny: str) -> None:
    stages = {name: bench.manifest(trained, name) for name in ("validate_dataset", "train", "evaluate")}
    first, loss = stages["train"], stages["evaluate"].metrics["candidate_loss"]
    content = {"manifests": {name: manifest.model_dump(mode="json") for name, manifest in stages.items()}}
    evidence = proofs.keep(bench.storage, bench.bucket, content)
    number = str(make_release(bench, first.facts, tiny, evidence))
    models = list(bench.storage.list(f"{bench.bucket}/models/"))
    run = f"{bench.bucket}/runs/reproduce/{uuid.uuid4().hex}"
    process = bench.start_tool("reproduce", number, "--run", run, "--start")
    out, log = process.communicate()
    assert process.returncode == 0, f"{out}\n{log[-3000:]}"
    again = bench.manifest(run, "train")
    assert again.counts["steps"] == first.counts["steps"] == 3, "it was trained, not found"
    assert again.facts["training_fingerprint"] == first.facts["training_fingerprint"]
    assert list(bench.storage.list(f"{bench.bucket}/models/")) == models, "the original is left alone"
    told = json.loads(out.splitlines()[-1])
    assert (told["within"], told["tolerance"]) == (True, 1e-6), "the same machine, ranks and packages"
    assert told["found"] == pytest.approx(loss, abs=1e-6)
    assert told["same_bytes"] is True
    assert "byte for byte those of the release" in out

    evaluate = bench.manifest(run, "evaluate")
    passed = evaluate.model_copy(update={"facts": {"verdict": "promote"}})
    with pytest.raises(ReleaseError, match="done again"):
        proofs.check(Evidence(stages["validate_dataset"], again, evaluate, passed))

    other = evaluate.metrics | {"candidate_loss": loss + 0.001}
    bench.storage.put_bytes(evaluate.uri, evaluate.model_copy(update={"metrics": other}).to_bytes())
    process_settings.cache_clear()
    assert reproduce.main([number, "--run", run]) == 3
    process_settings.cache_clear()
    kept = json.loads(bench.storage.get_bytes(f"{run}/reproduce/comparison.json"))
    assert (kept["within"], round(kept["difference"], 6)) == (False, 0.001)


def test_accepted_corrections_are_trained_on(bench: Bench) -> None:
    request, pending = uuid.uuid4(), uuid.uuid4()
    with connect(bench.database) as connection:
        for number in (request, pending):
            connection.execute(
                "INSERT INTO requests (id, created_at, kind, question, latency_ms) VALUES (%s, now(), 'chat', %s, 1)",
                (number, f"How do I sort {number}?"),
            )
        connection.execute(
            "INSERT INTO feedback (request_id, rating, correction, status, reviewed_by) "
            "VALUES (%s, 'down', 'Call its method sort, which works in place.', 'accepted', 'ada')",
            (request,),
        )
        connection.execute(
            "INSERT INTO feedback (request_id, rating, correction) VALUES (%s, 'down', 'Nobody has read this one yet.')",
            (pending,),
        )
    run = bench.new_run()
    built = bench.run("build_dataset", run, recipe="smoke_cpu")
    assert built["counts"]["feedback_train"] == 1
    rows = list(bench.storage.get_rows(bench.manifest(run, "build_dataset").outputs["candidates"]))
    (corrected,) = [row for row in rows if row["origin"] == "feedback"]
    assert corrected["split"] == "train"
    assert corrected["messages"][0]["content"] == f"How do I sort {request}?"
    assert bench.run("validate_dataset", run)["counts"]["feedback_train"] == 1
