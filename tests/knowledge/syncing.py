"""A small corpus in a folder, golden questions about it, and the stages of sync_knowledge over both, in this process."""

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from tasks.contracts import Manifest
from tasks.database import connect
from tasks.knowledge import index_tables
from tasks.registry import load_stage
from tasks.settings import Settings, load_settings, settings
from tasks.stage import run_stage

SENTENCE = "The {animal} sleeps by day and hunts {prey} by night; rule number {n} says that nobody may wake it. "
ANIMALS = {"owl": "mice", "fox": "rabbits", "bat": "moths", "cat": "birds", "wolf": "deer", "lynx": "hares"}


@functools.cache
def read(environment: tuple[tuple[str, str], ...]) -> Settings:
    """Return the settings of an environment; reading them anew for each of hundreds of stages takes seconds."""
    return load_settings(dict(environment))


@dataclass
class Sync:
    """A folder of documents, golden questions about them, and runs over both."""

    corpus: Path
    golden: Path
    environment: dict[str, str]
    changes: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str | bytes) -> None:
        (self.corpus / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def stage(self, name: str, run: str, part: str | None = None, **options: str) -> Manifest:
        values = {
            **self.environment,
            "MILLRACE_CORPUS": str(self.corpus),
            "MILLRACE_GOLDEN_QUESTIONS": str(self.golden),
        }
        return run_stage(load_stage(name), read(tuple((values | self.changes).items())), self.uri(run), part, options)

    def uri(self, run: str) -> str:
        return f"s3://{self.environment['MILLRACE_S3_BUCKET']}/runs/sync_knowledge/{self.corpus.parent.name}-{run}"

    def up_to(self, last: str, run: str) -> list[str]:
        """Run the stages of a sync up to `last`; return the parts of index_documents."""
        for part in self.stage("list_documents", run).facts["parts"]:
            self.stage("read_documents", run, part)
        parts: list[str] = self.stage("validate_documents", run).facts["parts"]
        for part in parts:
            self.stage("index_documents", run, part)
        if last == "check_index":
            self.stage("check_index", run)
        return parts

    def run(self, run: str) -> dict[str, Manifest]:
        """Run all stages up to a refusal; return their manifests (parts of index_documents as index_documents-PART)."""
        done = {"list_documents": self.stage("list_documents", run)}
        if done["list_documents"].status == "complete":
            for part in done["list_documents"].facts["parts"]:
                done[f"read_documents-{part}"] = self.stage("read_documents", run, part)
            done["validate_documents"] = self.stage("validate_documents", run)
        if done.get("validate_documents") and done["validate_documents"].status == "complete":
            for part in done["validate_documents"].facts["parts"]:
                done[f"index_documents-{part}"] = self.stage("index_documents", run, part)
            done["check_index"] = self.stage("check_index", run)
            if done["check_index"].status == "complete":
                done["switch_index"] = self.stage("switch_index", run)
        return done


@contextmanager
def environment_of(values: Mapping[str, str]) -> Iterator[None]:
    """Make these the only settings of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
            patch.delenv(name)
        for name, value in values.items():
            patch.setenv(name, value)
        settings.cache_clear()
        yield
    settings.cache_clear()


def document(animal: str, prey: str) -> str:
    paragraphs = [SENTENCE.format(animal=animal, prey=prey, n=n) * 4 for n in range(8)]
    return f"# The {animal}\n\n" + "\n\n".join(paragraphs)


def embedded(manifests: dict[str, Manifest]) -> int:
    return sum(m.counts["embedded"] for name, m in manifests.items() if name.startswith("index_documents"))


def rows_of(version: int) -> list[dict[str, Any]]:
    with connect() as connection:
        table = index_tables.get(connection, version).table
        query = sql.SQL("SELECT chunk_id, document_uri, ordinal, text, embedding::text FROM {} ORDER BY 2, 3").format(
            table
        )
        return list(connection.execute(query))


def current() -> int | None:
    with connect() as connection:
        version = index_tables.current(connection)
    return version.version if version else None
