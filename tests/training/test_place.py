"""Where a training's result goes: what stands is taken whole, or left alone, for a release may name it."""

import hashlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.contracts import Artifact
from tasks.errors import ManifestError
from tasks.training.train import _place

FOLDER = "s3://b/models/f"


class Memory:
    """Storage in memory that can be written and read, but not deleted from."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    def exists(self, uri: str) -> bool:
        return uri in self.bytes

    def get_bytes(self, uri: str) -> bytes:
        return self.bytes[uri]

    def list(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        return ((uri, len(body), "") for uri, body in self.bytes.items() if uri.startswith(prefix))

    def verify(self, artifact: Artifact) -> None:
        if hashlib.sha256(self.bytes.get(artifact.uri, b"")).hexdigest() != artifact.sha256:
            raise ManifestError(f"expected other bytes at {artifact.uri}")

    def train(self, folder: str) -> dict[str, Any]:
        """Write what a training leaves."""
        outputs = {}
        for name in ("adapter/adapter_model.safetensors", "packages.json"):
            body = self.bytes[f"{folder}/{name}"] = f"{folder} {name}".encode()
            found = Artifact(uri=f"{folder}/{name}", sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))
            outputs[name] = found.model_dump(mode="json")
        self.bytes[f"{folder}/training.json"] = json.dumps({"outputs": outputs}).encode()
        return {"outputs": outputs}


@pytest.fixture
def storage() -> Memory:
    return Memory()


def place(storage: Memory) -> tuple[str, dict[str, Any] | None]:
    context: Any = SimpleNamespace(storage=storage)
    before = dict(storage.bytes)
    found = _place(context, FOLDER)
    assert storage.bytes == before, "nothing that stands is touched"
    return found


def test_the_first_training_has_the_folder_of_its_fingerprint(storage: Memory) -> None:
    assert place(storage) == (FOLDER, None)
    storage.train(f"{FOLDER}-2")  # of a folder whose name only begins alike
    assert place(storage) == (FOLDER, None)


def test_what_is_whole_is_taken(storage: Memory) -> None:
    left = storage.train(FOLDER)
    assert place(storage) == (FOLDER, left)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "packages.json"])
@pytest.mark.parametrize("how", ["gone", "other"])
def test_what_is_damaged_stays_and_the_next_folder_is_taken(storage: Memory, name: str, how: str) -> None:
    storage.train(FOLDER)
    if how == "gone":
        del storage.bytes[f"{FOLDER}/{name}"]
    else:
        storage.bytes[f"{FOLDER}/{name}"] += b"!"
    assert place(storage) == (f"{FOLDER}-2", None)
    again = storage.train(f"{FOLDER}-2")
    assert place(storage) == (f"{FOLDER}-2", again), "found by the next training of the same inputs"
    storage.bytes[f"{FOLDER}-2/packages.json"] += b"!"
    assert place(storage) == (f"{FOLDER}-3", None)


@pytest.mark.parametrize("last", [None, b"", b"{", b"{}"])
def test_weights_without_their_record_stay_too(storage: Memory, last: bytes | None) -> None:
    """Half an upload, or a record that was lost after the weights were released."""
    storage.train(FOLDER)
    if last is None:
        del storage.bytes[f"{FOLDER}/training.json"]
    else:
        storage.bytes[f"{FOLDER}/training.json"] = last
    assert place(storage) == (f"{FOLDER}-2", None)
