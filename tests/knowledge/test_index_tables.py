"""Tables of index versions, against a real Postgres: what holds whatever the server's pgvector is."""

from typing import Any

import pytest

from tasks.database import connect, migrate
from tasks.knowledge import index_tables

pytestmark = pytest.mark.integration
ABOUT = {"fingerprint": "t", "corpus": "t", "corpus_sha256": "t", "embedder": "t", "dimensions": 3}


@pytest.mark.parametrize(("safe_from", "workers"), [((0, 8, 2), "1"), ((99, 0), "0")])
def test_an_index_is_built_by_one_process_where_parallel_builds_are_not_safe(
    safe_from: tuple[int, ...], workers: str, new_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database("index_tables")
    migrate(url)
    monkeypatch.setattr(index_tables, "SAFE_PARALLEL_BUILDS", safe_from)
    with connect(url) as connection:
        version = index_tables.begin(connection, "s3://b/runs/d/r", ABOUT)
        asked: list[Any] = []
        plain = connection.execute

        def execute(query: Any, values: Any = None, **more: Any) -> Any:
            asked.append(values)
            return plain(query, values, **more)

        monkeypatch.setattr(connection, "execute", execute)
        index_tables.build_hnsw(connection, version)
        assert ("max_parallel_maintenance_workers", workers) in asked
        found = plain("SELECT count(*) AS n FROM pg_indexes WHERE indexname = 'chunks_v1_hnsw'").fetchone()
        assert found is not None and found["n"] == 1
