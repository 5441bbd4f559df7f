"""The gate reads bytes, not claims: sets, scores and rows that do not belong together are hold, each with its reason."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.contracts import Artifact, digest_of
from tasks.errors import ManifestError, ReleaseError
from tasks.evaluation import gate
from tasks.evaluation.evaluate import compare, read_scores
from tasks.evaluation.measures import MODELS
from tasks.evaluation.table import put_table
from tasks.release import evidence
from tasks.stage import StageResult
from tasks.training.recipes import Recipe, load_recipe
from tests.evaluation.tables import Table, change, make_table

RECIPE = load_recipe("demo").model_copy(
    update={"evaluation": load_recipe("demo").evaluation.model_copy(update={"resamples": 1000})}
)
ADAPTER = "s3://b/models/x/adapter"


class Memory:
    """Storage in memory: the calls that the gate makes, with digests compared as in S3."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    def put_bytes(self, uri: str, body: bytes, *, content_type: str = "") -> Artifact:
        self.bytes[uri] = body
        return Artifact(uri=uri, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))

    def put_json(self, uri: str, value: Any) -> Artifact:
        return self.put_bytes(uri, json.dumps(value).encode())

    def put_rows(self, uri: str, rows: list[dict[str, Any]]) -> Artifact:
        written = self.put_bytes(uri, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return written.model_copy(update={"rows": len(rows)})

    def get(self, artifact: Artifact) -> bytes:
        body = self.bytes[artifact.uri]
        if hashlib.sha256(body).hexdigest() != artifact.sha256:
            raise ManifestError(f"expected sha256 {artifact.sha256} at {artifact.uri}, found another")
        return body

    def get_json(self, artifact: Artifact) -> Any:
        return json.loads(self.get(artifact))

    def get_rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.get(artifact).splitlines()]

    def get_file(self, artifact: Artifact, path: Path) -> Path:
        path.write_bytes(self.get(artifact))
        return path

    def list(self, prefix: str) -> list[tuple[str, int, str]]:
        return [(uri, len(body), "") for uri, body in self.bytes.items() if uri.startswith(prefix)]


class Context(SimpleNamespace):
    """What the gate runs with: the stages before it, as their manifests would say."""

    def input(self, stage: str, name: str) -> Artifact:
        if name not in self.inputs[stage].outputs:
            raise ManifestError(f"expected {stage} to have an output {name!r}")
        found: Artifact = self.inputs[stage].outputs[name]
        return found


def losses(table: Table) -> list[dict[str, Any]]:
    """Return the rows of `rows.jsonl` for a table."""
    by_id: dict[str, dict[str, Any]] = {}
    for row in table:
        if row["set"] == "held_out":
            found = by_id.setdefault(row["id"], {"id": row["id"], "tokens": int(row["tokens"]), "loss": {}})
            found["loss"][row["model"]] = row["loss"]
    return list(by_id.values())


def make(table: Table | None = None, recipe: Recipe = RECIPE) -> Any:
    """Return a context in which all belongs together, and the candidate is better."""
    storage, table = Memory(), make_table() if table is None else table
    weights = {"adapter_model.safetensors": storage.put_bytes(f"{ADAPTER}/adapter_model.safetensors", b"w")}
    sets = {
        name: storage.put_rows(
            f"s3://b/sets/{name}", [{"id": id} for id in dict.fromkeys(r["id"] for r in table if r["set"] == name)]
        )
        for name in dict.fromkeys(row["set"] for row in table)
    }
    rows = losses(table)
    outputs = {
        "rows": storage.put_rows("s3://b/rows.jsonl", rows),
        "scores": put_table(storage, "s3://b/scores.parquet", table),  # type: ignore[arg-type]
    }
    outputs |= {f"sets/{name}": artifact for name, artifact in sets.items() if name != "held_out"}
    facts = {
        "champion_release": 3, "champion_weights_sha256": "c" * 64, "weights_sha256": digest_of(weights),
        "held_out_sha256": sets["held_out"].sha256, "output_changed": True, "rows": len(rows),
        "sets": {name: {"sha256": artifact.sha256, "rows": artifact.rows} for name, artifact in sets.items()},
    }  # fmt: skip
    train_facts = {"weights": "adapter", "adapter_uri": ADAPTER, "adapter_sha256": digest_of(weights)}
    asked = storage.put_json("s3://b/recipe.json", recipe.model_dump(mode="json"))
    files = {f"adapter/{name}": artifact for name, artifact in weights.items()}
    inputs = {
        "validate_dataset": SimpleNamespace(outputs={"held_out": sets["held_out"]}),
        "train": SimpleNamespace(outputs=files | {"recipe": asked}, facts=train_facts, base_model="b", uri="train"),
        "evaluate": SimpleNamespace(outputs=outputs, facts=facts, metrics=compare(read_scores(rows), recipe)),
    }
    assert set(rows[0]["loss"]) == set(MODELS)
    return Context(storage=storage, inputs=inputs, folder="s3://b/gate")


def judged(context: Any) -> StageResult:
    return gate.run(context, gate.Options())


def test_the_verdict_is_bound_to_the_weights_and_to_every_set() -> None:
    context = make()
    result = judged(context)
    assert (result.status, result.facts["verdict"]) == ("complete", "promote")
    evaluate = context.inputs["evaluate"].facts
    for name in ("weights_sha256", "held_out_sha256", "sets"):
        assert result.facts[name] == evaluate[name]
    assert set(result.facts["sets"]) == {"held_out", "golden", "safety", "format"}
    written = context.storage.get_json(result.outputs["verdict"])
    assert (written["verdict"], written["sets"]) == ("promote", evaluate["sets"])
    assert written["judged"][0]["word"] == "better" and len(written["judged"]) == result.counts["judged"]
    assert context.storage.get(result.outputs["text"]).startswith(b"# Verdict: promote\n")


def test_a_guard_closes_the_gate() -> None:
    result = judged(make(change(make_table(), "groundedness", 0.0, ids=30)))
    assert (result.status, result.facts["verdict"]) == ("refused", "hold")
    assert str(result.reason).startswith("hold: worse: groundedness of golden")


def test_a_candidate_for_a_person_is_complete_and_says_so() -> None:
    """Only hold ends refused: a candidate that nobody could register would never meet the person who must decide."""
    rows = [row for row in make_table() if row["set"] != "safety"]
    none = RECIPE.model_copy(update={"evaluation": RECIPE.evaluation.model_copy(update={"safety_probes": 0})})
    context = make(rows, none)
    context.inputs["evaluate"].facts["left_out"] = {"safety": "the recipe asks for none"}
    context.inputs["evaluate"].facts["judge"] = {"unavailable": "found status 500 5 times"}
    result = judged(context)
    assert (result.status, result.reason, result.facts["verdict"]) == ("complete", None, "review")
    assert result.facts["reason"].startswith("not judged: safety (the recipe asks for none); better: ")
    text = context.storage.get(result.outputs["text"]).decode()
    assert text.startswith("# Verdict: review\n")
    assert "The judge was unavailable, and decides nothing: found status 500 5 times" in text


def test_a_gate_that_is_cleared_judges_again() -> None:
    assert gate.STAGE.fleeting, "an earlier manifest would stand: its inputs did not change"
    context = make()
    first, again = judged(context), judged(context)
    assert first.facts["judged_at"] < again.facts["judged_at"], "what was registered by the first is registered again"
    assert first.facts | {"judged_at": ""} == again.facts | {"judged_at": ""}


def other_digest(context: Any) -> None:
    context.inputs["evaluate"].facts["sets"]["safety"]["sha256"] = "0" * 64


def other_set(context: Any) -> None:
    """The set was exchanged after it was asked, and its digest too: the scores are of other rows."""
    written = context.storage.put_rows("s3://b/sets/golden", [{"id": f"easy {n}"} for n in range(40)])
    context.inputs["evaluate"].outputs["sets/golden"] = written
    context.inputs["evaluate"].facts["sets"]["golden"]["sha256"] = written.sha256


def changed_bytes(context: Any) -> None:
    context.storage.bytes["s3://b/sets/golden"] += b'{"id": "more"}\n'


def other_held_out(context: Any) -> None:
    context.inputs["evaluate"].facts["sets"]["held_out"]["sha256"] = "0" * 64


def no_bytes_of_a_set(context: Any) -> None:
    del context.inputs["evaluate"].outputs["sets/format"]


def no_table(context: Any) -> None:
    del context.inputs["evaluate"].outputs["scores"]


def no_sets(context: Any) -> None:
    del context.inputs["evaluate"].facts["sets"]


def no_parquet(context: Any) -> None:
    context.inputs["evaluate"].outputs["scores"] = context.storage.put_bytes("s3://b/scores.parquet", b"PAR1 no")


def changed_table(context: Any) -> None:
    context.storage.bytes["s3://b/scores.parquet"] += b"x"


def better_table(context: Any) -> None:
    table = change(make_table(), "loss", 1.0, ids=60)
    context.inputs["evaluate"].outputs["scores"] = put_table(context.storage, "s3://b/scores.parquet", table)


def a_set_too_few(context: Any) -> None:
    """A set that went badly is left out of the table, but not of what was asked."""
    table = [row for row in make_table() if row["set"] != "safety"]
    context.inputs["evaluate"].outputs["scores"] = put_table(context.storage, "s3://b/scores.parquet", table)


def a_set_unsaid(context: Any) -> None:
    """A set that went badly is left out of everything."""
    a_set_too_few(context)
    del context.inputs["evaluate"].facts["sets"]["safety"]


def other_weights(context: Any) -> None:
    context.inputs["evaluate"].facts["weights_sha256"] = "0" * 64


def changed_weights(context: Any) -> None:
    context.storage.bytes[f"{ADAPTER}/adapter_model.safetensors"] = b"W"


def better_metrics(context: Any) -> None:
    context.inputs["evaluate"].metrics |= {"difference": -2.0, "difference_low": -3.0, "difference_high": -1.0}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_digest, "expected the set safety with the digest 0000"),
        (other_set, "expected scores of the 40 rows of golden"),
        (changed_bytes, "at s3://b/sets/golden"),
        (other_held_out, "expected the set held_out with the digest 0000"),
        (no_bytes_of_a_set, "'sets/format'"),
        (no_table, "expected a table of scores"),
        (a_set_unsaid, "neither scores of safety nor why"),
        (no_sets, "expected the sets with their digests"),
        (no_parquet, "expected the table of scores at"),
        (changed_table, "at s3://b/scores.parquet"),
        (better_table, "tokens of held_out 0 under candidate"),
        (a_set_too_few, "expected scores of the 24 rows of safety, found 0"),
        (other_weights, "the evidence is about another adapter"),
        (changed_weights, "adapter_model.safetensors"),
        (better_metrics, "the scores of the rows give"),
    ],
)
def test_what_does_not_belong_together_is_hold(spoil: Callable[[Any], None], told: str) -> None:
    context = make()
    spoil(context)
    result = judged(context)
    assert (result.status, result.facts["verdict"]) == ("refused", "hold")
    assert told in result.facts["reason"]


def released(context: Any) -> Any:
    """Return what `register` and `promote` read of a fine-tune: the stages, and the gate's manifest over them."""
    result, inputs = judged(context), context.inputs
    seen = {f"{stage}/{name}": a for stage, found in inputs.items() for name, a in found.outputs.items()}
    stage = SimpleNamespace(status=result.status, facts=dict(result.facts), inputs=seen, uri="gate")
    inputs["evaluate"].stage, inputs["validate_dataset"].stage, inputs["train"].stage = (
        "evaluate", "validate_dataset", "train",
    )  # fmt: skip
    inputs["evaluate"].uri = "evaluate"
    return evidence.Evidence(gate=stage, **inputs)  # type: ignore[arg-type]


def said_promote(found: Any) -> None:
    found.gate.facts["verdict"] = "hold"


def refused(found: Any) -> None:
    found.gate.status = "refused"


def of_another_model(found: Any) -> None:
    found.gate.facts["weights_sha256"] = "0" * 64


def another_measurement(found: Any) -> None:
    found.evaluate.facts["weights_sha256"] = "0" * 64


def of_another_set(found: Any) -> None:
    found.gate.facts["sets"] = found.gate.facts["sets"] | {"safety": {"sha256": "0" * 64, "rows": 24}}


def a_set_that_changed(found: Any) -> None:
    old = found.evaluate.outputs["sets/safety"]
    found.evaluate.outputs["sets/safety"] = old.model_copy(update={"sha256": "1" * 64})


def another_table(found: Any) -> None:
    old = found.evaluate.outputs["scores"]
    found.evaluate.outputs["scores"] = old.model_copy(update={"sha256": "1" * 64})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (said_promote, "expected the verdict 'promote' or 'review', found 'hold'"),
        (refused, "expected the verdict 'promote'"),
        (of_another_model, "expected adapter .*, found 0000"),
        (another_measurement, "expected adapter .*, found 0000"),
        (of_another_set, "expected evaluation sets .* in gate"),
        (a_set_that_changed, "expected evaluate/sets/safety 1111"),
        (another_table, "expected evaluate/scores 1111"),
    ],
)
def test_only_this_verdict_opens_a_release(spoil: Callable[[Any], None], told: str) -> None:
    found = released(make())
    evidence.check(found)
    spoil(found)
    with pytest.raises(ReleaseError, match=told):
        evidence.check(found)
