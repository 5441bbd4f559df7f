"""What a release would change, and what speaks for asking a person whatever the settings say.

Reads the ledger, an index version, a prompt's text and the proven evidence of a candidate, never the flags of a proposal:
`propose` works it out for the form, and `promote` again under the ledger's lock. Doubts are a verdict `review`, a prompt or
an index version other than the verdict was measured with, and a part that was rolled back. Writes nothing.
"""

from dataclasses import dataclass
from typing import Any

from tasks.database import Connection
from tasks.knowledge.index_tables import Version
from tasks.release import ledger as releases
from tasks.release.evidence import Evidence
from tasks.release.ledger import Release
from tasks.release.weights import release_columns
from tasks.serving.prompt import prompt_digest

_SHORT = 12
_MOST = 200  # of somebody's reason: the form goes through XCom, which has a limit


@dataclass(frozen=True)
class Change:
    """What would be new, and why a person must look at it (`doubts`, one sentence each)."""

    model: bool
    prompt_changed: bool
    corpus: str
    doubts: tuple[str, ...] = ()


def change(
    connection: Connection, live: Release | None, index: Version, prompt: str, evidence: Evidence | None
) -> Change:
    """Return what a release of these parts would change; without `evidence` the model stays."""
    sha256 = prompt_digest(prompt)
    doubts = [] if evidence is None else [*_reviewed(evidence), *_measured(evidence, index, sha256)]
    parts: dict[str, dict[str, Any]] = {
        "index version": {"index_version": index.version},
        "prompt": {"prompt_sha256": sha256},
    }
    if evidence is not None:
        columns = release_columns(evidence.weights, evidence.train)
        parts["model"] = {name: columns[name] for name in ("adapter_sha256", "base_revision")}
    for what, values in parts.items():
        # What answers now was chosen again since: nobody is asked twice.
        if live is None or any(getattr(live, name) != value for name, value in values.items()):
            doubts += _taken_back(connection, what, values)
    return Change(
        model=evidence is not None,
        prompt_changed=live is not None and live.prompt_sha256 != sha256,
        corpus=index.corpus,
        doubts=tuple(doubts),
    )


def short(text: object) -> str:
    """Return somebody's text as one line of at most 200 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MOST else line[: _MOST - 3] + "..."


def _reviewed(evidence: Evidence) -> list[str]:
    facts = evidence.gate.facts
    return [] if facts.get("verdict") == "promote" else [f"The verdict is review: {short(facts.get('reason'))}"]


def _measured(evidence: Evidence, index: Version, prompt_sha256: str) -> list[str]:
    """Answers were scored with one prompt and one index: a release of others is not what was measured."""
    facts, doubts = evidence.evaluate.facts, []
    if (prompt := facts.get("prompt_sha256")) != prompt_sha256:
        doubts.append(
            f"The verdict was measured with prompt {str(prompt)[:_SHORT] if prompt else 'unknown'}, "
            f"and {prompt_sha256[:_SHORT]} would go live."
        )
    if (version := facts.get("index_version")) != index.version:
        doubts.append(
            f"The verdict was measured with {f'index version {version}' if version is not None else 'no index'}, "
            f"and index version {index.version} would go live."
        )
    return doubts


def _taken_back(connection: Connection, what: str, values: dict[str, Any]) -> list[str]:
    found = releases.taken_back(connection, values)
    if found is None:
        return []
    taken, back = found
    return [f"This {what} was live in release {taken}, which was rolled back: {short(back.reason)}"]
