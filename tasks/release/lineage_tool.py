"""`python -m tasks lineage MODEL_OR_DOCUMENT [--rows] [--json]`: from a release to its documents, or from a document to releases.

| subject | what is walked |
| --- | --- |
| `7`, `release:7`, or `NAME/3` (a model version: its newest release) | model, runs, dataset, examples, documents, index |
| `NAME/3` that was never released | MLflow's tags of it, its runs, dataset, examples, documents |
| `dataset:DIGEST` | rows, documents, models, releases |
| a document's URI, `document:URI`, or the SHA-256 of its content or text | index versions, datasets, models, releases |

`--rows` lists every example and document instead of the first ones. Reads as `tasks.release.lineage`,
`tasks.release.lineage_model` and `tasks.release.lineage_back` say; writes nothing. Fails with `ReleaseError` or `DataError`
for a subject that is not known, and with `ServiceUnavailable` for a version that only an MLflow that is away could know.
"""

import json
from typing import Any

from tasks.errors import OptionError
from tasks.release.ledger import ledger
from tasks.release.lineage import of_release, release_of
from tasks.release.lineage_back import of_document
from tasks.release.lineage_model import of_dataset, of_version
from tasks.release.lineage_walk import Found, Walk
from tasks.release.plain import paragraph, plain
from tasks.settings import Settings
from tasks.storage import Storage

USAGE = "python -m tasks lineage RELEASE | NAME/VERSION | dataset:DIGEST | DOCUMENT [--rows] [--json]"
_FLAGS = {"--rows", "--json"}


def lineage(settings: Settings, subject: str, *, rows: bool = False) -> Found:
    """Return the lineage of a release, a model version, a dataset or a document. Raises ReleaseError, DataError, ServiceUnavailable."""
    storage = Storage(settings.s3_endpoint_url)
    with ledger(settings) as connection:
        walk = Walk(connection, storage, f"s3://{settings.s3_bucket}", rows)
        if subject.startswith("document:"):
            return of_document(walk, settings, subject)
        if subject.startswith("dataset:"):
            return of_dataset(walk, settings, subject.removeprefix("dataset:"))
        release = release_of(walk, subject)
        if release is not None:
            return of_release(walk, release)
        return of_version(walk, settings, subject) or of_document(walk, settings, subject)


def outline(value: Any, indent: str = "") -> list[str]:
    """Return a lineage as indented lines without a character that a terminal obeys. Nothing is left out."""
    lines: list[str] = []
    for name, inner in value.items():
        label = str(name).replace("_", " ")
        if isinstance(inner, dict):
            lines += [f"{indent}{label}:", *(outline(inner, indent + "  ") or [f"{indent}  none"])]
        elif isinstance(inner, list):
            lines.append(f"{indent}{label}:" + ("" if inner else " none"))
            for item in inner:
                if isinstance(item, dict):
                    told = outline(item, indent + "    ")
                    lines += [f"{indent}  - {told[0].strip()}", *told[1:]]
                else:
                    lines.append(f"{indent}  - {plain(item)}")
        else:
            shown = "none" if inner is None else ("no", "yes")[inner] if isinstance(inner, bool) else inner
            lines += paragraph(f"{label}: ", shown, indent)
    return lines


def main(arguments: list[str]) -> int:
    """Print the lineage of one subject."""
    from tasks.settings import settings

    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    subjects = [argument for argument in arguments if argument not in _FLAGS]
    if len(subjects) != 1 or subjects[0].startswith("--") or not subjects[0].strip():
        raise OptionError(f"expected {USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    found = lineage(settings(), subjects[0], rows="--rows" in arguments)
    print(json.dumps(found, indent=1, sort_keys=True) if "--json" in arguments else "\n".join(outline(found)))
    return 0
