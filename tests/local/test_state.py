"""The state file: whole or not there."""

import os
from pathlib import Path

import pytest

from local.processes import Identity
from local.state import PartState, StackState, load, save, write_private


def test_round_trip(tmp_path: Path) -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    part = PartState(state="healthy", identity=me, family=[me], started=1.5, restarts=2, message="m")
    state = StackState(daemon=me, config="c", parts={"postgres": part})
    save(tmp_path / "state.json", state)
    assert load(tmp_path / "state.json") == state
    assert state.daemon_alive()
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"daemon": 3}', '{"daemon": null, "config": "", "parts": {"a": {}}}'])
def test_a_file_that_cannot_be_read_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert load(tmp_path / "state.json") == StackState()
    assert load(tmp_path / "none.json") == StackState()


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
