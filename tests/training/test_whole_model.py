"""A whole model, all weights trained by two ranks, through every stage up to the answers of its release."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.database import connect
from tasks.release import ledger
from tasks.serving.language_model import Sampling
from tasks.serving.transformers_model import load_base
from tasks.settings import repository_path
from tests.training.bench import TINY, Bench, validate_new

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long]


def full(folder: Path) -> str:
    """Return a recipe that trains all weights of the tiny model, as its file."""
    values: dict[str, Any] = yaml.safe_load(repository_path(TINY).read_text(encoding="utf-8"))
    values |= {"tuning": "full", "lora": None}
    path = folder / "full.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def make_index(bench: Bench) -> None:
    """Make an index version without chunks current: a release needs one."""
    with connect(bench.database) as connection:
        connection.execute(
            "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, "
            "documents, chunks, run) VALUES ('f', 'default', 's', 'e', 3, 'chunks_none', 'current', 0, 0, 'r')"
        )
        connection.execute("CREATE TABLE chunks_none (chunk_id text)")


def test_all_weights_are_trained_judged_registered_released_and_served(bench: Bench, tiny: str, tmp_path: Path) -> None:
    bench.environment["MILLRACE_MODEL_NAME"] = f"whole-{uuid.uuid4().hex}"
    recipe = full(tmp_path)
    run, release = validate_new(bench, tmp_path), bench.new_run()
    train = bench.train(run, recipe=recipe, base_model=tiny)
    assert (train["facts"]["weights"], train["facts"]["ranks"]) == ("model", 2)
    evaluate = bench.run("evaluate", run)
    assert (evaluate["counts"]["models"], evaluate["facts"]["output_changed"]) == (2, True)
    assert evaluate["metrics"]["difference_high"] < 0
    assert bench.run("gate", run)["facts"]["weights_sha256"] == train["facts"]["model_sha256"]
    register = bench.run("register", run)
    assert register["facts"]["base_model"] == train["facts"]["model_uri"]

    make_index(bench)
    bench.run("propose", release, candidate=bench.manifest(run, "register").uri)
    bench.run("promote", release, approved_by="Ada", reason="better")
    with connect(bench.database) as connection:
        live = ledger.live(connection)
    assert live is not None
    assert (live.adapter_uri, live.adapter_sha256, live.base_model) == (None, None, train["facts"]["model_uri"])
    endpoint = bench.environment["MILLRACE_S3_ENDPOINT_URL"]
    model = load_base(live.base_model, live.base_revision, tmp_path / "cache", endpoint, 1)
    assert model.generate(None, [1, 2, 3], Sampling(max_tokens=4)).result().completion_tokens > 0
    model.close()

    with connect(bench.database) as connection:  # golden questions would be looked up in what is no index
        connection.execute("UPDATE index_versions SET status = 'former'")

    # The same weights against themselves, which are the champion now: scored as a model of its own.
    # Cleared, `evaluate` measures again by itself: another release is live than when its manifest was written.
    again = bench.run("evaluate", run)
    assert (again["facts"]["champion_release"], again["counts"]["models"]) == (live.release, 3)
    assert again["facts"]["champion_weights_sha256"] == again["facts"]["weights_sha256"]
    assert again["metrics"]["champion_loss"] == pytest.approx(again["metrics"]["candidate_loss"])
    assert "nothing new was learned" in bench.run("gate", run, expect=3)["facts"]["reason"]

    # An adapter of the same base model is measured against the whole model that is live.
    bench.train(run, recipe=TINY, base_model=tiny)
    adapter = bench.run("evaluate", run)
    assert (adapter["facts"]["weights"], adapter["counts"]["models"]) == ("adapter", 3)
    assert adapter["metrics"]["champion_loss"] == pytest.approx(again["metrics"]["champion_loss"])
    assert adapter["metrics"]["candidate_loss"] != pytest.approx(again["metrics"]["candidate_loss"])

    # A byte of the candidate that changed, or a manifest that calls it another kind, is no candidate.
    bench.train(run, recipe=recipe, base_model=tiny)
    bench.run("evaluate", run)
    manifest = bench.manifest(run, "train")
    renamed = manifest.model_copy(update={"facts": manifest.facts | {"weights": "adapter"}})
    bench.storage.put_bytes(manifest.uri, renamed.to_bytes())
    assert "expected files of one kind, adapter" in bench.run("gate", run, expect=3)["facts"]["reason"]
    bench.storage.put_bytes(manifest.uri, manifest.to_bytes())
    weights = manifest.outputs["model/model.safetensors"]
    body = bench.storage.get(weights)
    bench.storage.put_bytes(weights.uri, body[:-1] + bytes([body[-1] ^ 1]))
    assert "ManifestError" in bench.run("gate", run, expect=2)["log"]
