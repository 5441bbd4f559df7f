"""A released training, done again for real; and everything that may be missing or other by then."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ReleaseError, ReproductionError
from tasks.release import evidence as proofs
from tasks.release.evidence import Evidence
from tasks.release.ledger import get, ledger
from tasks.settings import load_settings
from tasks.settings import settings as process_settings
from tasks.training import reproduce
from tasks.training.reproduce_checks import Examined, Original, examine, recall
from tests.tiny_model import make_model
from tests.training.bench import TINY, Bench, validate_new
from tests.training.test_fine_tune import make_release

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def released(bench: Bench, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """A release whose candidate, of the tiny model, was trained, evaluated and kept. Tests leave it as it was."""
    process_settings.cache_clear()
    run = validate_new(bench, tmp_path_factory.mktemp("released"))
    bench.train(run, recipe=TINY, base_model=tiny)
    bench.run("evaluate", run)
    stages = {name: bench.manifest(run, name) for name in ("validate_dataset", "train", "evaluate")}
    content = {"manifests": {name: manifest.model_dump(mode="json") for name, manifest in stages.items()}}
    kept = proofs.keep(bench.storage, bench.bucket, content)
    number = make_release(bench, stages["train"].facts, tiny, kept)
    bench.storage.delete_prefix(f"{run}/")  # as housekeeping would: a release outlives its run folder
    with ledger(load_settings()) as connection:
        yield recall(bench.storage, get(connection, number))
    process_settings.cache_clear()


def examined(bench: Bench, original: Original, **settings: Any) -> Examined:
    return examine(load_settings().model_copy(update=settings), bench.storage, original)


def level(found: Examined, what: str) -> tuple[str, str]:
    (one,) = [finding for finding in found.findings if finding.what == what]
    return one.level, one.text


def test_it_is_trained_again_to_the_same_loss(bench: Bench, released: Original, tiny: str) -> None:
    models = list(bench.storage.list(f"{bench.bucket}/models/"))
    run, number = f"{bench.bucket}/runs/reproduce/again", str(released.release.release)
    process = bench.start_tool("reproduce", number, "--run", run, "--start")
    out, log = process.communicate()
    assert process.returncode == 0, f"{out}\n{log[-3000:]}"
    train = bench.manifest(run, "train")
    assert train.counts["steps"] == released.train.counts["steps"] == 3, "it was trained, not found"
    assert train.facts["training_fingerprint"] == released.train.facts["training_fingerprint"]
    assert train.facts["adapter_uri"].startswith(f"{run}/train/")
    assert list(bench.storage.list(f"{bench.bucket}/models/")) == models, "the original is left alone"
    told = json.loads(out.splitlines()[-1])
    assert told["within"] is True
    assert told["tolerance"] == 1e-6
    assert told["found"] == pytest.approx(released.evaluate.metrics["candidate_loss"], abs=1e-6)
    assert told["same_bytes"] is True
    assert "byte for byte those of the release" in out

    evaluate = bench.manifest(run, "evaluate")
    stages = {name: bench.manifest(run, name) for name in ("validate_dataset", "train", "evaluate")}
    gate = evaluate.model_copy(update={"facts": {"verdict": "promote"}})
    with pytest.raises(ReleaseError, match="done again"):
        proofs.check(Evidence(**stages, gate=gate))

    other = {name: value + (0.001 if name == "candidate_loss" else 0) for name, value in evaluate.metrics.items()}
    bench.storage.put_bytes(evaluate.uri, evaluate.model_copy(update={"metrics": other}).to_bytes())
    assert reproduce.main([number, "--run", run]) == reproduce.OUTSIDE
    kept = json.loads(bench.storage.get_bytes(f"{run}/reproduce/comparison.json"))
    assert (kept["within"], round(kept["difference"], 6)) == (False, 0.001)


def test_it_says_what_it_needs_and_prepares_it(bench: Bench, released: Original, capsys: Any) -> None:
    run, number = f"{bench.bucket}/runs/reproduce/prepared", str(released.release.release)
    assert reproduce.main([number, "--run", run]) == 0
    assert reproduce.main([number, "--run", run]) == 0, "prepared again"
    out = capsys.readouterr().out
    assert f"python -m tasks train --run {run} --recipe {run}/reproduce/recipe.yaml" in out
    assert f"--reproduces {number}" in out
    assert " missing " not in out
    assert bench.manifest(run, "validate_dataset").outputs == released.frozen
    assert set(released.frozen) >= {"train", "held_out"}
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
    for change in (None, body[:-2] + b"}\n"):
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
    assert level(examined(bench, facts(released, training_fingerprint="f")), "all inputs")[0] == "differs"


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
