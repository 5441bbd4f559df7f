"""What may be missing or other when a training is to be done again. tests/training/test_fine_tune.py does one for real."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import models
from tasks.contracts import Artifact, Manifest, Option, digest_of
from tasks.errors import ReleaseError, ReproductionError
from tasks.release import evidence as proofs
from tasks.release.ledger import get, ledger
from tasks.settings import load_settings
from tasks.settings import settings as process_settings
from tasks.training import reproduce
from tasks.training.job import Plan
from tasks.training.made_with import made_with
from tasks.training.recipes import load_recipe
from tasks.training.reproduce_checks import Examined, examine
from tasks.training.reproduce_original import Original, recall
from tasks.training.team import Team
from tests.tiny_model import make_model
from tests.training.bench import TINY, Bench, make_release

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def released(bench: Bench, tiny: str) -> Iterator[Original]:
    """A release with kept evidence whose run folder is gone; nothing was trained. Tests leave it as it was."""
    process_settings.cache_clear()
    storage, own, recipe = bench.storage, load_settings(), load_recipe(TINY)
    rows = {
        side: storage.put_rows(f"{bench.bucket}/datasets/{uuid.uuid4().hex}/{side}.jsonl", [{"id": side, "number": 1}])
        for side in ("train", "held_out")
    }
    base = models.fetch(tiny, own.cache_dir, storage)
    revision = models.revision(tiny, base)
    plan = Plan(TINY, recipe, Team(2), tiny, base, revision, {"train": rows["train"]}, "d", {})
    folder = f"{bench.bucket}/models/{plan.fingerprint}"
    adapter = {
        "adapter_model.safetensors": storage.put_bytes(f"{folder}/adapter/adapter_model.safetensors", b"weights"),
        "adapter_config.json": storage.put_json(f"{folder}/adapter/adapter_config.json", {"r": 8}),
    }
    facts = {
        "weights": "adapter",
        "adapter_uri": f"{folder}/adapter",
        "adapter_sha256": digest_of(adapter),
        "training_fingerprint": plan.fingerprint,
        "recipe": TINY,
        "base_model": tiny,
        "base_revision": revision,
        "dataset_sha256": "d",
        "ranks": 2,
        "made_with": made_with(own, recipe),
        "start_adapter_sha256": None,
    }
    outputs = {f"adapter/{name}": artifact for name, artifact in adapter.items()}
    outputs["recipe"] = storage.put_json(f"{folder}/recipe.json", recipe.model_dump(mode="json"))
    gone = Artifact(uri="s3://millrace/runs/fine_tune/gone/validate_dataset/quarantine.jsonl", sha256="0" * 64, bytes=9)
    stages = [
        manifest("validate_dataset", outputs=rows | {"quarantine": gone}, facts={"dataset_sha256": "d"}),
        manifest("train", outputs=outputs, facts=facts, options={"adapter": Option(value="", origin="default")}),
        manifest("evaluate", metrics={"candidate_loss": 3.0, "base_loss": 3.5}),
    ]
    content = {"manifests": {one.stage: one.model_dump(mode="json") for one in stages}}
    number = make_release(bench, facts, tiny, proofs.keep(storage, bench.bucket, content))
    with ledger(own) as connection:
        yield recall(storage, get(connection, number))
    process_settings.cache_clear()


def manifest(stage: str, **fields: Any) -> Manifest:
    now = datetime.now(UTC)
    place = {"run": "s3://millrace/runs/fine_tune/gone", "fingerprint": "f", "code_revision": "c", "host": "h"}
    return Manifest(stage=stage, status="complete", started_at=now, ended_at=now, **place, **fields)


def examined(bench: Bench, original: Original, **settings: Any) -> Examined:
    return examine(load_settings().model_copy(update=settings), bench.storage, original)


def level(found: Examined, what: str) -> tuple[str, str]:
    (one,) = [finding for finding in found.findings if finding.what == what]
    return one.level, one.text


def test_it_says_what_it_needs_and_prepares_it(bench: Bench, released: Original, capsys: Any) -> None:
    run, number = f"{bench.bucket}/runs/reproduce/prepared", str(released.release.release)
    assert reproduce.main([number, "--run", run]) == 0
    assert reproduce.main([number, "--run", run]) == 0, "prepared again"
    out = capsys.readouterr().out
    assert f"python -m tasks train --run {run} --recipe {run}/reproduce/recipe.yaml" in out
    assert f"--reproduces {number}" in out
    assert " missing " not in out
    assert bench.manifest(run, "validate_dataset").outputs == released.frozen
    assert set(released.frozen) == {"train", "held_out"}, "what went with the run folder is not asked for"
    told = json.loads(bench.storage.get_bytes(f"{run}/reproduce/reproduce.json"))
    assert told["expected"]["candidate_loss"] == released.evaluate.metrics["candidate_loss"]
    assert {one["what"]: one["level"] for one in told["findings"]} | {"code": ""} == {
        "code": "",
        **dict.fromkeys(("dataset", "recipe", "base model", "start adapter", "seed"), "same"),
        **dict.fromkeys(("ranks", "packages", "hardware", "all inputs"), "same"),
    }

    theirs = f"{bench.bucket}/runs/fine_tune/theirs"
    bench.storage.put_bytes(f"{theirs}/train/progress.json", b"{}")
    with pytest.raises(ReproductionError, match="expected an empty run folder"):
        reproduce.main([number, "--run", theirs])


def test_a_dataset_that_is_gone_or_other_is_missing(bench: Bench, released: Original) -> None:
    rows = released.frozen["train"]
    body = bench.storage.get(rows)
    for change in (None, body.replace(b"1", b"2")):
        bench.storage.delete_prefix(rows.uri)
        if change is not None:
            bench.storage.put_bytes(rows.uri, change)
        found = examined(bench, released)
        assert level(found, "dataset")[0] == "missing"
        assert rows.uri in level(found, "dataset")[1]
        run = bench.new_run()
        with pytest.raises(ReproductionError, match="dataset: expected"):
            reproduce.prepare(load_settings(), bench.storage, released, found, run)
        assert not list(bench.storage.list(f"{run}/")), "nothing was prepared"
    bench.storage.put_bytes(rows.uri, body, rows=rows.rows)
    assert level(examined(bench, released), "dataset")[0] == "same"


def test_a_recipe_that_was_changed_is_missing(bench: Bench, released: Original) -> None:
    kept = released.train.outputs["recipe"]
    body = bench.storage.get(kept)
    bench.storage.put_bytes(kept.uri, body.replace(b'"seed": 17', b'"seed": 18'))
    found = examined(bench, released)
    assert level(found, "recipe")[0] == "missing"
    assert found.recipe is None
    bench.storage.put_bytes(kept.uri, body)
    mark, text = level(examined(bench, released), "recipe")
    assert (mark, text) == ("same", f"{TINY} as it was trained with; today's is the same")


def test_a_base_model_that_is_gone_or_of_another_revision_is_missing(
    bench: Bench, released: Original, tiny: str, tmp_path: Path
) -> None:
    moved = {uri: bench.storage.get_bytes(uri) for uri, _size, _etag in list(bench.storage.list(f"{tiny}/"))}
    bench.storage.delete_prefix(f"{tiny}/")
    assert level(examined(bench, released), "base model")[0] == "missing"
    bench.storage.put_folder(tiny, make_model(tmp_path, seed=2))
    mark, text = level(examined(bench, released), "base model")
    assert mark == "missing"
    assert f"expected revision {released.train.facts['base_revision']}, found " in text
    for uri, body in moved.items():
        bench.storage.put_bytes(uri, body)
    assert level(examined(bench, released), "base model")[0] == "same"


def test_other_code_packages_and_ranks_are_told(bench: Bench, released: Original) -> None:
    found = examined(bench, released, code_revision="c" * 40)
    mark, text = level(found, "code")
    assert mark == "differs"
    assert "c" * 40 in text
    assert "git checkout" in text
    assert level(examined(bench, altered(released, code="d" * 40), code_revision="d" * 40), "code")[0] == "same"
    assert level(examined(bench, altered(released, torch="1.0")), "packages")[0] == "differs"
    assert "torch 1.0 then" in level(examined(bench, altered(released, torch="1.0")), "packages")[1]
    before = replace(released, train=released.train.model_copy(update={"facts": without(released, "made_with")}))
    assert level(examined(bench, before), "packages")[1].startswith("not recorded then")
    assert level(examined(bench, facts(released, ranks=4)), "ranks") == ("differs", "4 then, 2 here")
    assert level(examined(bench, facts(released, training_fingerprint="f")), "all inputs")[0] == "missing"


def test_a_start_adapter_that_is_gone_or_other_is_missing(bench: Bench, released: Original) -> None:
    option = {"adapter": released.train.options["adapter"].model_copy(update={"value": f"{bench.bucket}/gone"})}
    gone = replace(released, train=released.train.model_copy(update={"options": released.train.options | option}))
    assert level(examined(bench, gone), "start adapter")[0] == "missing"
    place = released.weights.uri
    option = {"adapter": released.train.options["adapter"].model_copy(update={"value": place})}
    there = replace(released, train=released.train.model_copy(update={"options": released.train.options | option}))
    assert level(examined(bench, there), "start adapter")[0] == "same"
    assert level(examined(bench, facts(there, start_adapter_sha256="0" * 64)), "start adapter")[0] == "missing"


def test_evidence_of_another_release_is_refused(bench: Bench, released: Original) -> None:
    with pytest.raises(ReleaseError, match="expected evidence about adapter and base"):
        recall(bench.storage, replace(released.release, adapter_sha256="0" * 64))


def facts(original: Original, **changes: Any) -> Original:
    return replace(original, train=original.train.model_copy(update={"facts": original.train.facts | changes}))


def without(original: Original, name: str) -> dict[str, Any]:
    return {key: value for key, value in original.train.facts.items() if key != name}


def altered(original: Original, code: str = "", torch: str = "") -> Original:
    made = dict(original.train.facts["made_with"])
    if code:
        made["code_revision"] = code
    if torch:
        made["packages"] = made["packages"] | {"torch": torch}
    return facts(original, made_with=made)
