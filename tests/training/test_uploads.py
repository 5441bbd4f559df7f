"""Checkpoints on their way to S3: beside the training, in order, told when they fail, safe before they are removed."""

import threading
from pathlib import Path

import pytest

from tasks.errors import ServiceUnavailable
from tasks.training.uploads import Uploads


def make(folder: Path, step: int) -> Path:
    files = folder / f"checkpoint-{step}"
    files.mkdir()
    return files


def test_nobody_waits_and_the_disk_is_freed_when_it_is_safe(tmp_path: Path) -> None:
    go, saved = threading.Event(), []

    def save(step: int, files: Path) -> None:
        assert go.wait(10)
        saved.append((step, files.is_dir()))

    uploads = Uploads(tmp_path, save)
    for step in (1, 2):
        make(tmp_path, step)
        uploads.add(step)
    assert saved == [], "the caller goes on while nothing is uploaded yet"
    go.set()
    uploads.finish()
    assert saved == [(1, True), (2, True)]
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_fails_is_told_and_the_next_one_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def save(step: int, files: Path) -> None:
        if step == 1:
            raise ServiceUnavailable("S3 is away")

    uploads = Uploads(tmp_path, save)
    for step in (1, 2):
        make(tmp_path, step)
        uploads.add(step)
    uploads.finish()
    assert "the checkpoint of step 1 is not in S3; the training goes on" in caplog.text


def test_the_newest_must_be_safe_at_the_end(tmp_path: Path) -> None:
    def save(step: int, files: Path) -> None:
        raise ServiceUnavailable("S3 is away")

    uploads = Uploads(tmp_path, save)
    make(tmp_path, 1)
    uploads.add(1)
    with pytest.raises(ServiceUnavailable):
        uploads.finish()


def test_abandoned_uploads_do_not_begin(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    seen = []

    def save(step: int, files: Path) -> None:
        begun.set()
        go.wait(10)
        seen.append(step)

    uploads = Uploads(tmp_path, save)
    for step in (1, 2):
        make(tmp_path, step)
        uploads.add(step)
    begun.wait(10)
    threading.Timer(0.2, go.set).start()
    uploads.abandon()
    assert seen == [1]
