"""The table of scores goes to Parquet and back, by digest."""

import pytest

from tasks.contracts import Artifact
from tasks.evaluation.table import COLUMNS, put_table, read_table


class Memory:
    """Storage in memory: the two calls that the table makes."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    def put_bytes(self, uri: str, body: bytes, *, content_type: str) -> Artifact:
        self.bytes[uri] = body
        return Artifact(uri=uri, sha256="0" * 64, bytes=len(body))

    def get(self, artifact: Artifact) -> bytes:
        return self.bytes[artifact.uri]


def test_rows_come_back_with_all_columns() -> None:
    storage = Memory()
    rows = [
        {"set": "held_out", "id": "a", "model": "base", "loss": 2.5, "tokens": 7},
        {"set": "golden", "id": "g1", "model": "base", "corpus": "default", "token_f1": 0.25, "answer": "No."},
    ]
    written = put_table(storage, "s3://b/scores.parquet", rows)  # type: ignore[arg-type]
    assert written.rows == 2
    found = read_table(storage, written)  # type: ignore[arg-type]
    assert [set(row) for row in found] == [set(COLUMNS)] * 2
    assert [{name: row[name] for name in given} for row, given in zip(found, rows, strict=True)] == rows
    assert found[0]["token_f1"] is None


def test_an_unknown_column_is_told() -> None:
    with pytest.raises(ValueError, match="tokn_f1"):
        put_table(Memory(), "s3://b/scores.parquet", [{"set": "golden", "id": "1", "tokn_f1": 1.0}])  # type: ignore[arg-type]
