"""Whether what a release is made of still stands: by a glance, or to the last byte.

Reads the row of its index version, the table of chunks, the kept evidence and the folder of the weights. `look` asks only
whether they are there, and is cheap enough for every release of the ledger. `require_whole` proves it before a release is
restored: prompt and evidence by digest, every byte of the weights, every chunk of the index counted (and held until the
end of the transaction). Writes nothing. Fails with `PartGone`, which says which releases can be restored instead.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from tasks.database import Connection
from tasks.errors import ManifestError, PartGone, ReleaseError, ServiceUnavailable
from tasks.release import index as indexes
from tasks.release import ledger as releases
from tasks.release.ledger import Release
from tasks.release.proven import recall_model
from tasks.storage import Storage

OFFERED = 50  # releases that are looked at for one that can be restored


@dataclass(frozen=True)
class Standing:
    """What a glance found: `unknown` where S3 did not answer."""

    state: Literal["whole", "gone", "unknown"]
    problems: tuple[str, ...] = ()


def look(connection: Connection, storage: Storage, release: Release) -> Standing:
    """Return whether the parts are there. Their bytes are not read: `require_whole` does that."""
    problems = [problem for problem in (_index(connection, release), _prompt(release)) if problem]
    try:
        if not storage.exists(release.evidence_uri):
            problems.append("the evidence is gone")
        for folder in sorted(filter(None, (release.adapter_uri, release.base_model))):
            if folder.startswith("s3://") and not _has_weights(storage, folder):
                problems.append(f"no weights below {folder}")
    except ServiceUnavailable as error:
        if not problems:
            return Standing("unknown", (str(error),))
    return Standing("gone" if problems else "whole", tuple(problems))


def restorable(connection: Connection, storage: Storage, live: Release) -> list[int]:
    """Return the newest releases that answer unlike the live one and whose parts are there, newest first."""
    found = releases.history(connection, OFFERED)
    return [
        one.release for one in found if not one.answers_like(live) and look(connection, storage, one).state == "whole"
    ]


def require_whole(connection: Connection, storage: Storage, release: Release, live: Release) -> None:
    """Prove that every part is there and is what the ledger says. Raises PartGone."""
    try:
        if problem := _prompt(release):
            raise ReleaseError(f"expected the prompt as it was released, found that {problem}.")
        index = indexes.require(connection, release.index_version)
        if index.embedder != release.embedder:
            raise ReleaseError(
                f"expected index version {index.version} made by {release.embedder}, found {index.embedder}."
            )
        recall_model(storage, release)
    except (ReleaseError, ManifestError) as error:
        told = str(error).partition(" Next: ")[0]
        others = [number for number in restorable(connection, storage, live) if number != release.release]
        advice = (
            f"restore another: {', '.join(map(str, others))} can be" if others else "promote a candidate; none can be"
        )
        raise PartGone(
            f"expected every part of release {release.release} to be there, so that it can be restored; {told} "
            f"Next: {advice} (python -m tasks releases)."
        ) from error


def _index(connection: Connection, release: Release) -> str | None:
    row = connection.execute(
        "SELECT status, embedder, to_regclass(quote_ident(table_name)) IS NOT NULL AS stands FROM index_versions WHERE version = %s",
        (release.index_version,),
    ).fetchone()
    if row is None or row["status"] not in indexes.RELEASABLE:
        return f"index version {release.index_version} is {row['status'] if row else 'not known'}"
    if row["embedder"] != release.embedder:
        return f"index version {release.index_version} was made by another embedder"
    return None if row["stands"] else f"index version {release.index_version} has lost its table"


def _prompt(release: Release) -> str | None:
    found = hashlib.sha256(release.prompt.encode()).hexdigest()
    return None if found == release.prompt_sha256 else f"its text has sha256 {found[:12]}"


def _has_weights(storage: Storage, folder: str) -> bool:
    return any(uri.endswith(".safetensors") for uri, _size, _etag in storage.list(f"{folder.rstrip('/')}/"))
