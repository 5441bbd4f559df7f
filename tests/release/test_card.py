"""The model card: what is on it, what it says is not known, and that data on it does nothing."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from selectolax.lexbor import LexborHTMLParser

from tasks.contracts import Artifact, Manifest, Option
from tasks.database import connect
from tasks.errors import SettingsError
from tasks.evaluation.measures import MEASURES
from tasks.knowledge import corpora
from tasks.release import card, card_facts, card_page
from tasks.release.card_facts import CardFacts
from tasks.release.card_text import code, number, spread
from tasks.release.card_tries import Tries
from tasks.release.evidence import Evidence
from tasks.settings import Settings

RUN = "s3://b/runs/fine_tune/r"
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> [click](javascript:alert(3)) ![i](https://evil.example/i.png) "
    "https://evil.example | a | b | `c` ``` **bold** <https://evil.example> &lt;b&gt; \u202egnp\u2066 \x1b[31m\n# Title\n\n| x |\n---\n\\|"
)


def manifest(stage: str, **values: Any) -> Manifest:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    common = {"run": RUN, "status": "complete", "fingerprint": "f", "code_revision": "c0de", "host": "h"}
    return Manifest(stage=stage, started_at=now, ended_at=now, **(common | values))


def artifact(name: str) -> Artifact:
    return Artifact(uri=f"s3://b/models/f/adapter/{name}", sha256="1" * 64, bytes=1)


def facts(word: str = "", **changes: Any) -> CardFacts:
    """Return the facts of a whole fine-tune; with `word`, every text in them is that word."""

    def said(text: str) -> str:
        return word or text

    train = manifest(
        "train",
        outputs={"adapter/adapter_model.safetensors": artifact("adapter_model.safetensors")},
        facts={
            "weights": "adapter", "adapter_uri": "s3://b/models/f/adapter", "recipe": said("demo"), "base_model": said("hub:a/b@1"),
            "base_revision": said("b" * 40), "training_fingerprint": said("f" * 64), "mlflow_run_id": said("run"), "reused": True,
        },
        options={"adapter": Option(value=said("s3://b/models/e/adapter"), origin="command")},
        resource_seconds={"wall": 1800.0, "cpu": 3000.0, "gpu": 3600.0},
        image_digest=said("sha256:0"),
        code_revision=said("c0de"),
    )  # fmt: skip
    dataset = manifest(
        "validate_dataset",
        counts={"train": 1200, "held_out": 64, "quarantined": 3, "redacted": 2, "docstrings_train": 1000, "feedback_train": 200},
        facts={"dataset_sha256": said("d" * 64), "quarantined_by_rule": {said("too_short"): 3}, "redacted_by_rule": {said("email"): 2}},
    )  # fmt: skip
    evaluate = manifest(
        "evaluate",
        metrics=METRICS,
        facts={"rows": 64, "champion_release": word or None, "measure": said("loss of tokens")},
    )
    gate = manifest("gate", run=said(RUN), facts={"verdict": said("promote"), "reason": said("better: loss -0.5")})
    built = manifest(
        "build_dataset",
        facts={"examples": said("docstrings:stdlib"), "corpus": said("pydoc:topics"), "teacher": said("big-model")},
    )
    plan = manifest("plan_training", counts={"truncated": 7}, metrics={"gpu_hours": 1.5})
    values: dict[str, Any] = {
        "name": said("assistant"), "version": said("3"), "columns": {}, "evidence": Evidence(dataset, train, evaluate, gate),
        "stages": {one.stage: one for one in (built, plan, dataset, train, evaluate, gate)},
        "recipe": {"method": "sft", "description": said("small"), "data": {"system_prompt": said("You explain."), "max_tokens": 128}},
        "verdict": {
            "judged": [
                judged("refused", "safety", ""), judged("token_f1", "golden", ""), judged("refused", "safety", said("topic=bait")),
                judged("token_f1", "golden", said("corpus=default")) | {"word": said("doubtful")},
            ],
            "not_judged": [{"what": said("format"), "why": said("this set was not evaluated")}],
        },
        "licences": {"docstrings": said("PSF-2.0")}, "gpu_hour_price": 2.5, "code_revision": said("c1de"),
    }  # fmt: skip
    return CardFacts(**(values | changes))


def judged(measure: str, name: str, where: str) -> dict[str, Any]:
    figures = {"rows": 40, "candidate": 0.9, "reference": 0.8, "difference": 0.1, "low": 0.05, "high": 0.15}
    return {"measure": measure, "set": name, "slice": where, "margin": 0.02, "word": "kept"} | figures


METRICS = {
    "base_loss": 3.5, "base_loss_low": 3.4, "base_loss_high": 3.6, "candidate_loss": 3.0, "candidate_loss_low": 2.9,
    "candidate_loss_high": 3.1, "difference": -0.5, "difference_low": -0.6, "difference_high": -0.4, "base_refused": 0.8,
    "candidate_refused": 0.9, "base_token_f1": 0.8, "candidate_token_f1": 0.9,
}  # fmt: skip


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_a_card_says_what_is_known_of_a_fine_tune() -> None:
    text = card.markdown(facts())
    assert "once it is released" in text and "approved" not in text  # it is written before anybody was asked
    assert text.startswith("# Model card: `assistant` version `3`\n\nA LoRA adapter of `hub:a/b@1`")
    data = section(text, "Training data")
    assert "Rows: 1,200 train, unknown validation, 64 held-out." in data
    assert "| docstrings | 1,000 | `docstrings:stdlib` | `PSF-2.0` |" in data
    assert "| feedback | 200 | `accepted feedback on requests served here` | unknown |" in data
    assert "teacher model: `big-model`" in data and "rejected before training: 3 rows (`too_short` `3`)" in data
    figures = section(text, "Metrics")
    assert (
        "| loss | held_out | 3.500 (3.400 to 3.600) | none was live | 3.000 (2.900 to 3.100) | -0.500 (-0.600 to -0.400) | 64 |"
        in figures
    )
    assert (
        "| token_f1 | golden | 0.800 (no interval) | none was live | 0.900 (no interval) | +0.100 (+0.050 to +0.150) | 40 |"
        in figures
    )
    assert "| rouge_l | golden | not measured | none was live | not measured | not measured | not measured |" in figures
    assert (
        "| `token_f1` | `golden` | `corpus=default` | 0.900 | 0.800 | +0.100 (+0.050 to +0.150) | 40 | `doubtful` |"
        in figures
    )
    assert "refused" not in figures and "topic=bait" in section(text, "Safety")
    limits = section(text, "Limits")
    assert (
        "- `doubtful`: `token_f1` of `golden`, where `corpus=default`." in limits and "Not judged: `format`" in limits
    )
    assert (
        "licence of training rows is unknown for: feedback." in limits
        and "7 training rows were cut at 128 tokens" in limits
    )
    assert "not evaluated: format." in section(text, "Out of scope")
    lineage = section(text, "Lineage")
    for value in (
        "d" * 64,
        "b" * 40,
        "s3://b/models/e/adapter",
        "c0de",
        "c1de",
        "sha256:0",
        f"{RUN}/gate/manifest.json",
    ):
        assert f"| `{value}` |" in lineage
    cost = section(text, "Energy and cost")
    assert (
        "| train | 1,800.0 | 3,000.0 | 3,600.0 |" in cost
        and "GPU hours: 1.000; their cost: 2.50 at 2.50 a GPU hour" in cost
    )
    assert "energy: not measured" in cost and "1.500 GPU hours" in cost and "trained by an earlier run" in cost
    assert "nothing is known" in cost


def test_energy_is_what_the_gpus_told() -> None:
    whole = facts()
    train = whole.stages["train"].model_copy(update={"metrics": {"gpu_energy_joules": 7_200_000.0}})
    text = section(card.markdown(facts(stages={**whole.stages, "train": train})), "Energy and cost")
    assert "- energy of the GPUs, as they told their power: 2.0000 kWh (train 2.0000)" in text


def test_failed_tries_stand_below_the_table_of_costs() -> None:
    tries = {"train": Tries(failed=2, seconds=90.0, killed=1), "gate": Tries(failed=1, seconds=3.25, killed=0)}
    cost = section(card.markdown(facts(tries=tries)), "Energy and cost")
    assert (
        "- train, not in the table: 2 failed tries, 90.0 seconds, 180.0 GPU seconds if on as many GPUs; "
        "1 more never told their end, and nobody knows their seconds\n"
        "- gate, not in the table: 1 failed tries, 3.2 seconds" in cost
    )
    assert "No try of these stages failed" in section(card.markdown(facts(tries={})), "Energy and cost")


def test_what_nobody_wrote_down_is_unknown_and_what_nobody_measured_is_said() -> None:
    whole = facts()
    bare = {name: whole.stages[name] for name in ("validate_dataset", "train", "evaluate", "gate")}
    empty = whole.evidence.evaluate.model_copy(update={"metrics": {"candidate_loss": float("nan")}})
    evidence = Evidence(
        whole.evidence.validate_dataset.model_copy(update={"counts": {}}),
        whole.evidence.train,
        empty,
        whole.evidence.gate,
    )
    text = card.markdown(
        facts(stages=bare, evidence=evidence, recipe={}, verdict={"judged": "x"}, licences={}, gpu_hour_price=None)
    )
    assert "| unknown | unknown | unknown | unknown |" in section(text, "Training data")
    assert "teacher model: unknown" in text and "trained by: unknown (unknown)" in text
    for measure in MEASURES:
        name = "Safety" if measure.set == "safety" else "Metrics"
        assert "not measured" in section(text, name) and measure.name in section(text, "Limits")
    assert "Slices: not measured." in text and "MILLRACE_GPU_HOUR_PRICE is not set" in text
    assert "not evaluated: held_out, golden, safety, format." in text
    assert (number(True), number("3"), spread(1.0, None, 2.0)) == (
        "not measured",
        "not measured",
        "1.000 (no interval)",
    )


def test_hostile_text_in_every_field_does_nothing() -> None:
    hostile, honest = facts(HOSTILE), facts("word")
    text = card.markdown(hostile)
    made, plain = (LexborHTMLParser(card_page.page(card.markdown(one), HOSTILE)) for one in (hostile, honest))
    shape = [[node.tag for node in tree.css("*")] for tree in (made, plain)]
    assert shape[0] == shape[1]  # not one element, cell or heading more or less
    assert not made.css("script, img, a, iframe, form, strong, em, svg, object")
    assert "alert(1)" in made.css("body")[0].text() and "default-src 'none'" in str(made.html)
    for escaped in ("\u202e", "\u2066", "\x1b"):
        assert escaped not in text
    # The same where others show the Markdown, with all that GitHub's reader knows: MLflow's pages show the description.
    liberal = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    for written in (text, card.description(hostile, HOSTILE)):
        seen = LexborHTMLParser(liberal.render(written))
        assert not seen.css("script, img, a, iframe, form, strong, em, svg, object")
        assert not re.search(r"https?://", re.sub(r"<code>.*?</code>", "", liberal.render(written), flags=re.DOTALL))


def test_code_keeps_what_it_is_given() -> None:
    read = MarkdownIt("commonmark")
    for text in ("a`b", "`", "``x`` y", "a\\", "x_y*z", "<b>"):
        assert LexborHTMLParser(read.render(f"- {code(text)}")).css("code")[0].text() == text
    assert (code(None), code(""), code(0), code(" \n ")) == ("unknown", "unknown", "`0`", "unknown")
    assert len(code("x" * 5000)) == 402


def test_the_licence_of_a_corpus_is_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "corpora.yaml"

    def told(entries: dict[str, Any], corpus: str, examples: str = "docstrings:stdlib") -> dict[str, str]:
        file.write_text(json.dumps({"corpora": entries}))
        where = Settings(
            database_url="postgresql://x", mlflow_tracking_uri="http://x", corpora=str(file), corpus="s3://b/docs/"
        )
        built = manifest("build_dataset", facts={"examples": examples, "corpus": corpus})
        return card_facts.licences(where, built)

    handbook = {"source": "s3://b/handbook/", "golden_questions": "q.jsonl", "licence": "CC-BY-4.0"}
    assert told({"handbook": handbook}, "handbook") == {"docstrings": "PSF-2.0", "corpus": "CC-BY-4.0"}
    assert told({"default": {"licence": "MIT"}}, "s3://b/docs/", "own/") == {"corpus": "MIT"}
    assert told({"default": {"licence": "MIT"}}, "s3://b/other/", "own/") == {}  # not what the file speaks of
    assert told({"default": {}}, "pydoc:topics", "own/") == {"corpus": "PSF-2.0"}
    assert told({"default": {}}, "gone", "own/") == {}  # a corpus that the file no longer names
    with pytest.raises(SettingsError, match="the licence of 'default'"):
        told({"default": {"licence": 4}}, "s3://b/docs/")
    assert corpora.load_corpora("corpora.yaml")["default"].licence is None


@pytest.mark.integration
def test_register_writes_the_card_of_a_fine_tune(house: Any) -> None:
    run = house.tuned(b"one")
    with connect(house.settings.database_url.get_secret_value(), vectors=False) as connection:
        for code, ended in ((1, "60 seconds"), (75, "30 seconds"), (0, "9 seconds"), (3, "9 seconds"), (None, None)):
            connection.execute(
                "INSERT INTO stage_runs (run, stage, trace_id, host, started_at, ended_at, exit_code) "
                "VALUES (%s, 'train', 't', 'h', now(), now() + %s::interval, %s)",
                (run, ended, code),
            )
    registered = house.stage("register", run)
    text = house.storage.get(registered.outputs["card.md"]).decode()
    assert "- train, not in the table: 2 failed tries, 90.0 seconds; 1 more never told their end" in text
    page = house.storage.get(registered.outputs["card.html"]).decode()
    assert text.startswith(f"# Model card: `{house.settings.model_name}` version `1`")
    assert "3.000 (2.900 to 3.100)" in text and "-0.500 (-0.600 to -0.400)" in text
    assert registered.facts["adapter_sha256"] in text and "<h2>Lineage</h2>" in page
    version = house.mlflow().get_model_version(house.settings.model_name, "1")
    assert version.tags["card"] == registered.outputs["card.html"].uri
    assert registered.facts["dataset_sha256"] in version.description and version.tags["card"] in version.description
    # Registered again by another run, the version speaks of the newest proof; the card outlives the run folder.
    again = house.candidate(b"one")
    version = house.mlflow().get_model_version(house.settings.model_name, "1")
    assert version.tags["card"] == again.outputs["card.html"].uri != registered.outputs["card.html"].uri
    house.storage.delete_prefix(f"{again.run}/")
    assert house.storage.get(again.outputs["card.html"])
