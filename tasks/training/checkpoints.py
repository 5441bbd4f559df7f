"""Checkpoints in S3: what a training goes on from after a preemption, also on another number of ranks.

Reads and writes `RUN/train/checkpoints/step-N/`: the files that each node's ranks wrote, `node-K.json` when
those of node K are there, and last, by node 0, `checkpoint.json`, which names all files with their digests, the
training fingerprint, the number of ranks, and the loss curve so far. A checkpoint without it, with damaged files,
or of another training is passed over. Old ones are removed only after the newest was verified. The files hold
pickles of optimiser states: they are read only after their digests were compared, and only from this run's own folder.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import Artifact
from tasks.errors import ManifestError, ServiceUnavailable
from tasks.storage import Storage

log = logging.getLogger(__name__)
_LAST = "checkpoint.json"
_NODES_SECONDS = 600.0  # how long node 0 waits for the files of the others


@dataclass(frozen=True)
class Restored:
    """A checkpoint on the local disk: its folder, its step, the ranks that made it, and the loss curve up to it."""

    folder: Path
    step: int
    world: int
    curve: list[dict[str, Any]]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, as one of its `nodes` sees them."""

    storage: Storage
    place: str
    fingerprint: str
    world: int
    keep: int
    node: int = 0
    nodes: int = 1

    def save(self, step: int, files: Path, curve: list[dict[str, Any]]) -> None:
        """Upload this node's files of `step`; node 0 then declares the checkpoint complete, and removes old ones."""
        place = self._step(step)
        uploaded = self.storage.put_folder(place, files)
        self.storage.put_json(
            f"{place}/node-{self.node}.json", {name: item.model_dump(mode="json") for name, item in uploaded.items()}
        )
        if self.node:
            return
        content: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "step": step,
            "world": self.world,
            "files": self._files_of_all(place),
            "curve": curve,
        }
        self.storage.put_json(f"{place}/{_LAST}", content)
        for value in content["files"].values():
            self.storage.verify(Artifact.model_validate(value))
        log.info("checkpoint step=%d at %s", step, place)
        self._prune()

    def restore(self, target: Path) -> Restored | None:
        """Download the newest complete checkpoint of this training below `target`; None where there is none."""
        for uri in self._complete():
            try:
                content = self._read(uri)
                if content["fingerprint"] != self.fingerprint:
                    continue
                step = int(content["step"])
                files = {name: Artifact.model_validate(value) for name, value in content["files"].items()}
                folder = self.storage.get_folder(files, target / f"checkpoint-{step}")
            except ManifestError as error:
                log.warning("a checkpoint is damaged, an earlier one is taken: %s", error)
                continue
            log.info("going on from step %d (%s)", step, uri)
            return Restored(folder, step, int(content["world"]), content["curve"])
        return None

    def clear_halves(self) -> None:
        """Remove checkpoints that were never completed: their files must not be taken for those of this try."""
        complete = {uri.removesuffix(_LAST) for uri in self._complete()}
        folders = {
            uri[: uri.index("/", len(self.place) + 1) + 1] for uri, _, _ in self.storage.list(f"{self.place}/step-")
        }
        for folder in sorted(folders - complete):
            self.storage.delete_prefix(folder)

    def _files_of_all(self, place: str) -> dict[str, Any]:
        """Return the files of all nodes, waiting for those that are slower. Raises ServiceUnavailable."""
        found: dict[str, Any] = {}
        until = time.monotonic() + _NODES_SECONDS
        for node in range(self.nodes):
            uri = f"{place}/node-{node}.json"
            while not self.storage.exists(uri):
                if time.monotonic() > until:
                    raise ServiceUnavailable(
                        f"expected node {node} to upload its part of {place} in {_NODES_SECONDS:g} s, found nothing. "
                        "Next: see the log of that node; an earlier checkpoint stands."
                    )
                time.sleep(0.5)
            found |= json.loads(self.storage.get_bytes(uri))
        return found

    def _prune(self) -> None:
        for old in self._complete()[self.keep :]:
            self.storage.delete_prefix(old)  # the declaration first: what is half removed must not look complete
            self.storage.delete_prefix(old.removesuffix(_LAST))

    def _complete(self) -> list[str]:
        """Return the URIs of complete checkpoints, newest first."""
        return sorted(
            (uri for uri, _, _ in self.storage.list(f"{self.place}/step-") if uri.endswith(f"/{_LAST}")), reverse=True
        )

    def _step(self, step: int) -> str:
        return f"{self.place}/step-{step:08d}"

    def _read(self, uri: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.storage.get_bytes(uri))
        except ValueError as error:
            raise ManifestError(f"expected JSON at {uri}, found {error}. Next: remove that checkpoint.") from error
        return content
