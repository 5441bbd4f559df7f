"""The rows of a dataset: what they say, what the suite looks at, and their screening.

A row has `messages` (and for method dpo the `rejected` answer to them), or a `text`. Reads the screening policy; writes
nothing.
"""

from collections.abc import Iterable
from typing import Any

from tasks.screening import Outcome, load_policy, screen_all
from tasks.settings import Settings
from tasks.training.overlap import same_words

Row = dict[str, Any]


def question(row: Row) -> str:
    """Return the last thing that the user says; nothing for a text."""
    return next((str(m["content"]) for m in reversed(row.get("messages") or []) if m["role"] == "user"), "")


def answer(row: Row) -> str:
    """Return what is learned: the last message, or the text."""
    messages = row.get("messages")
    return str(messages[-1]["content"]) if messages else str(row.get("text") or "")


def said(row: Row) -> list[str]:
    """Return the answer or text, and the rejected answer where there is one."""
    return [answer(row), *([str(row["rejected"])] if row.get("rejected") is not None else [])]


def columns(row: Row, method: str) -> Row:
    """Return what the rules of the suite look at; None where a rule has nothing to say about a row of this method."""
    messages, text, rejected = row.get("messages"), row.get("text"), row.get("rejected")
    found = answer(row) if messages else None
    return {
        "id": row["id"],
        "origin": row["origin"],
        "made_by": (row.get("provenance") or {}).get("made_by"),
        "content": "\n".join([*(str(m["content"]) for m in messages or ()), *filter(None, (text, rejected))]) or None,
        "roles": ",".join(str(message["role"]) for message in messages) if messages else None,
        "question": question(row) if messages else None,
        "answer": found,
        "answer_words": None if found is None else len(found.split()),
        "text": text,
        "text_words": None if text is None else len(str(text).split()),
        "rejected": rejected,
        "rejected_words": None if rejected is None and method != "dpo" else len(str(rejected or "").split()),
        "rejected_is_answer": None if rejected is None or found is None else same_words(str(rejected), found),
    }


def screened(rows: Iterable[Row], settings: Settings | None = None) -> tuple[list[Row], Outcome]:
    """Return the rows that the screening policy lets pass, redacted, and what it found; `settings` name its models."""
    numbered = {str(number): row for number, row in enumerate(rows)}  # an id may stand twice, and is then rejected
    found = screen_all(((number, _texts(row)) for number, row in numbered.items()), load_policy(settings=settings))
    kept = [
        _with_texts(row, found.texts[number]) if number in found.redactions else row
        for number, row in numbered.items()
        if number in found.texts
    ]
    ids = {number: str(row["id"]) for number, row in numbered.items()}
    return kept, Outcome(
        texts={ids[number]: texts for number, texts in found.texts.items()},
        blocked={ids[number]: broken for number, broken in found.blocked.items()},
        masked={ids[number]: text for number, text in found.masked.items()},
        redactions={ids[number]: hits for number, hits in found.redactions.items()},
    )


def _texts(row: Row) -> list[str]:
    """Return every text of a row: the messages in order, then rejected and text."""
    found = [str(message["content"]) for message in row.get("messages") or ()]
    return found + [str(row[name]) for name in ("rejected", "text") if row.get(name) is not None]


def _with_texts(row: Row, texts: list[str]) -> Row:
    left = iter(texts)
    changed = dict(row)
    if row.get("messages"):
        changed["messages"] = [message | {"content": next(left)} for message in row["messages"]]
    return changed | {name: next(left) for name in ("rejected", "text") if row.get(name) is not None}
