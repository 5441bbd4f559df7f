"""Who may say something about which request, on a real Postgres, also before the request's row is there."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from tasks.database import connect, migrate
from tasks.serving.answering import Assistant
from tasks.serving.api import create_app
from tasks.serving.connection import KeptConnection
from tasks.serving.feedback import FeedbackBox, Said, parse_reviewers
from tasks.serving.keys import parse_keys
from tasks.serving.refusals import NotAReviewer, UnknownRequest
from tasks.serving.request_log import RequestLog
from tasks.training.examples import feedback as learned

from .conftest import NOWHERE, call
from .test_api import error_of
from .test_request_log import row, wait_for

UP, DOWN, SIGNED = Said("up"), Said("down"), Said("down", correction="When it ends.", reviewed_by="ada")


@pytest.fixture
def url(new_database: Any) -> str:
    """A migrated database."""
    made: str = new_database("feedback")
    migrate(made)
    return made


@pytest.fixture
def log(url: str, tmp_path: Path) -> Iterator[RequestLog]:
    """A request log in it."""
    made = RequestLog(KeptConnection(url), tmp_path)
    yield made
    made.close()


def rows(url: str, query: str) -> list[dict[str, Any]]:
    with connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.integration
def test_a_request_of_another_key_is_unknown_written_or_waiting(url: str, log: RequestLog, tmp_path: Path) -> None:
    written = row()
    written.key_name = "web"
    log.put(written)
    wait_for(log, "written", 1)
    spooling = RequestLog(KeptConnection(NOWHERE), tmp_path / "spool")
    waiting = row()
    waiting.key_name = "web"
    spooling.put(waiting)
    wait_for(spooling, "spooled", 1)
    boxes = [(written, FeedbackBox(KeptConnection(url), log)), (waiting, FeedbackBox(KeptConnection(url), spooling))]
    for item, box in boxes:
        nobody = uuid4()
        with pytest.raises(UnknownRequest) as unknown:
            box.add(nobody, UP, "web")
        for other in ("", "Web", "batch"):
            with pytest.raises(UnknownRequest) as foreign:
                box.add(item.id, UP, other)
            found = str(foreign.value).replace(str(item.id), str(nobody))
            assert found == str(unknown.value), "nobody learns that it exists"
        assert box.add(item.id, UP, "web") == "pending"
        box.close()
    spooling.close()
    assert [r["key_name"] for r in rows(url, "SELECT key_name FROM feedback")] == ["web", "web"]


@pytest.mark.integration
def test_a_request_without_a_key_belongs_to_everyone_and_the_last_thumb_counts(url: str, log: RequestLog) -> None:
    item = row()
    log.put(item)
    wait_for(log, "written", 1)
    box = FeedbackBox(KeptConnection(url), log)
    for said, key in ((UP, "web"), (DOWN, "web"), (DOWN, ""), (UP, ""), (DOWN, "batch")):
        box.add(item.id, said, key)
    assert len(rows(url, "SELECT 1 FROM feedback")) == 5
    thumbs = {r["key_name"]: r["rating"] for r in rows(url, "SELECT key_name, rating FROM feedback_thumbs")}
    assert thumbs == {"web": "down", "": "up", "batch": "down"}
    box.close()


@pytest.mark.integration
def test_a_thumb_that_was_turned_down_later_is_not_learned(url: str, log: RequestLog) -> None:
    items = [row(), row()]
    for item in items:
        item.answer = "It is."
        log.put(item)
    wait_for(log, "written", 2)
    box = FeedbackBox(KeptConnection(url), log)
    for item in items:
        box.add(item.id, Said("up", reviewed_by="ada"))
    box.add(items[0].id, DOWN)  # nobody reviewed it, so it changes nothing yet
    with connect(url) as connection:
        assert len(learned(connection)) == 2
    box.add(items[0].id, Said("down", reviewed_by="ada"))
    with connect(url) as connection:
        assert [found.provenance["request"] for found in learned(connection)] == [str(items[1].id)]
    box.close()


@pytest.mark.integration
def test_only_reviewers_sign_where_they_are_named(url: str, log: RequestLog) -> None:
    item = row()
    log.put(item)
    wait_for(log, "written", 1)
    named, everyone = (FeedbackBox(KeptConnection(url), log, parse_reviewers(text)) for text in ("ada-key, ops", None))
    for key in ("", "web"):
        with pytest.raises(NotAReviewer, match="MILLRACE_ASSISTANT_REVIEWERS"):
            named.add(item.id, SIGNED, key)
        assert everyone.add(item.id, SIGNED, key) == "accepted"
    assert named.add(item.id, SIGNED, "ops") == "accepted" and named.add(item.id, DOWN, "web") == "pending"
    for box in (named, everyone):
        box.close()


def give_with(app: FastAPI, key: str, body: dict[str, str]) -> httpx.Response:
    """Give feedback with an API key, through the guard."""
    return call(app, "POST", "/v1/feedback", json=body, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.integration
def test_over_http_a_foreign_request_looks_as_an_unknown_one(ready: Assistant, url: str, log: RequestLog) -> None:
    item = row()
    item.key_name = "web"
    log.put(item)
    wait_for(log, "written", 1)
    keys = parse_keys(",".join(f"{name}={hashlib.sha256(name.encode()).hexdigest()}" for name in ("web", "batch")))
    app = create_app(ready, FeedbackBox(KeptConnection(url), log, parse_reviewers("ops")), keys=keys)

    def give(name: str, request_id: str, **more: str) -> httpx.Response:
        return give_with(app, name, {"request_id": request_id, "rating": "up", **more})

    unknown, foreign = give("web", str(uuid4())), give("batch", f"chatcmpl-{item.id.hex}")
    assert unknown.status_code == foreign.status_code == 404
    assert error_of(unknown).keys() == error_of(foreign).keys() and error_of(foreign)["code"] == "request_not_found"
    own = give("web", f"chatcmpl-{item.id.hex}", comment="'; DROP TABLE feedback; -- <script>alert(1)</script>")
    assert own.json() == {"object": "feedback", "request_id": str(item.id), "status": "pending"}
    signed = give("web", str(item.id), reviewed_by="me")
    assert signed.status_code == 403 and error_of(signed)["code"] == "not_a_reviewer"
    assert [r["comment"] for r in rows(url, "SELECT comment FROM feedback")] == [
        "'; DROP TABLE feedback; -- <script>alert(1)</script>"
    ]


def test_reviewers_are_everyone_nobody_or_those_that_are_named() -> None:
    assert parse_reviewers(None) is None and parse_reviewers(" ") == frozenset()
    assert parse_reviewers("a, b,,a") == {"a", "b"}
