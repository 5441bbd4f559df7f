"""The files of a model besides its weights (configuration, tokenizer, chat template), held against what was signed.

A model's revision pins its weights alone, and these files decide as much of what is answered. Reads a model's folder; writes
nothing. Fails with `ReleaseError` when a file differs, is missing, or is there and was not signed.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks.errors import ReleaseError
from tasks.models import is_weights
from tasks.storage import file_digest


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a model's folder but its weights, by name."""
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not is_weights(path.name)
    }


def differing(found: Mapping[str, str], signed: Mapping[str, str]) -> list[str]:
    """Return the names of files that are not as they were signed; `signed` may name weights too, which are not looked at."""
    expected = {name: sha256 for name, sha256 in signed.items() if not is_weights(name)}
    return sorted(name for name in expected | dict(found) if expected.get(name) != found.get(name))


def require_signed(reference: str, folder: Path, signed: Mapping[str, str]) -> None:
    """Prove that the files of a folder are those that were signed, but for the weights. Raises ReleaseError."""
    if other := differing(digests(folder), signed):
        raise ReleaseError(
            f"expected the files of {reference} as they were signed, found {', '.join(other[:3])} other, missing or new. "
            "Next: restore that folder from a backup, or roll back."
        )
