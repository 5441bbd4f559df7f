"""Checkpoints in a real S3: complete only when declared, damaged ones passed over, old ones removed, never the last."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ServiceUnavailable
from tasks.storage import Storage
from tasks.training import checkpoints as module
from tasks.training.checkpoints import Checkpoints

pytestmark = pytest.mark.integration
CURVE = [{"step": 1, "loss": 2.0}]


@pytest.fixture
def place(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoints]:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    folder = f"s3://{stack.env['MILLRACE_S3_BUCKET']}/tests/{uuid.uuid4()}/checkpoints"
    yield Checkpoints(Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"]), folder, "f", world=2, keep=2)


def write(folder: Path, step: int, name: str = "weights.pt") -> Path:
    files = folder / f"checkpoint-{step}"
    (files / f"global_step{step}").mkdir(parents=True)
    (files / f"global_step{step}" / name).write_bytes(f"weights of {step} in {name}".encode())
    return files


def test_the_newest_complete_one_is_restored_and_old_ones_are_removed(place: Checkpoints, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        place.save(step, write(tmp_path / "ranks", step), CURVE)
    restored = place.restore(tmp_path / "next")
    assert restored is not None
    assert (restored.step, restored.world, restored.curve) == (3, 2, CURVE)
    assert (restored.folder / "global_step3" / "weights.pt").read_bytes() == b"weights of 3 in weights.pt"
    assert sorted({uri.split("/step-")[1][:8] for uri, _, _ in place.storage.list(place.place)}) == [
        "00000002",
        "00000003",
    ]


def test_damaged_and_foreign_ones_are_passed_over(
    place: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        place.save(step, write(tmp_path / "ranks", step), CURVE)
    place.storage.put_bytes(f"{place.place}/step-00000002/global_step2/weights.pt", b"weights of 9 in weights.pt")
    restored = place.restore(tmp_path / "next")
    assert restored is not None
    assert restored.step == 1
    assert "a checkpoint is damaged, an earlier one is taken" in caplog.text
    other = Checkpoints(place.storage, place.place, "another training", world=2, keep=2)
    assert other.restore(tmp_path / "other") is None


def test_an_upload_that_was_cut_short_is_no_checkpoint(place: Checkpoints, tmp_path: Path) -> None:
    place.save(1, write(tmp_path / "ranks", 1), CURVE)
    place.storage.put_folder(f"{place.place}/step-00000002", write(tmp_path / "ranks", 2))
    restored = place.restore(tmp_path / "next")
    assert restored is not None
    assert restored.step == 1
    place.clear_halves()
    assert {uri.split("/step-")[1][:8] for uri, _, _ in place.storage.list(place.place)} == {"00000001"}


def test_old_ones_stay_while_the_newest_cannot_be_verified(
    place: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Checkpoints(place.storage, place.place, "f", world=2, keep=1)
    one.save(1, write(tmp_path / "ranks", 1), CURVE)

    def refuse(*_: Any) -> None:
        raise ServiceUnavailable("S3 went away")

    monkeypatch.setattr(Storage, "verify", refuse)
    with pytest.raises(ServiceUnavailable):
        one.save(2, write(tmp_path / "ranks", 2), CURVE)
    monkeypatch.undo()
    assert one.storage.exists(f"{place.place}/step-00000001/checkpoint.json")


def test_two_nodes_make_one_checkpoint(place: Checkpoints, tmp_path: Path) -> None:
    first, second = (Checkpoints(place.storage, place.place, "f", 2, 2, node, nodes=2) for node in (0, 1))
    upload = threading.Thread(target=first.save, args=(1, write(tmp_path / "a", 1, "rank0.pt"), CURVE))
    upload.start()
    assert first.restore(tmp_path / "early") is None, "half of it is no checkpoint"
    second.save(1, write(tmp_path / "b", 1, "rank1.pt"), [])
    upload.join(30)
    restored = second.restore(tmp_path / "next")
    assert restored is not None
    assert sorted(path.name for path in (restored.folder / "global_step1").iterdir()) == ["rank0.pt", "rank1.pt"]


def test_a_node_that_stays_away_is_no_checkpoint(
    place: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NODES_SECONDS", 0.1)
    alone = Checkpoints(place.storage, place.place, "f", 2, 2, node=0, nodes=2)
    with pytest.raises(ServiceUnavailable, match="node 1"):
        alone.save(1, write(tmp_path, 1), CURVE)
    assert alone.restore(tmp_path / "next") is None
