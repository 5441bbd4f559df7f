"""Corpora: named sets of documents, each with settings of its own, from `corpora.yaml`.

Reads the file that the setting `corpora` names. Writes nothing. A corpus is a source, golden questions, a
schedule, and overrides of settings: `settings_of(settings, "handbook")` are the settings with which every stage of its
sync runs, so that a stage needs to know no more of corpora. What is no name but a URI stands for the corpus `default`,
read from that source (`source_of`). Fails with `SettingsError`, naming the file and the entry.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tasks.contracts import Manifest
from tasks.errors import SettingsError, nearest
from tasks.settings import Settings, changed_settings, repository_path

DEFAULT = "default"
TUNING = "tuning"  # what tune-index builds is of this one, which no file may name
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# Settings that a corpus may say for itself.
OVERRIDES = (
    "golden_questions", "embedder", "embedder_precision", "chunker", "chunk_tokens", "chunk_overlap", "vector_type",
    "text_search", "index_overlay_share", "search_mode", "search_ef", "reranker", "near_duplicate_similarity",
    "max_document_mb", "shard_documents", "max_shards", "max_quarantine_share", "max_removal_share", "min_recall_at_5",
    "min_ann_recall", "retrieval_margin",
)  # fmt: skip
_OTHERS = ("source", "schedule", "licence")


@dataclass(frozen=True)
class Corpus:
    """An entry of the file: what it says for itself."""

    name: str
    source: str | None = None
    schedule: str | None = None
    licence: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def load_corpora(path: str) -> dict[str, Corpus]:
    """Return the corpora of a file by name. Raises SettingsError."""
    file = Path(path).name
    try:
        found = yaml.safe_load(repository_path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"expected corpora in {file}, found {error}. Next: correct MILLRACE_CORPORA.") from error
    entries = found.get("corpora") if isinstance(found, dict) and set(found) == {"corpora"} else None
    if not isinstance(entries, dict) or not entries:
        raise SettingsError(
            f"expected one key `corpora` with entries in {file}, found {found!r:.100}. Next: correct it."
        )
    return {name: _corpus(file, name, entry or {}) for name, entry in entries.items()}


def _corpus(file: str, name: Any, entry: Any) -> Corpus:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == TUNING or not isinstance(entry, dict):
        raise SettingsError(
            f"expected entries of {file} named by small letters, digits and _, and not {TUNING}, found {name!r}: {entry!r:.80}. Next: rename it."
        )
    for key in entry:
        if key not in (*_OTHERS, *OVERRIDES):
            raise SettingsError(
                f"expected keys of a corpus ({', '.join((*_OTHERS, *OVERRIDES))}) in {name!r} of {file}, found {key!r}."
                f"{nearest(str(key), (*_OTHERS, *OVERRIDES))} Next: correct it."
            )
    if name != DEFAULT and not (entry.get("source") and entry.get("golden_questions")):
        raise SettingsError(
            f"expected source and golden_questions of {name!r} in {file}, found {sorted(entry)}. Next: add them."
        )
    licence = entry.get("licence")
    if licence is not None and not isinstance(licence, str):
        raise SettingsError(f"expected the licence of {name!r} in {file} as text, found {licence!r}. Next: correct it.")
    overrides = {key: entry[key] for key in OVERRIDES if key in entry}
    return Corpus(name, entry.get("source"), entry.get("schedule"), licence, overrides)


def name_of(settings: Settings, wanted: str) -> str:
    """Return the name of the corpus that a name or URI stands for. Raises SettingsError for an unknown name."""
    corpora = load_corpora(settings.corpora)
    if wanted in corpora or wanted == DEFAULT:  # there is a default corpus whether the file names it or not
        return wanted
    if NAME.fullmatch(wanted) and not repository_path(wanted).is_dir():
        raise SettingsError(
            f"expected a corpus of {Path(settings.corpora).name} ({', '.join(corpora)}), a folder, pydoc:topics or "
            f"s3://bucket/prefix, found {wanted!r}.{nearest(wanted, corpora)} Next: correct it."
        )
    return DEFAULT


def settings_of(settings: Settings, wanted: str | None = None) -> Settings:
    """Return the settings of a corpus, which `wanted` names (a URI: `default`; None: the setting `corpus`). Raises SettingsError."""
    name = name_of(settings, wanted or settings.corpus)
    entry = load_corpora(settings.corpora).get(name, Corpus(name))
    return changed_settings(settings, entry.overrides, f"{name!r} of {Path(settings.corpora).name}")


def source_of(settings: Settings, wanted: str | None = None) -> str:
    """Return where the documents of a corpus are: `wanted` as in `settings_of`. Raises SettingsError."""
    wanted = wanted or settings.corpus
    corpora, name = load_corpora(settings.corpora), name_of(settings, wanted)
    if wanted not in (*corpora, DEFAULT):
        return wanted
    # The setting is the source of `default`, unless it names a corpus itself.
    own = settings.corpus if name == DEFAULT and settings.corpus not in (*corpora, DEFAULT) else None
    source = corpora.get(name, Corpus(name)).source or own
    if source is None:
        raise SettingsError(
            f"expected a source of the corpus {name!r}, found none. Next: add `source` in {Path(settings.corpora).name}."
        )
    return source


def of_option(settings: Settings, given: Mapping[str, str], _inputs: Mapping[str, Manifest]) -> Settings:
    """Return the settings of the corpus that the command names: for the first stage of a sync."""
    return settings_of(settings, given.get("corpus"))


def of_listing(settings: Settings, _given: Mapping[str, str], inputs: Mapping[str, Manifest]) -> Settings:
    """Return the settings of the corpus that `list_documents` listed: for the later stages."""
    return settings_of(settings, inputs["list_documents"].facts["corpus"])
