"""Candidate training examples that people wrote: curated files, docstrings, and feedback on served requests.

Reads `.jsonl` files of chat messages (a file or a folder, a path or `s3://`), docstrings of the standard
library, and accepted feedback (tables `feedback` and `requests`). Writes nothing. A line is
- `{"messages": [{"role", "content"}, ...]}`, the chat form of OpenAI, with optional `id`, `source`, `rejected`;
- `{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}`, its preference form;
- `{"text": "..."}`, for method pretrain.
Every candidate carries where it came from. Fails with `DataError` for a file that is missing, empty or
malformed (an unknown role, say), naming the first lines that are wrong.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.database import Connection
from tasks.errors import BadInput, DataError
from tasks.settings import repository_path
from tasks.storage import Storage
from tasks.training import docstrings

DOCSTRINGS = "docstrings:stdlib"
Split = Literal["train", "validation", "held_out"]
Origin = Literal["curated", "feedback", "corpus", "docstrings"]
_SUFFIX = ".jsonl"
_SHOWN = 5


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Input(BaseModel):
    """What stands before both answers of a preference line."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=1)


class Line(BaseModel):
    """One line of an examples file. Rows of one `source` stay on one side of the split."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] | None = Field(default=None, min_length=2)
    rejected: str | None = None
    input: Input | None = None
    preferred_output: list[Message] | None = Field(default=None, min_length=1, max_length=1)
    non_preferred_output: list[Message] | None = Field(default=None, min_length=1, max_length=1)
    text: str | None = None
    id: str | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Line":
        preference = [self.input, self.preferred_output, self.non_preferred_output]
        forms = [self.messages is not None, any(part is not None for part in preference), self.text is not None]
        if sum(forms) != 1:
            raise ValueError("expected one of messages, input with preferred_output and non_preferred_output, or text")
        if forms[1] and None in preference:
            raise ValueError("input, preferred_output and non_preferred_output belong together")
        if self.rejected is not None and self.messages is None:
            raise ValueError("rejected belongs to messages")
        return self

    def content(self) -> dict[str, Any]:
        """Return what the line teaches, as a candidate has it."""
        if self.input and self.preferred_output and self.non_preferred_output:
            messages = [*self.input.messages, *self.preferred_output]
            return {"messages": messages, "rejected": self.non_preferred_output[0].content}
        return {"messages": self.messages, "rejected": self.rejected, "text": self.text}


class Candidate(BaseModel):
    """One example before validation: messages (with a rejected answer, or without), or a text."""

    id: str
    source: str
    origin: Origin
    split: Split = "train"
    messages: list[Message] | None = None
    rejected: str | None = None
    text: str | None = None
    provenance: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Return the candidate as a row of the dataset."""
        return self.model_dump(mode="json", exclude_none=True)


def read(reference: str, storage: Storage) -> list[Candidate]:
    """Return all candidates of `reference` (setting MILLRACE_EXAMPLES). Raises DataError."""
    files = _files(reference, storage)
    found = list(_from_docstrings()) if reference == DOCSTRINGS else _from_files(reference, files)
    if not found:
        raise DataError(f"expected training examples in {reference}, found none. Next: fill it, or name another.")
    return found


def feedback(connection: Connection) -> list[Candidate]:
    """Return what reviewers accepted, one a request: its newest correction, else its answer that was rated up.

    Of a request that was dropped with its day, question and answer stand in the feedback itself. A thumb that the same
    key turned down later, accepted too, is no longer up.
    """
    rows = connection.execute(
        "SELECT DISTINCT ON (f.request_id) f.id, f.request_id, f.reviewed_by, "
        "coalesce(r.question, f.question) AS question, coalesce(r.answer, f.answer) AS answer, f.correction "
        "FROM feedback f LEFT JOIN requests r ON r.id = f.request_id "
        "WHERE f.status = 'accepted' AND coalesce(r.question, f.question) IS NOT NULL AND (f.correction IS NOT NULL "
        "OR (f.rating = 'up' AND coalesce(r.answer, f.answer) IS NOT NULL AND r.error IS NULL "
        "AND NOT EXISTS (SELECT FROM feedback later WHERE later.request_id = f.request_id AND later.key_name = f.key_name "
        "AND later.status = 'accepted' AND later.rating = 'down' AND later.id > f.id))) "
        "ORDER BY f.request_id, f.correction IS NULL, f.created_at DESC, f.id DESC"
    ).fetchall()
    return [_from_feedback(row) for row in rows]


def pair(name: str, question: str, answer: str, source: str, origin: Origin, provenance: dict[str, Any]) -> Candidate:
    """Return a candidate of one question and one answer."""
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return Candidate(id=name, messages=messages, source=source, origin=origin, provenance=provenance)


def rank(name: str) -> str:
    """Return what sorts names in an order that has nothing to do with them, and never changes."""
    return hashlib.sha256(name.encode()).hexdigest()


def _from_feedback(row: dict[str, Any]) -> Candidate:
    corrected = row["correction"] is not None
    provenance = {
        "request": str(row["request_id"]),
        "feedback": row["id"],
        "reviewed_by": row["reviewed_by"],
        "made_by": "correction" if corrected else "served answer, rated up",
    }
    answer = row["correction"] if corrected else row["answer"]
    source = f"request:{row['request_id']}"
    found = pair(f"feedback:{row['id']}", row["question"], answer, source, "feedback", provenance)
    return found.model_copy(update={"rejected": row["answer"] if corrected else None})


def _from_docstrings() -> Iterator[Candidate]:
    for found in docstrings.pairs():
        provenance = {"module": found.module, "name": found.name, "made_by": "docstring"}
        name = f"docstrings:{found.name}"
        yield pair(name, found.question, found.answer, found.module, "docstrings", provenance)


def _from_files(reference: str, files: Iterator[tuple[str, bytes]]) -> list[Candidate]:
    found: list[Candidate] = []
    problems: list[str] = []
    seen: set[str] = set()
    for file, body in files:
        sha256 = hashlib.sha256(body).hexdigest()
        for number, line in enumerate(_lines(reference, file, body), start=1):
            if not line.strip():
                continue
            place = f"{file}: line {number}"
            try:
                parsed = Line.model_validate(json.loads(line))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                told = [".".join(map(str, first["loc"])), first["msg"].lower()]
                problems.append(": ".join([place, *filter(None, told)]))
                continue
            except ValueError as error:
                problems.append(f"{place}: {error}")
                continue
            provenance = {"file": file, "line": number, "sha256": sha256, "made_by": "curated"}
            candidate = _from_line(line, parsed, provenance)
            if candidate.id in seen and parsed.id is None:  # the same line twice: validation rejects the copy by name
                candidate = candidate.model_copy(update={"id": f"{candidate.id}:{file}:{number}"})
            elif candidate.id in seen:
                problems.append(f"{place}: the id {parsed.id!r} was used before")
            seen.add(candidate.id)
            found.append(candidate)
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f'expected lines like {{"messages": [{{"role": "user", "content": ...}}, ...], "source": ...}} in {reference}, '
            "found:\n  " + "\n  ".join(problems[:_SHOWN]) + more + "\nNext: correct these lines."
        )
    return found


def _from_line(line: str, parsed: Line, provenance: dict[str, Any]) -> Candidate:
    name = parsed.id or hashlib.sha256(line.encode()).hexdigest()[:16]
    content = parsed.content()
    asked = content["messages"] and next((m.content for m in content["messages"] if m.role == "user"), None)
    # Without a source, rows with the same question stay together; so do texts of one file.
    source = parsed.source or (asked or provenance["file"]).strip().lower()
    return Candidate(id=f"curated:{name}", source=source, origin="curated", provenance=provenance, **content)


def _files(reference: str, storage: Storage) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every file that `reference` names. Raises DataError."""
    try:
        if reference.startswith("s3://"):
            uris = sorted(uri for uri, _size, _etag in storage.list(reference) if uri.endswith(_SUFFIX))
            for uri in uris:
                yield uri, storage.get_bytes(uri)
            return
        path = repository_path(reference)
        if not path.is_dir() and path.suffix != _SUFFIX:
            raise DataError(
                f"expected {DOCSTRINGS}, or .jsonl files: a file, a folder, or s3://bucket/prefix, found {reference!r}. "
                "Next: correct MILLRACE_EXAMPLES or the option --examples."
            )
        for file in sorted(path.rglob(f"*{_SUFFIX}")) if path.is_dir() else [path]:
            # The name, not the place: the same files elsewhere are the same dataset.
            yield (file.relative_to(path).as_posix() if path.is_dir() else file.name), file.read_bytes()
    except (OSError, BadInput) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"expected readable examples at {reference}, found {error}. Next: correct MILLRACE_EXAMPLES."
        ) from error


def _lines(reference: str, file: str, body: bytes) -> list[str]:
    try:
        # Not splitlines: a line of JSON may hold U+2028 and its like.
        return body.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 in {reference}, found {error} in {Path(file).name}. Next: convert it."
        ) from error
