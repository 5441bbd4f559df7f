"""The way back: by command, only to what is whole, and with a named error where it is not."""

import getpass
import json
import threading
import uuid
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.database import connect
from tasks.errors import OptionError, PartGone, ReleaseError
from tasks.release import ledger, mirror, releases_tool, rollback_tool
from tasks.settings import settings as process_settings

pytestmark = pytest.mark.integration


def alias(house: Any) -> dict[str, str]:
    return dict(house.mlflow().get_registered_model(house.settings.model_name).aliases)


def release(house: Any, number: int) -> ledger.Release:
    with connect(house.url) as connection:
        return ledger.get(connection, number)


def add(house: Any, like: int, **changes: str) -> None:
    """Add a row of the ledger that lies about a part."""
    row = asdict(release(house, like).parts()) | changes
    row |= {"kind": "promotion", "approved_by": "nobody", "reason": "a test", "run": str(uuid.uuid4())}
    with connect(house.url) as connection:
        connection.execute(
            f"INSERT INTO releases ({', '.join(row)}) VALUES ({', '.join(f'%({name})s' for name in row)})".encode(), row
        )


def back(number: int, *more: str) -> int:
    return rollback_tool.main(["--to", str(number), "--reason", "worse\x1b[31m answers", *more])


def test_the_way_back_by_command(
    house: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = house.index()
    one = house.candidate(b"one")
    house.promote(one.uri)
    # What is live is no candidate any more: nobody is asked to approve it again once it was rolled back.
    assert alias(house) == {"champion": "1"}
    house.index()
    house.promote(house.candidate(b"two", champion=1).uri)
    assert alias(house) == {"champion": "2", "previous": "1"}

    capsys.readouterr()
    assert back(1) == 0
    said = capsys.readouterr().out
    assert (
        f"release 3 is live: it restores release 1 (model {house.settings.model_name} 1, index version {old})" in said
    )
    assert "announced nowhere: no channel is set" in said
    assert alias(house) == {"champion": "1"}
    with connect(house.url) as connection:
        now = ledger.live(connection)
        (tried,) = connection.execute("SELECT run, exit_code FROM stage_runs WHERE stage = 'roll_back'").fetchall()
    assert now is not None and now.kind == "rollback" and now.approved_by == getpass.getuser()
    assert (tried["run"], tried["exit_code"]) == (now.run, 0) and "/runs/roll_back/manual__" in now.run
    assert house.storage.require_manifest(now.run, "roll_back").facts["release"] == 3

    with pytest.raises(ReleaseError, match="which is live"):
        back(3)
    with pytest.raises(ReleaseError, match=r"1 to 3.*found 9.*python -m tasks releases"):
        back(9)
    for wrong in (
        ["--to", "1"],
        ["--reason", "x"],
        ["--to", "1", "--reason", " "],
        ["--to", "1", "--reason", "x", "--and", "y"],
    ):
        with pytest.raises(OptionError, match="expected"):
            rollback_tool.main(wrong)

    # With MLflow away the release stands, and the next start of a release stage shows it there.
    # It is asked only once the row stands, and only once.
    asked: list[int] = []

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with connect(house.url) as connection:
                now = ledger.live(connection)
            asked.append(now.release if now else 0)
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MILLRACE_MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    process_settings.cache_clear()
    # Nor does a channel that is away: the note can be sent again.
    monkeypatch.setenv("MILLRACE_ANNOUNCE_WEBHOOK", "http://127.0.0.1:9/hunter7")
    process_settings.cache_clear()
    capsys.readouterr()
    assert back(2, "--by", "Grace") == 0
    server.shutdown()
    server.server_close()
    assert asked == [4]
    said = capsys.readouterr().out
    assert "MLflow does not show it yet" in said
    assert "warning: not announced everywhere" in said and "webhook" in said and "hunter7" not in said
    again = said.partition("Again: python -m tasks announce_rollback --run ")[2].split()[0]
    told: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    heard = house.with_settings(announce_webhook=SecretStr(f"http://127.0.0.1:{hook.server_port}/"))
    assert rollback_tool.announce(heard.settings, again) == "announced to webhook"
    hook.shutdown()
    hook.server_close()
    assert [(note["kind"], note["restores"], note["approved_by"]) for note in told] == [("rollback", 2, "Grace")]
    assert alias(house) == {"champion": "1"}
    assert [row.mirrored for row in releases_tool.read(house.settings)] == [False, True, True, True]
    assert mirror.reconcile_mirrors(house.settings).mirrored == (4,)
    assert alias(house) == {"champion": "2", "previous": "1"}

    assert releases_tool.main([]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "worse\\x1b[31m answers" in shown and shown.count("  live") == 1
    assert shown.count(" shown ") == 4 and shown.count(" whole") == 4
    assert releases_tool.main(["--json", "--release", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["live"], found["approved_by"], found["restores"], found["parts"]["state"]) == (
        True,
        "Grace",
        2,
        "whole",
    )


def test_what_lost_a_part_is_not_restored(house: Any) -> None:
    """One release for each part that can go; the error names the one that is still whole."""

    lost = house.index()
    house.promote(house.candidate(b"one").uri)  # 1: its index will be retired
    house.index()
    house.promote()  # 2: whole
    house.promote(house.candidate(b"two", champion=2).uri)  # 3
    with connect(house.url) as connection:
        connection.execute(f"DROP TABLE chunks_v{lost}".encode())
        connection.execute("UPDATE index_versions SET status = 'retired' WHERE version = %s", (lost,))
    other = release(house, 3)
    add(house, 2, evidence_sha256="0" * 64)  # 4
    add(house, 2, evidence_uri=release(house, 2).evidence_uri + "x")  # 5
    add(house, 2, evidence_uri=other.evidence_uri, evidence_sha256=other.evidence_sha256)  # 6: about another model
    add(house, 2, embedder="another")  # 7
    add(house, 2, prompt="Other words.")  # 8
    add(house, 3)  # 9: live
    problems = {
        1: r"index version \d+, found a retired one",
        4: r"expected evidence with sha256 0000",
        5: r"expected an object at .*evidence.jsonx",
        6: r"all other files of the adapter below .*, found s3://",
        7: r"made by another",
        8: r"expected the prompt as it was released",
    }
    for number, problem in problems.items():
        with pytest.raises(PartGone, match=problem) as refused:
            house.stage("roll_back", house.run("roll_back"), release=str(number), reason="r", approved_by="Ada")
        assert f"every part of release {number} " in str(refused.value) and str(refused.value).count("Next:") == 1
        offered = str(refused.value).partition("restore another: ")[2].partition(" can be")[0].split(", ")
        assert "2" in offered and not {"1", "3", "5", "7", "8", "9", str(number)} & set(offered)
    states = {row.release.release: row.parts.state for row in releases_tool.read(house.settings)}
    # A glance does not read bytes: what lies about itself (4, 6) looks whole until it is to be restored.
    assert {number for number, state in states.items() if state == "gone"} == {1, 5, 7, 8}
    away = house.settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    assert releases_tool.read(away, number=2)[0].parts.state == "unknown"
