"""What a sync plans, and which documents it keeps back: pure functions."""

from typing import Any

from tasks.knowledge.cache import text_sha256
from tasks.knowledge.list_documents import plan
from tasks.knowledge.sources import Item
from tasks.knowledge.validate_documents import apply_policy, apply_rules, without_duplicates


def changes(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["uri"]: row["change"] for row in rows}


ITEMS = [Item("same", "1", 1), Item("edited", "2b", 1), Item("new", "3", 1), Item("bad", "4", 1)]
KNOWN = {uri: {"source_sha256": sha256, "bytes": 1} for uri, sha256 in (("same", "1"), ("edited", "2"), ("gone", "5"))}


def test_plan_names_every_change() -> None:
    expected = {"same": "unchanged", "edited": "changed", "new": "added", "bad": "rejected", "gone": "deleted"}
    assert changes(plan(ITEMS, KNOWN, {"bad"}, same_pipeline=True)) == expected


def test_another_pipeline_changes_every_document() -> None:
    found = changes(plan(ITEMS, KNOWN, {"bad"}, same_pipeline=False))
    assert (found["same"], found["edited"], found["gone"]) == ("changed", "changed", "deleted")


def test_copies_are_kept_back_and_name_what_they_repeat() -> None:
    rows = [
        {"uri": uri, "text": text, "text_sha256": text}
        for uri, text in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "z"))
    ]
    kept, rejected, same_as = without_duplicates(rows, {"z": "indexed"})
    assert [row["uri"] for row in kept] == ["a", "c"]
    assert same_as == {"b": "a", "d": "indexed"}
    assert {(r.item, r.rule) for r in rejected} == {("b", "text_is_new"), ("d", "text_is_new")}


def test_a_document_that_breaks_two_rules_has_two_rejections() -> None:
    row = {"uri": "a", "title": "t" * 400, "text": "a\x00b", "invalid_bytes": 0}
    kept, rejected = apply_rules([row])
    assert kept == []
    assert [r.rule for r in rejected] == ["text_has_no_nul", "title_is_short"]


def test_screening_blocks_redacts_and_never_repeats_what_it_found() -> None:
    token = "gh" + "p_" + "a1B2" * 9
    texts = {"a": f"Deploy\n======\n\nexport TOKEN={token}", "b": "Ask ada@analytical.org.", "c": "Nothing."}
    rows = [{"uri": uri, "title": uri, "text": text, "text_sha256": "old"} for uri, text in texts.items()]
    kept, rejected, outcome = apply_policy(rows)
    assert [(row["uri"], row["text"]) for row in kept] == [("b", "Ask [email_address]."), ("c", "Nothing.")]
    assert kept[0]["text_sha256"] == text_sha256("Ask [email_address].")
    assert kept[1]["text_sha256"] == "old"
    assert [(r.item, r.rule) for r in rejected] == [("a", "access_token")]
    assert token not in rejected[0].reason + rejected[0].excerpt
    assert outcome.redacted_by_rule == {"email_address": 1}
