"""Candidate training examples, from wherever they come, split by source.

Reads docstrings of the standard library, a `.jsonl` file of chat messages (a path or `s3://`), and accepted
corrections of served answers (tables `feedback` and `requests`). Writes nothing. Fails with `DataError`
for a file that is missing, empty or malformed, naming the first lines that are wrong.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.database import Connection
from tasks.errors import DataError
from tasks.settings import repository_path
from tasks.storage import Storage
from tasks.training import docstrings

DOCSTRINGS = "docstrings:stdlib"
Split = Literal["train", "held_out"]
_SHOWN = 5


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Line(BaseModel):
    """One line of an examples file. Rows of one `source` stay on one side of the split."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=2)
    id: str | None = None
    source: str | None = None


class Candidate(BaseModel):
    """One example before validation."""

    id: str
    messages: list[Message]
    source: str
    origin: Literal["docstrings", "jsonl", "feedback"]
    split: Split = "train"


def read(reference: str, storage: Storage) -> list[Candidate]:
    """Return all candidates of `reference` (setting MILLRACE_EXAMPLES). Raises DataError."""
    if reference == DOCSTRINGS:
        found = list(_from_docstrings())
    elif reference.endswith(".jsonl"):
        found = _from_lines(reference, _text(reference, storage))
    else:
        raise DataError(
            f"expected {DOCSTRINGS}, a .jsonl file or s3://bucket/file.jsonl, found {reference!r}. "
            "Next: correct MILLRACE_EXAMPLES or the option --examples."
        )
    if not found:
        raise DataError(f"expected training examples in {reference}, found none. Next: fill it, or name another.")
    return found


def corrections(connection: Connection) -> list[Candidate]:
    """Return accepted corrections of served answers, the newest for each request."""
    rows = connection.execute(
        "SELECT DISTINCT ON (f.request_id) f.id, f.request_id, r.question, f.correction "
        "FROM feedback f JOIN requests r ON r.id = f.request_id "
        "WHERE f.status = 'accepted' AND f.correction IS NOT NULL ORDER BY f.request_id, f.created_at DESC, f.id DESC"
    ).fetchall()
    return [
        _pair(f"feedback:{row['id']}", row["question"], row["correction"], f"request:{row['request_id']}", "feedback")
        for row in rows
    ]


def split(found: Iterable[Candidate], train_rows: int, held_out_rows: int, rows_per_source: int) -> list[Candidate]:
    """Return the chosen candidates with their split: whole sources are held out, never single rows.

    Sources come in the order of their digests: the choice does not depend on the order of the input, and a new
    source moves few others. Training rows are taken in turn from all its sources. Raises DataError.
    """
    by_source: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda candidate: _rank(candidate.id)):
        if len(by_source[candidate.source]) < rows_per_source:
            by_source[candidate.source].append(candidate)
    waiting = sorted(by_source, key=_rank)
    held_out: list[Candidate] = []
    while waiting and len(held_out) < held_out_rows:
        held_out += by_source[waiting.pop(0)]
    train = [
        candidate
        for turn in range(rows_per_source)
        for source in waiting
        for candidate in by_source[source][turn : turn + 1]
    ]
    if not train or not held_out:
        raise DataError(
            f"expected at least two sources, enough for both sides of the split, found {len(by_source)}. "
            "Next: give lines different `source` names, or lower data.held_out_rows in the recipe."
        )
    return [_with(c, "train") for c in train[:train_rows]] + [_with(c, "held_out") for c in held_out[:held_out_rows]]


def _from_docstrings() -> Iterator[Candidate]:
    for pair in docstrings.pairs():
        yield _pair(f"docstrings:{pair.name}", pair.question, pair.answer, pair.module, "docstrings")


def _from_lines(reference: str, text: str) -> list[Candidate]:
    found, problems, seen = [], [], set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            parsed = Line.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problems.append(f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}")
            continue
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        name = parsed.id or hashlib.sha256(line.encode()).hexdigest()[:16]
        if name in seen:
            problems.append(f"line {number}: the id {name!r} was used before")
        seen.add(name)
        source = parsed.source or parsed.messages[0].content.strip().lower()
        found.append(Candidate(id=f"jsonl:{name}", messages=parsed.messages, source=source, origin="jsonl"))
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f'expected lines like {{"messages": [{{"role": "user", "content": ...}}, ...], "source": ...}} in {reference}, '
            "found:\n  " + "\n  ".join(problems[:_SHOWN]) + more + "\nNext: correct these lines."
        )
    return found


def _text(reference: str, storage: Storage) -> str:
    try:
        if reference.startswith("s3://"):
            return storage.get_bytes(reference).decode()
        return repository_path(reference).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected readable examples at {reference}, found {error}. Next: correct MILLRACE_EXAMPLES."
        ) from error


def _pair(name: str, question: str, answer: str, source: str, origin: Literal["docstrings", "feedback"]) -> Candidate:
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return Candidate(id=name, messages=messages, source=source, origin=origin)


def _with(candidate: Candidate, side: Split) -> Candidate:
    return candidate.model_copy(update={"split": side})


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
