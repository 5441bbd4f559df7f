"""The rows of a frozen dataset, and what they say of where they came from.

Reads `s3://BUCKET/datasets/`, `documents`, `erasures`, `feedback` and `requests`. Writes nothing. Rows that cannot be read
are a line of what could not be followed.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts import Artifact, Manifest
from tasks.errors import ManifestError, ServiceUnavailable
from tasks.release.lineage_walk import Found, Walk
from tasks.storage import Storage


@dataclass
class Examples:
    """What the rows of a dataset say of where they came from."""

    files: list[Found] = field(default_factory=list)
    origins: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    curated: Counter[str] = field(default_factory=Counter)
    feedback: list[int] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row into account."""
        origin, provenance = str(row.get("origin", "unknown")), row.get("provenance") or {}
        self.origins[origin] += 1
        if origin == "corpus":
            self.documents[str(provenance.get("document", row.get("source")))] += 1
        elif origin == "curated":
            self.curated[str(provenance.get("file") or "not recorded")] += 1
        elif origin == "feedback" and isinstance(provenance.get("feedback"), int):
            self.feedback.append(provenance["feedback"])


def told(walk: Walk, examples: Examples) -> Found:
    """Return where the examples came from."""
    return {
        "by_origin": dict(sorted(examples.origins.items())),
        "files_of_curated_rows": dict(sorted(examples.curated.items())),
        "documents": walk.listed(_with_state(walk, examples.documents)),
        "documents_behind_feedback": walk.listed(_behind_feedback(walk, examples.feedback)),
    }


def files_below(walk: Walk, sha256: str) -> dict[str, Artifact | str]:
    """Return by side what lies at the place of a dataset; nothing says what its bytes should be."""
    folder = f"{walk.bucket}/datasets/{sha256}/"
    return {uri.removeprefix(folder).removesuffix(".jsonl"): uri for uri, _size, _etag in walk.storage.list(folder)}


def frozen(validated: Manifest) -> dict[str, Artifact | str]:
    """Return the rows that `validate_dataset` froze, by side."""
    sides = ("train", "validation", "held_out")
    return {side: validated.outputs[side] for side in sides if side in validated.outputs}


def read(walk: Walk, files: dict[str, Artifact | str]) -> Examples:
    """Read the rows of a dataset by side; those of an artifact are verified."""
    found = Examples()
    for side, file in files.items():
        uri = file if isinstance(file, str) else file.uri
        ids, origins = [], Counter[str]()
        try:
            for row in rows_of(walk.storage, file):
                found.add(row)
                ids.append(str(row.get("id")))
                origins[str(row.get("origin", "unknown"))] += 1
        except (ManifestError, ServiceUnavailable, ValueError) as error:
            walk.lost.append(f"rows of {side}: {error}")
            continue
        listed = {"ids": ids} if walk.rows else {}
        found.files.append({"side": side, "uri": uri, "rows": len(ids), "by_origin": dict(origins)} | listed)
    return found


def rows_of(storage: Storage, file: Artifact | str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset's file; those of an artifact are verified. Raises ManifestError, ValueError."""
    if isinstance(file, Artifact):
        yield from storage.get_rows(file)
        return
    for line in storage.get_bytes(file).splitlines():
        yield json.loads(line)


def _with_state(walk: Walk, documents: Counter[str]) -> list[str]:
    """Return each document with its rows, and what became of it since."""
    known = walk.connection.execute("SELECT uri, status FROM documents WHERE uri = ANY(%s)", (list(documents),))
    state = {row["uri"]: row["status"] for row in known}
    gone = walk.connection.execute("SELECT uri FROM erasures WHERE uri = ANY(%s)", (list(documents),))
    state |= {row["uri"]: "erased" for row in gone}
    return [f"{uri} ({documents[uri]} rows, {state.get(uri, 'not in the corpus now')})" for uri in sorted(documents)]


def _behind_feedback(walk: Walk, numbers: list[int]) -> list[str]:
    """Return the documents that were found for the requests behind feedback."""
    rows = walk.connection.execute(
        "SELECT f.id, coalesce(f.hits, r.hits) AS hits FROM feedback f LEFT JOIN requests r ON r.id = f.request_id "
        "WHERE f.id = ANY(%s)",
        (numbers,),
    ).fetchall()
    told = {row["id"]: row["hits"] for row in rows if row["hits"] is not None}
    if lost := len(set(numbers) - set(told)):
        walk.lost.append(f"{lost} examples from feedback: their requests are gone, and what was found for them")
    return sorted({str(hit["document_uri"]) for hits in told.values() for hit in hits if "document_uri" in hit})
