"""The model cache: made once, never half, never with other bytes than those it was made with."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

from tasks import model_cache, models
from tasks.errors import ServiceUnavailable

BYTES = b"weights" * 100


class Maker:
    """Makes a folder of two files and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "config.json").write_text("{}")
        (folder / "sub").mkdir()
        (folder / "sub" / "model.safetensors").write_bytes(BYTES)


@pytest.fixture
def make() -> Maker:
    return Maker()


def test_a_folder_is_made_once_and_never_half(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")
        if len(made) == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        model_cache.once(tmp_path, "model", make)
    assert not (tmp_path / "model").exists()
    assert model_cache.once(tmp_path, "model", make) == model_cache.once(tmp_path, "model", make)
    assert len(made) == 2


@pytest.mark.parametrize("how", ["other bytes of the same size", "shorter", "missing", "one more", "no record"])
def test_a_folder_that_differs_is_made_anew_and_that_is_told(
    how: str, make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_cache.once(tmp_path, "model", make)
    weights = folder / "sub" / "model.safetensors"
    before = weights.stat()
    if how == "other bytes of the same size":
        weights.write_bytes(b"x" * len(BYTES))
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had touched it
    elif how == "shorter":
        weights.write_bytes(BYTES[:-1])
    elif how == "missing":
        weights.unlink()
    elif how == "one more":
        (folder / "modeling.py").write_text("")
    else:
        (tmp_path / "model.digests.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert model_cache.once(tmp_path, "model", make) == folder
    assert make.times == 2 and "made anew" in caplog.text
    assert weights.read_bytes() == BYTES and len(list(folder.rglob("*"))) == 3
    model_cache.once(tmp_path, "model", make)
    assert make.times == 2


def test_files_that_were_only_touched_are_hashed_once(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_cache.once(tmp_path, "model", make)
    hashed: list[Path] = []
    plain = model_cache.file_digest

    def counted(path: Path) -> str:
        hashed.append(path)
        return plain(path)

    monkeypatch.setattr(model_cache, "file_digest", counted)
    model_cache.once(tmp_path, "model", make)
    assert hashed == []
    os.utime(folder / "config.json")
    model_cache.once(tmp_path, "model", make)
    model_cache.once(tmp_path, "model", make)
    assert hashed == [folder / "config.json"] and make.times == 1


class Hub:
    """Downloads as huggingface_hub does: a snapshot of links to blobs that are called by their digests."""

    def __init__(self, spoil: int) -> None:
        self.downloads, self.spoil = 0, spoil

    def __call__(self, name: str, revision: str, cache_dir: str, allow_patterns: list[str]) -> str:
        self.downloads += 1
        root = Path(cache_dir) / "models--org--name"
        snapshot = root / "snapshots" / revision
        for path in (snapshot, root / "blobs"):
            path.mkdir(parents=True, exist_ok=True)
        large, small = hashlib.sha256(BYTES).hexdigest(), hashlib.sha1(b"blob 2\0{}").hexdigest()
        for file, digest, body in (("model.safetensors", large, BYTES), ("config.json", small, b"{}")):
            blob, link = root / "blobs" / digest, snapshot / file
            if not blob.exists():
                blob.write_bytes(body if self.downloads > self.spoil else body[:-1] + b"?")
            if not link.is_symlink():
                link.symlink_to(blob)
        return str(snapshot)


REFERENCE = f"hub:org/name@{'a' * 40}"


def test_files_of_the_hub_are_compared_with_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(spoil=1)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    folder = models.fetch(REFERENCE, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == BYTES and (folder / "config.json").read_text() == "{}"
    assert hub.downloads == 2
    (folder / "model.safetensors").resolve().write_bytes(BYTES[:-1] + b"!")
    assert (models.fetch(REFERENCE, tmp_path) / "model.safetensors").read_bytes() == BYTES


def test_bytes_that_are_wrong_again_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(spoil=9))
    with pytest.raises(ServiceUnavailable, match="found other bytes twice"):
        models.fetch(REFERENCE, tmp_path)
