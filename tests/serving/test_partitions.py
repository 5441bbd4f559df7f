"""The request log by days, on a real Postgres: made ahead, moved without a loss, pruned when read, dropped when old."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import Connection, connect, migrate
from tasks.errors import ServiceUnavailable
from tasks.knowledge.erasure_rows import delete_rows
from tasks.serving import partitions, retention
from tasks.serving.connection import KeptConnection
from tasks.serving.partitions import Ahead, bounds, days_ahead, make, name_of, partitioned
from tasks.serving.request_log import RequestLog
from tasks.training.examples import feedback as learned

from .conftest import NOWHERE
from .test_request_log import row, wait_for

pytestmark = pytest.mark.integration
NOW = datetime(2026, 11, 22, 13, 30, tzinfo=UTC)
TODAY = NOW.date()
HITS = [{"document_uri": "file:owl.md", "score": 0.5}, {"document_uri": "file:fox.md", "score": 0.4}]


@pytest.fixture
def url(new_database: Any) -> Iterator[str]:
    """A migrated database of the test's own."""
    made = new_database("day")
    migrate(made)
    yield made


@contextmanager
def opened(url: str) -> Iterator[Connection]:
    """Yield a connection that holds no lock between two statements."""
    with connect(url) as connection:
        connection.commit()
        connection.autocommit = True
        yield connection


def ask(connection: Connection, moment: datetime, **changed: Any) -> UUID:
    """Insert a request."""
    values = {
        "id": uuid4(), "created_at": moment, "kind": "chat", "question": "What hunts mice?", "answer": "Owls.",
        "hits": Jsonb(HITS), "latency_ms": 1,
    } | changed  # fmt: skip
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    marks = sql.SQL(", ").join(sql.Placeholder() * len(values))
    connection.execute(sql.SQL("INSERT INTO requests ({}) VALUES ({})").format(names, marks), list(values.values()))
    made: UUID = values["id"]
    return made


def say(connection: Connection, request_id: UUID, rating: str = "down", **changed: Any) -> None:
    """Insert feedback."""
    values = {"request_id": request_id, "rating": rating} | changed
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    marks = sql.SQL(", ").join(sql.Placeholder() * len(values))
    connection.execute(sql.SQL("INSERT INTO feedback ({}) VALUES ({})").format(names, marks), list(values.values()))


def count(connection: Connection, table: str = "requests") -> int:
    """Return how many rows a table has."""
    found = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(sql.Identifier(table))).fetchone()
    return int(found["n"]) if found else 0


def scanned(connection: Connection, query: str, *values: Any) -> set[str]:
    """Return the tables that a query reads."""
    plan = connection.execute(f"EXPLAIN (FORMAT json) {query}".encode(), values).fetchone()
    found: set[str] = set()

    def walk(node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            found.add(node["Relation Name"])
        for below in node.get("Plans", []):
            walk(below)

    walk(plan["QUERY PLAN"][0]["Plan"] if plan else {})
    return found


def test_today_and_a_week_are_made_and_a_second_time_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kept = KeptConnection(url)
    Ahead(kept, lambda: NOW).work()
    with opened(url) as connection:
        assert partitioned(connection) == days_ahead(NOW) == [TODAY + timedelta(days=n) for n in range(8)]
        names = connection.execute(
            "SELECT to_regclass('requests_20261122') AS first, to_regclass('requests_20261129') AS last"
        )
        assert names.fetchone() == {"first": "requests_20261122", "last": "requests_20261129"}
    assert len([r for r in caplog.records if " made, rows=0" in r.getMessage()]) == 8
    caplog.clear()
    Ahead(kept, lambda: NOW + timedelta(days=1)).work()
    assert [r.getMessage() for r in caplog.records] == ["partition=requests_20261130 made, rows=0 moved into it"]
    kept.close()


def test_an_instance_looks_again_after_an_hour_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, now = KeptConnection(url), [NOW]
    ahead = Ahead(kept, lambda: now[0])
    ahead.work()
    now[0] += timedelta(days=2)
    ahead.work()
    with opened(url) as connection:
        assert len(partitioned(connection)) == 8
        clock = time.monotonic() + partitions.AGAIN_SECONDS
        monkeypatch.setattr(partitions.time, "monotonic", lambda: clock)
        ahead.work()
        assert len(partitioned(connection)) == 10
    kept.close()


def test_a_row_at_the_border_goes_to_its_utc_day_whatever_the_session_thinks(url: str) -> None:
    with opened(url) as connection:
        connection.execute("SET TIME ZONE 'Pacific/Kiritimati'")
        for day in (TODAY, TODAY + timedelta(days=1)):
            assert make(connection, day) == 0
        ask(connection, datetime(2026, 11, 22, 23, 59, 59, 999999, tzinfo=UTC))
        ask(connection, datetime(2026, 11, 23, tzinfo=UTC))
        assert count(connection, "requests_20261122") == count(connection, "requests_20261123") == 1


def test_rows_that_came_before_their_day_move_into_it(url: str) -> None:
    with opened(url) as connection:
        mine = [ask(connection, NOW - timedelta(hours=hours), embedding="[1,2]") for hours in range(20)]
        before = connection.execute("SELECT * FROM requests ORDER BY id").fetchall()
        assert make(connection, TODAY) == 14 and make(connection, TODAY) is None
        after = connection.execute("SELECT * FROM requests ORDER BY id").fetchall()
        assert [{**r, "embedding": str(r["embedding"])} for r in after] == [
            {**r, "embedding": str(r["embedding"])} for r in before
        ]
        assert count(connection, name_of(TODAY)) == 14 and count(connection, "requests_default") == 6
        assert retention.keep_house(url, 180, NOW, dry=True) == [], "a dry run neither drops nor makes"
        assert partitioned(connection) == [TODAY]
        retention.keep_house(url, 180, NOW, dry=False)
        assert partitioned(connection) == [TODAY - timedelta(days=1), *days_ahead(NOW)]
        assert count(connection, "requests_default") == 0 and count(connection) == len(mine)


def test_two_assistants_and_housekeeping_at_once_lose_nothing_while_others_write(url: str) -> None:
    stop, written, failures = threading.Event(), [], []

    def write() -> None:
        with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            while not stop.is_set():
                try:
                    written.append(ask(connection, NOW + timedelta(minutes=len(written) % 3000 - 1500)))
                except psycopg.errors.CheckViolation as error:
                    # On its way into the default partition when its day's was made: the request log tries again too.
                    if error.diag.constraint_name is not None:
                        failures.append(str(error))
                except psycopg.Error as error:
                    failures.append(str(error))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    kept = [KeptConnection(url) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(Ahead(one, lambda: NOW).work) for one in kept]
        runs.append(pool.submit(retention.keep_house, url, 180, NOW, dry=False))
        for run in runs:
            run.result(timeout=60)
    time.sleep(0.3)
    stop.set()
    for writer in writers:
        writer.join()
    for one in kept:
        one.close()
    retention.keep_house(url, 180, NOW, dry=False)
    with opened(url) as connection:
        assert set(days_ahead(NOW)) <= set(partitioned(connection))
        assert {r["id"] for r in connection.execute("SELECT id FROM requests")} == set(written) and not failures
        assert count(connection) == len(written) > 20 and count(connection, "requests_default") == 0


def test_a_reader_that_does_not_end_stops_neither_writers_nor_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptConnection(url)
    with connect(url) as reader, opened(url) as writer:
        make(writer, TODAY)
        reader.execute("SELECT count(*) FROM requests_default")  # a long transaction, as a dump has one
        ahead = Ahead(kept, lambda: NOW)
        working = threading.Thread(target=ahead.work)
        working.start()
        time.sleep(0.5)
        started = time.monotonic()
        ask(writer, NOW)  # into a day that is there: no lock stands in its way
        assert time.monotonic() - started < 1.0
        working.join(timeout=30)
        assert not working.is_alive() and "are not made" in caplog.text
        assert 0 < ahead._next - time.monotonic() <= partitions.AGAIN_WHEN_AWAY_SECONDS
    kept.close()


def test_without_rights_or_tables_the_rows_are_written_all_the_same(
    url: str, new_database: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    role = f"writer_{uuid4().hex[:8]}"
    with opened(url) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'".encode())
        connection.execute(f"GRANT INSERT, SELECT ON requests, requests_default TO {role}".encode())
    info = psycopg.conninfo.conninfo_to_dict(url)
    log = RequestLog(
        KeptConnection(psycopg.conninfo.make_conninfo(**info | {"user": role, "password": "secret"})), tmp_path
    )
    item = row()
    item.created_at = NOW
    log.put(item)
    wait_for(log, "written", 1)
    log.close()
    assert "permission denied" in caplog.text and "requests_default" in caplog.text
    with opened(url) as connection:
        assert count(connection, "requests_default") == 1 and partitioned(connection) == []
    empty = KeptConnection(new_database("bare"))
    with connect(empty._url, vectors=False) as connection:
        connection.execute("CREATE EXTENSION vector")
    Ahead(empty).work()
    empty.close()
    Ahead(KeptConnection(NOWHERE)).work()


def test_the_log_of_an_assistant_makes_them_before_it_writes(url: str, tmp_path: Path) -> None:
    log = RequestLog(KeptConnection(url), tmp_path)
    item = row()
    log.put(item)
    wait_for(log, "written", 1)
    log.close()
    with opened(url) as connection:
        assert count(connection, name_of(item.created_at.date())) == 1 and count(connection, "requests_default") == 0


def test_a_night_reads_its_days_only_and_an_id_is_found_by_index(url: str) -> None:
    with opened(url) as connection:
        for number in range(-20, 8):
            make(connection, TODAY + timedelta(days=number))
        start, end = bounds(TODAY - timedelta(days=1))
        both = "created_at >= %s AND created_at < %s"
        assert scanned(connection, f"SELECT * FROM requests WHERE {both}", start, end) == {"requests_20261121"}
        assert scanned(connection, f"SELECT * FROM requests WHERE {both}", start, NOW) == {
            "requests_20261121", "requests_20261122",
        }  # fmt: skip
        # Without an end the coming days and the default partition are looked into as well: all empty, none of the past.
        open_end = scanned(connection, "SELECT * FROM requests WHERE created_at >= %s", start)
        assert len(open_end) == 10 and "requests_20261120" not in open_end and "requests_default" in open_end
        indexed = connection.execute(
            "SELECT count(*) AS n FROM pg_indexes WHERE tablename LIKE 'requests_2026%%' AND (indexdef LIKE '%%(id)' "
            "OR indexdef LIKE '%%(created_at, id)')"
        ).fetchone()
        assert indexed == {"n": 2 * 28}
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute("EXPLAIN SELECT 1 FROM requests WHERE id = %s LIMIT 1", (uuid4(),)).fetchall()
        assert not any("Seq Scan" in line["QUERY PLAN"] for line in plan)


def test_old_days_go_and_the_feedback_that_trains_stays(url: str) -> None:
    old, edge = TODAY - timedelta(days=11), TODAY - timedelta(days=10)
    moment = bounds(old)[0] + timedelta(hours=23)
    with opened(url) as connection:
        for day in (old, edge, TODAY):
            make(connection, day)
        corrected, liked, waiting, thumb, refused, failed = (ask(connection, moment) for _ in range(6))
        connection.execute("UPDATE requests SET error = 'TooLate' WHERE id = %s", (failed,))
        say(connection, corrected, correction="Owls and cats.", status="accepted", reviewed_by="ada")
        say(connection, liked, "up", status="accepted", reviewed_by="ada")
        say(connection, waiting, correction="Cats.")
        say(connection, thumb)
        say(connection, refused, correction="Dogs.", status="rejected")
        say(connection, failed, "up", status="accepted", reviewed_by="ada")
        young = ask(connection, bounds(edge)[0])
        stray = ask(connection, moment - timedelta(days=1))  # spooled long ago, and written today
        say(connection, stray, correction="Late.", status="accepted", reviewed_by="ada")
        before = learned(connection)
        listed = retention.keep_house(url, 10, NOW, dry=True)
        assert [(r["name"], r["rows"]) for r in listed] == [("requests_20261111", 6), ("requests_default", 1)]
        assert count(connection) == 8
        done = retention.keep_house(url, 10, NOW, dry=False)
        assert [(r["kind"], r["name"], r["rows"], r["feedback_kept"]) for r in done] == [
            ("request_day", "requests_20261111", 6, 3), ("request_rows", "requests_default", 1, 1),
        ]  # fmt: skip
        assert [r["id"] for r in connection.execute("SELECT id FROM requests")] == [young]
        assert old not in partitioned(connection) and {edge, TODAY} <= set(partitioned(connection))
        assert learned(connection) == before and len(before) == 3
        kept = connection.execute("SELECT request_id FROM feedback WHERE question IS NOT NULL").fetchall()
        assert {r["request_id"] for r in kept} == {corrected, liked, waiting, stray}
        assert count(connection, "feedback") == 7, "counts stay"
        connection.execute(
            "UPDATE feedback SET status = 'accepted', reviewed_by = 'ada' WHERE request_id = %s", (waiting,)
        )
        assert len(learned(connection)) == 4, "a correction may still be accepted afterwards"
        assert retention.keep_house(url, 10, NOW, dry=False) == []


def test_a_copy_in_feedback_is_erased_as_a_request_is(url: str) -> None:
    with opened(url) as connection:
        make(connection, TODAY)
        for hits in (HITS, HITS[1:]):
            asked = ask(connection, NOW, hits=Jsonb(hits))
            say(connection, asked, "up", status="accepted", reviewed_by="ada")
        retention.keep_house(url, 10, NOW + timedelta(days=20), dry=False)
        assert count(connection) == 0 and len(learned(connection)) == 2
        removed = delete_rows(connection, [], "default", "file:owl.md")
        assert removed["feedback"] == removed["feedback_copies"] == 1 and removed["requests"] == 0
        assert len(learned(connection)) == 1
        rows = connection.execute("SELECT status, answer, hits FROM feedback ORDER BY id").fetchall()
        assert rows[0] == {"status": "rejected", "answer": None, "hits": HITS[1:]} and rows[1]["answer"] == "Owls."


def test_a_table_that_was_detached_to_be_kept_is_left_alone(url: str) -> None:
    with opened(url) as connection:
        make(connection, TODAY)
        ask(connection, NOW)
        connection.execute("ALTER TABLE requests DETACH PARTITION requests_20261122")
        ask(connection, NOW)
        retention.keep_house(url, 180, NOW, dry=False)
        assert count(connection, "requests_20261122") == count(connection, "requests_default") == 1
        assert TODAY not in partitioned(connection)


def test_a_day_that_is_held_is_not_waited_for_without_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "TRIES", 2)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.1)
    day: date = TODAY - timedelta(days=300)
    with opened(url) as connection, connect(url) as reader:
        make(connection, day)
        ask(connection, bounds(day)[0])
        reader.execute("SELECT count(*) FROM requests")
        with pytest.raises(ServiceUnavailable, match="expected a lock on table requests"):
            retention.keep_house(url, 180, NOW, dry=False)
        reader.commit()
        assert count(connection) == 1, "nothing was lost by the try"
        assert retention.keep_house(url, 180, NOW, dry=False)[0]["rows"] == 1
