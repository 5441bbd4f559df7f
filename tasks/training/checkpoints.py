"""Checkpoints in S3: what a training goes on from after a preemption.

Reads and writes `RUN/train/checkpoints/step-N/`: the trainer's files, and last `checkpoint.json`, which
names them with their digests, the training fingerprint, and the loss curve so far. A checkpoint without
it, with damaged files, or of another training is passed over. The files hold pickles of optimiser states:
they are read only after their digests were compared, and only from this run's own folder.
"""

import json
import logging
from pathlib import Path
from typing import Any

from tasks.contracts import Artifact
from tasks.errors import ManifestError
from tasks.storage import Storage

log = logging.getLogger(__name__)
_LAST = "checkpoint.json"


def save(
    storage: Storage, folder: str, fingerprint: str, step: int, files: Path, curve: list[dict[str, Any]], keep: int
) -> None:
    """Upload the checkpoint of `step`, declare it complete, then remove all but the newest `keep`."""
    place = f"{folder}/step-{step:08d}"
    uploaded = storage.put_folder(place, files)
    storage.put_json(
        f"{place}/{_LAST}",
        {
            "fingerprint": fingerprint,
            "step": step,
            "files": {name: artifact.model_dump(mode="json") for name, artifact in uploaded.items()},
            "curve": curve,
        },
    )
    log.info("checkpoint step=%d at %s", step, place)
    for old in _complete(storage, folder)[keep:]:
        storage.delete_prefix(old.removesuffix(_LAST))


def restore(storage: Storage, folder: str, fingerprint: str, target: Path) -> tuple[Path, list[dict[str, Any]]] | None:
    """Download the newest complete checkpoint of this training below `target`.

    Returns its folder and the loss curve up to it, or None when there is none.
    """
    for uri in _complete(storage, folder):
        try:
            content = _read(storage, uri)
            if content["fingerprint"] != fingerprint:
                continue
            place = target / f"checkpoint-{content['step']}"
            files = {name: Artifact.model_validate(value) for name, value in content["files"].items()}
            storage.get_folder(files, place)
        except ManifestError as error:
            log.warning("a checkpoint is damaged, an earlier one is taken: %s", error)
            continue
        log.info("going on from step %d (%s)", content["step"], uri)
        return place, content["curve"]
    return None


def _complete(storage: Storage, folder: str) -> list[str]:
    """Return the URIs of complete checkpoints, newest first."""
    return sorted((uri for uri, _, _ in storage.list(f"{folder}/step-") if uri.endswith(f"/{_LAST}")), reverse=True)


def _read(storage: Storage, uri: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(storage.get_bytes(uri))
    except ValueError as error:
        raise ManifestError(f"expected JSON at {uri}, found {error}. Next: remove that checkpoint.") from error
    return content
