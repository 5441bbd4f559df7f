"""The corpora of `corpora.yaml`, as far as DAGs need them: name, schedule, and the name of the DAG that keeps one fresh.

Reads the file that `MILLRACE_CORPORA` names (a relative path: from the repository) each time DAGs are parsed. Raises
ValueError when it has no corpora, so that the Airflow UI shows the reason as an import error; what a corpus
says beside its schedule is checked by the stages (`tasks/knowledge/corpora.py`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

DEFAULT = "default"


@dataclass(frozen=True)
class CorpusDag:
    """A corpus and its DAG. The default corpus is the one the assistant answers from."""

    name: str
    schedule: str | None

    @property
    def dag_id(self) -> str:
        """`sync_knowledge` for the default corpus, `sync_knowledge_NAME` for another."""
        return "sync_knowledge" if self.name == DEFAULT else f"sync_knowledge_{self.name}"


def corpora() -> list[CorpusDag]:
    """Return the corpora; where the file has no `default`, there is one all the same, by hand only."""
    path = Path(__file__).resolve().parent.parent / os.environ.get("MILLRACE_CORPORA", "corpora.yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    entries = found.get("corpora") if isinstance(found, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"expected `corpora:` with entries in {path.name}, found {found!r:.80}. Next: correct it.")
    names = dict.fromkeys([DEFAULT, *entries])
    return [CorpusDag(str(name), (entries.get(name) or {}).get("schedule")) for name in names]
