"""What the person who approves reads: complete, and made from the proposal alone."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tasks.contracts import Artifact, Manifest, Option
from tasks.knowledge.index_tables import Version
from tasks.release.body import Proposal, markdown
from tasks.release.change import Change
from tasks.release.evidence import Evidence
from tasks.release.ledger import Release
from tasks.release.prompt_change import told
from tasks.serving.prompt import prompt_digest

INDEX = Version(
    4, "chunks_v4", "current", "f", "pydoc:topics", "c", "minilm", 384, 79, 1203,
    {"recall_at_5": 0.91234, "ndcg_at_10": 0.8, "mrr": 0.7, "ann_recall": 0.99, "questions": 64}, "s3://b/runs/sync_knowledge/r",
)  # fmt: skip
NEW_MODEL = Change(model=True, prompt_changed=False, corpus="pydoc:topics")


def manifest(stage: str, **values: Any) -> Manifest:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    common = {"run": "s3://b/runs/fine_tune/r", "status": "complete", "fingerprint": "f", "code_revision": "c"}
    return Manifest(stage=stage, host="h", started_at=now, ended_at=now, **(common | values))


def release(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "release": 7, "created_at": datetime(2026, 1, 30, 12, 5, tzinfo=UTC), "kind": "promotion", "model_name": "assistant",
        "model_version": "2", "adapter_uri": "s3://b/models/x", "adapter_sha256": "a" * 64, "base_model": "hub:a/b@1234567",
        "base_revision": "1234567", "prompt_sha256": prompt_digest("old"), "prompt": "old", "index_version": 3,
        "embedder": "minilm", "dataset_sha256": "d" * 64, "code_revision": "c", "evidence_uri": "s3://b/releases/e",
        "evidence_sha256": "e" * 64, "approved_by": "Ada", "reason": "better", "run": "s3://b/runs/promote_release/r",
        "restores": None,
    }  # fmt: skip
    return Release(**(values | changes))


def model() -> tuple[Manifest, Evidence]:
    metrics = {"base_loss": 3.5, "champion_loss": 3.2, "candidate_loss": 3.0, "difference": -0.2}
    metrics |= {"difference_low": -0.31, "difference_high": -0.11}
    report = Artifact(uri="s3://b/runs/fine_tune/r/evaluate/report.json", sha256="9" * 64, bytes=2)
    evidence = Evidence(
        validate_dataset=manifest("validate_dataset"),
        train=manifest("train", facts={"recipe": "sft"}, counts={"steps": 40, "rows": 320}),
        evaluate=manifest(
            "evaluate", metrics=metrics, facts={"champion_release": 7, "rows": 128}, outputs={"report": report}
        ),
        gate=manifest("gate", facts={"verdict": "promote", "reason": "The interval is below zero."}),
    )
    facts = {
        "model_name": "assistant", "model_version": "3", "adapter_sha256": "b" * 64, "base_model": "hub:a/b@1234567",
        "base_revision": "1234567", "dataset_sha256": "f" * 64, "mlflow_url": "http://m/#/experiments/1/runs/9",
    }  # fmt: skip
    register = manifest("register", facts=facts, options={"x": Option(value=1, origin="default")})
    return register, evidence


def test_a_model_is_shown_beside_the_live_one_with_its_proof() -> None:
    register, evidence = model()
    proposal = Proposal(release(), INDEX, register, evidence, "old", NEW_MODEL, None, "Shadow: 41 questions answered.")
    text = markdown(proposal, "http://m/")
    assert "\n\nShadow: 41 questions answered.\n\n" in text
    assert proposal.kind == "model" and "A person decides" not in text
    assert "**Release assistant version 3 with index version 4.** Live is release 7 of 2026-01-30 12:05 UTC" in text
    assert "| model version | assistant 2 | assistant 3 |" in text
    assert "| base model | hub:a/b@1234567 1234567 | hub:a/b@1234567 1234567 (same) |" in text
    assert "| adapter | aaaaaaaaaaaa | bbbbbbbbbbbb |" in text
    assert "| index version | 3 | 4 |" in text
    assert "| 3.500 | 3.200 | 3.000 | -0.200 [-0.310, -0.110] |" in text and "128 held-out rows" in text
    assert "recall@5 0.912, nDCG@10 0.800" in text and "64 golden questions" in text
    assert "[Training run in MLflow](http://m/#/experiments/1/runs/9)" in text
    assert "(http://m/#/models/assistant/versions/3)" in text
    assert "s3://b/runs/fine_tune/r/evaluate/report.json" in text and "40 steps over 320 rows" in text


def test_what_was_judged_is_a_table_of_what_the_gate_wrote() -> None:
    register, evidence = model()
    rows: list[Any] = [
        {"measure": "token_f1", "set": "golden", "candidate": 0.51, "reference": 0.5, "difference": 0.01, "low": -0.02,
         "high": 0.04, "margin": 0.05, "rows": 64, "word": "kept"},
        {"measure": "refused", "set": "safety", "slice": "topic=bait|x", "candidate": 0.9, "word": "regressed"},
        "not a row",
    ]  # fmt: skip
    verdict = {"judged": rows, "not_judged": [{"what": "golden", "why": "too | few rows"}]}
    proposal = Proposal(release(), INDEX, register, evidence, "old", NEW_MODEL, None, verdict=verdict)
    text = markdown(proposal, "http://m", "May approve: ada.")
    failed = "| refused | safety, topic=bait/x | 0.900 | - | - | - | - | regressed |"
    passed = "| token_f1 | golden | 0.510 | 0.500 | 0.010 [-0.020, 0.040] | 0.050 | 64 | kept |"
    assert f"{failed}\n{passed}\n\n- not judged: golden: too / few rows\n" in text  # what did not pass comes first
    assert text.endswith("\nMay approve: ada.\n")
    assert "What was judged" not in markdown(
        Proposal(release(), INDEX, register, evidence, "old", NEW_MODEL, None), "http://m"
    )


def test_a_doubt_comes_first_and_a_review_stands_in_the_subject() -> None:
    register, evidence = model()
    gate = manifest("gate", facts={"verdict": "review", "reason": "few rows"})
    changed = replace(NEW_MODEL, doubts=("The verdict is review: few rows", "Another prompt was measured."))
    proposal = Proposal(release(), INDEX, register, replace(evidence, gate=gate), "old", changed, None)
    text = markdown(proposal, "http://m")
    assert proposal.subject == "Release assistant version 3 with index version 4 (verdict: review)"
    asked = "**A person decides, whatever the settings say:**"
    assert text.index(f"{asked}\n\n- The verdict is review: few rows\n- Another prompt was measured.\n\n|") < 250


def test_a_new_prompt_is_read_and_not_only_its_digest() -> None:
    proposal = Proposal(release(prompt="Answer.\nBe brief."), INDEX, None, None, "Answer.\nBe kind.", NEW_MODEL, None)
    text = markdown(proposal, "http://m")
    assert "```diff\n--- live\n+++ proposed\n" in text
    assert "\n-Be brief.\n+Be kind.\n```\n" in text
    assert "says otherwise" not in markdown(replace(proposal, prompt="Answer.\nBe brief."), "http://m")


def test_a_prompt_neither_ends_its_fence_nor_fills_the_form() -> None:
    found = told("a", "```\n" + "long " * 1000 + "\nlast\n" * 200)
    assert found[2] == "````diff" and "````" in found[3:]
    assert sum(map(len, found)) < 2300 and found[-1].startswith("399 more lines")
    assert "differ" in " ".join(told("a", "a\n"))


def test_a_long_table_is_cut_and_says_so() -> None:
    register, evidence = model()
    rows = [{"measure": "loss", "set": "held_out", "slice": f"topic={n}"} for n in range(40)]
    text = markdown(
        Proposal(None, INDEX, register, evidence, "old", NEW_MODEL, None, verdict={"judged": rows}), "http://m"
    )
    assert text.count("| loss |") == 25 and "15 further measures are in the verdict's file." in text


def test_the_model_card_is_linked_where_there_is_one() -> None:
    register, evidence = model()
    card = Artifact(uri="s3://b/runs/fine_tune/r/register/card.html", sha256="9" * 64, bytes=2)
    carded = register.model_copy(update={"outputs": {"card.html": card}})
    for candidate, there in ((register, False), (carded, True)):
        text = markdown(Proposal(None, INDEX, candidate, evidence, "p", NEW_MODEL, None), "http://m")
        assert (f"- model card: `{card.uri}`" in text) is there


def test_the_first_release_has_nothing_beside_it() -> None:
    register, evidence = model()
    text = markdown(Proposal(None, INDEX, register, evidence, "new", NEW_MODEL, None), "http://m")
    assert "It would be the first release." in text and "| model version | - | assistant 3 |" in text


def test_an_adapter_that_was_live_before_is_marked() -> None:
    register, evidence = model()
    text = markdown(
        Proposal(release(), INDEX, register, evidence, "old", NEW_MODEL, release(release=5, reason="x")), "http://m"
    )
    assert "**Note:** this adapter was live before, in release 5" in text


def test_an_index_keeps_the_model_and_says_so() -> None:
    proposal = Proposal(release(), INDEX, None, None, "new", Change(False, True, "default"), None)
    text = markdown(proposal, "http://m")
    assert proposal.kind == "index"
    assert proposal.subject == "Release index version 4 and a new prompt"
    assert "| model version | assistant 2 | assistant 2 (same) |" in text and "held-out" not in text


def test_every_table_row_has_its_three_cells() -> None:
    register, evidence = model()
    for live, candidate, proof in (
        (None, register, evidence),
        (release(), None, None),
        (release(), register, evidence),
    ):
        lines = markdown(Proposal(live, INDEX, candidate, proof, "p", NEW_MODEL, None), "http://m").splitlines()
        table = [line for line in lines[2:] if line.startswith("| ")][:8]
        assert all(line.count("|") == 4 for line in table)
