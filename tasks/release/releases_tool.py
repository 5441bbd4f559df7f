"""`python -m tasks releases`: the ledger, for people: what, when, who, why, by which evidence, and what is live.

| command | what it shows |
| --- | --- |
| `python -m tasks releases [--limit N]` | the newest releases (20), newest first, in 100 columns |
| `python -m tasks releases --release N` | all of one release, its prompt and where its parts are |
| either with `--json` | the same as JSON |

Reads `releases`, `release_mirrors`, `index_versions` and whether evidence and weights are in S3 (no byte of them: a rollback
reads those). Writes nothing. Text of other people is shown without the characters that a terminal obeys. Fails with
`ReleaseError` for a number that is not there and `OptionError` for a wrong command; where S3 is away it says so.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.database import Connection
from tasks.errors import OptionError
from tasks.options import parse_options
from tasks.release import ledger as releases
from tasks.release.ledger import Release, ledger
from tasks.release.parts import Standing, look
from tasks.release.plain import cut, pad, paragraph
from tasks.settings import Settings
from tasks.storage import Storage

USAGE = "python -m tasks releases [--release N] [--limit N] [--json]"


@dataclass(frozen=True)
class Row:
    """A release, and what is known of it now."""

    release: Release
    live: bool
    mirrored: bool
    parts: Standing
    mirror_problem: str | None = None
    """Why MLflow cannot show it; None where it does, or will."""

    @property
    def in_mlflow(self) -> str:
        """One word about MLflow."""
        return "lost" if self.mirror_problem else "shown" if self.mirrored else "waits"


def read(settings: Settings, limit: int = 20, number: int | None = None) -> list[Row]:
    """Return the newest releases, or one. Raises ReleaseError."""
    storage = Storage(settings.s3_endpoint_url, attempts=2)
    with ledger(settings) as connection:
        found = [releases.get(connection, number)] if number is not None else releases.history(connection, limit)
        newest = releases.live(connection)
        known = _mirrors(connection)
        return [
            Row(
                one,
                newest == one,
                mirrored=one.release in known and known[one.release] is None,
                parts=look(connection, storage, one),
                mirror_problem=known.get(one.release),
            )
            for one in found
        ]


def table(rows: Sequence[Row]) -> list[str]:
    """Return the ledger as lines of at most 100 columns."""
    head = ("release", "when (UTC)", "kind", "model", "index", "by", "MLflow", "parts")
    lines = [_columns(head)]
    for row in rows:
        one = row.release
        model = f"{one.model_name} {one.model_version}"
        kind = one.kind if one.restores is None else f"rollback to {one.restores}"
        cells = (one.release, f"{one.created_at:%Y-%m-%d %H:%M}", kind, model, one.index_version, one.approved_by)
        lines.append(_columns((*cells, row.in_mlflow, row.parts.state)) + ("  live" if row.live else ""))
        lines += paragraph("why: ", one.reason, " " * 9, most=2)
        lines.append(f"{' ' * 9}evidence {one.evidence_sha256[:16]}, prompt {one.prompt_sha256[:16]}, {_weights(one)}")
        for problem in row.parts.problems:
            lines += paragraph(f"parts {row.parts.state}: ", problem, " " * 9, most=2)
    return lines


def page(row: Row) -> list[str]:
    """Return everything about one release. URIs stand whole on lines of their own."""
    one = row.release
    lines = [f"release {one.release}{' (live)' if row.live else ''}, {one.kind}, {one.created_at:%Y-%m-%d %H:%M:%S %Z}"]
    if one.restores is not None:
        lines.append(f"  restores {one.restores}")
    facts = {
        "by": one.approved_by,
        "why": one.reason,
        "model": f"{one.model_name} version {one.model_version}, {_weights(one)}",
        "index": f"version {one.index_version}, embedder {one.embedder}",
        "code": one.code_revision,
        "MLflow": _told(row),
        "parts": "; ".join((row.parts.state, *row.parts.problems)),
    }
    for name, value in facts.items():
        lines += paragraph(f"{name}: ", value, "  ")
    places = {
        "run": one.run, "evidence": one.evidence_uri, "adapter": one.adapter_uri, "base model": one.base_model,
        "base revision": one.base_revision, "dataset sha256": one.dataset_sha256, "evidence sha256": one.evidence_sha256,
    }  # fmt: skip
    for name, place in places.items():
        lines += [f"  {name}:", f"    {cut('none' if place is None else place, 4_000)}"]
    lines.append(f"  prompt (sha256 {one.prompt_sha256}):")
    lines += [line for text in one.prompt.splitlines() for line in paragraph("", text, "    ")]
    return lines


def document(row: Row) -> dict[str, Any]:
    """Return a release as JSON has it."""
    known = {
        "live": row.live,
        "mirrored": row.mirrored,
        "mirror_problem": row.mirror_problem,
        "parts": asdict(row.parts),
    }
    return asdict(row.release) | known


def _columns(cells: Sequence[object]) -> str:
    return " ".join(pad(cell, width) for cell, width in zip(cells, (7, 16, 13, 20, 5, 14, 6, 7), strict=True)).rstrip()


def _weights(release: Release) -> str:
    if release.adapter_sha256 is None:
        return f"whole model {release.base_revision[:16]}"
    return f"adapter {release.adapter_sha256[:16]}"


def _told(row: Row) -> str:
    if row.mirror_problem:
        return f"cannot show it: {row.mirror_problem}"
    return "shows it" if row.mirrored else "does not show it yet; the next stage of a release tries again"


def _mirrors(connection: Connection) -> dict[int, str | None]:
    """Return the releases that MLflow shows, and those that it cannot, with the problem."""
    rows = connection.execute("SELECT release, problem FROM release_mirrors")
    return {row["release"]: row["problem"] for row in rows}


def number_of(given: str | None, name: str) -> int | None:
    """Return an option that is a number from 1 on. Raises OptionError."""
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or not 0 < int(given) < 2**31:
        raise OptionError(f"expected --{name} to be a number from 1 on, found {given!r}. Next: correct it.")
    return int(given)


def main(arguments: list[str]) -> int:
    """Print the ledger."""
    from tasks.settings import settings

    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    as_json = "--json" in arguments
    given = parse_options([argument for argument in arguments if argument != "--json"])
    if set(given) - {"release", "limit"}:
        raise OptionError(f"expected {USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    number, limit = number_of(given.get("release"), "release"), number_of(given.get("limit"), "limit")
    rows = read(settings(), limit or 20, number)
    if as_json:
        found = [document(row) for row in rows]
        print(json.dumps(found if number is None else found[0], indent=1, sort_keys=True, default=str))
        return 0
    lines = page(rows[0]) if number is not None else table(rows) if rows else ["no release yet"]
    print("\n".join(lines))
    return 0
