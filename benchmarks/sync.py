"""What a sync costs when nothing, or little, changed; and the memory it takes for ten times as many chunks.

Each runs the stages of sync_knowledge as a launcher does, one process a stage and part, one after the other, each with all
cores, on a folder of real text (docstrings and documentation of the installed packages, cut to documents) with a stack of
its own. Seconds are those of the processes, from their start to their end: the interpreter and its imports are in them,
Airflow's own time is not (`orchestration` measures that). `sync_noop` and `sync_one_percent`, asked for together, share one
first sync.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.result import Result

DOCUMENTS = 10_000
NOOP, ONE_PERCENT, GROWTH = 0.02, 0.04, 0.10
_PIECES = 5  # of real text in a document
_FEW, _MANY = 10_000, 100_000  # chunks
_SMALL_CHUNK = 32  # tokens: so that 100,000 chunks are embedded in minutes
_STAGES = ("list_documents", "read_documents", "validate_documents", "index_documents", "check_index", "switch_index")
_PARTS_OF = {"read_documents": "list_documents", "index_documents": "validate_documents"}


@dataclass
class Cost:
    """What one sync took: seconds of the processes and the largest memory of each stage, and counts.

    `worked` are the seconds that the stages themselves tell, from their start to their manifest.
    """

    worked: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all processes."""
        return sum(self.seconds.values())

    def shown(self) -> str:
        """One line: seconds a stage."""
        return ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items())


@dataclass
class Corpus:
    """A folder of documents, a golden question, and syncs over both."""

    folder: Path
    environment: dict[str, str]
    runs: int = 0

    def sync(self) -> Cost:
        """Run all stages, each part of a stage as a process of its own."""
        self.runs += 1
        cost, references = Cost(), dict[str, dict[str, Any]]()
        for stage in _STAGES:
            planned = references[_PARTS_OF[stage]]["facts"]["parts"] if stage in _PARTS_OF else [None]
            for part in planned:
                begun = time.monotonic()
                reference, megabytes = self._stage(stage, part)
                references[stage] = reference
                cost.seconds[stage] = cost.seconds.get(stage, 0.0) + time.monotonic() - begun
                cost.worked += float(reference["seconds"])
                cost.megabytes[stage] = max(cost.megabytes.get(stage, 0.0), megabytes)
                for name in ("embedded", "from_cache", "chunks", "read", "good", "same"):
                    key = f"{stage}.{name}"
                    cost.counts[key] = cost.counts.get(key, 0) + reference["counts"].get(name, 0)
        return cost

    def texts(self) -> set[str]:
        """Return the digests of the texts that the current version has embedded."""
        with psycopg.connect(self.environment["MILLRACE_DATABASE_URL"]) as connection:
            row = connection.execute("SELECT table_name FROM index_versions WHERE status = 'current'").fetchone()
            assert row is not None
            query = sql.SQL("SELECT DISTINCT chunk_sha256 FROM {}").format(sql.Identifier(row[0]))
            return {found[0] for found in connection.execute(query)}

    def _stage(self, stage: str, part: str | None) -> tuple[dict[str, Any], float]:
        run = f"s3://{self.environment['MILLRACE_S3_BUCKET']}/runs/sync_knowledge/benchmark-{self.runs}"
        command = [sys.executable, "-m", "tasks", stage, "--run", run, *(["--part", part] if part else [])]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        out = process.stdout.read()
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{stage} ended with {process.returncode}")
        reference: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return reference, used.ru_maxrss / 1024


_kept = ExitStack()


@cache
def _first_sync() -> tuple[Corpus, Cost]:
    """Return a corpus of DOCUMENTS and what its first sync took; both stay until `close`."""
    corpus = _kept.enter_context(_corpus(DOCUMENTS))
    return corpus, corpus.sync()


def close() -> None:
    """Stop the stack of the shared corpus, if there is one."""
    _first_sync.cache_clear()
    _kept.close()


def sync_noop() -> Result:
    """A sync of 10,000 documents of which none changed: its time as a share of the first sync's."""
    corpus, first = _first_sync()
    noop = corpus.sync()
    share, embedded = noop.total / first.total, noop.counts.get("index_documents.embedded", 0)
    return Result(
        figure=f"{share:.2%} of the first sync, {embedded} chunks embedded",
        bound=f"{NOOP:.0%}, 0",
        holds=share <= NOOP and embedded == 0,
        details=_details(first, {"noop": noop}),
    )


def sync_one_percent() -> Result:
    """A sync in which 1 % of 10,000 documents changed by a sentence: its time as a share of the first sync's."""
    corpus, first = _first_sync()
    before = corpus.texts()
    changed = sorted(corpus.folder.glob("*.txt"))[::100]
    for number, path in enumerate(changed):
        path.write_text(
            f"{path.read_text(encoding='utf-8')}\n\nSince yesterday rule {number} holds here too.", encoding="utf-8"
        )
    second = corpus.sync()
    share = second.total / first.total
    embedded, wanted = second.counts["index_documents.embedded"], len(corpus.texts() - before)
    return Result(
        figure=f"{share:.2%} of the first sync, {embedded} chunks embedded, {wanted} have another text",
        bound=f"{ONE_PERCENT:.0%}, the same number",
        holds=share <= ONE_PERCENT and embedded == wanted > 0,
        details=[
            *_details(first, {"1 % changed": second}),
            f"{len(changed)} documents changed; they have {second.counts['index_documents.chunks']} chunks, of which "
            f"{second.counts['index_documents.from_cache']} came from the cache",
        ],
    )


def sync_memory() -> Result:
    """The largest memory of a stage's process in a first sync in one part: 100,000 chunks against 10,000."""
    peaks: dict[int, Cost] = {}
    for chunks in (_FEW, _MANY):
        # One part: what a process holds must not grow with what it has to do.
        extra = {"MILLRACE_CHUNK_TOKENS": str(_SMALL_CHUNK), "MILLRACE_MAX_SHARDS": "1"}
        with _corpus(chunks // 10, extra) as corpus:
            peaks[chunks] = corpus.sync()
    few, many = (max(peaks[chunks].megabytes.values()) for chunks in (_FEW, _MANY))
    growth = many / few - 1
    return Result(
        figure=f"{growth:+.1%} ({few:.0f} to {many:.0f} MB)",
        bound=f"{GROWTH:+.0%}",
        holds=growth <= GROWTH,
        details=[
            f"{cost.counts['index_documents.chunks']} chunks, MB a stage: "
            + ", ".join(f"{stage} {megabytes:.0f}" for stage, megabytes in cost.megabytes.items())
            for cost in peaks.values()
        ],
    )


def _details(first: Cost, others: dict[str, Cost]) -> list[str]:
    shown = {"first": first, **others}
    return [
        f"chunks of the first sync: {first.counts['index_documents.chunks']}, documents kept out: "
        f"{DOCUMENTS - first.counts['read_documents.good']}",
        *(f"{name}: {cost.total:.1f} s ({cost.shown()})" for name, cost in shown.items()),
        *(
            f"{name}, without the start of its processes: {cost.worked / first.worked:.2%}"
            for name, cost in others.items()
        ),
    ]


@contextmanager
def _corpus(documents: int, extra: dict[str, str] | None = None) -> Iterator[Corpus]:
    """Yield a folder of so many documents, with a stack of its own whose database is migrated."""
    from local.stack import EmbeddedStack

    with tempfile.TemporaryDirectory() as place:
        folder, golden = Path(place) / "corpus", Path(place) / "golden.jsonl"
        folder.mkdir()
        for number, text in enumerate(_texts(documents)):
            (folder / f"{number:06}.txt").write_text(text, encoding="utf-8")
        first = (folder / "000000.txt").read_text(encoding="utf-8")
        questions = [{"id": "0", "question": " ".join(first.split()[:30]), "documents": ["file:000000.txt"]}]
        golden.write_text("".join(json.dumps(question) + "\n" for question in questions))
        with EmbeddedStack(Path(place) / "stack", parts=("postgres", "s3"), ports="free") as stack:
            environment = {
                **os.environ, **stack.env, "MILLRACE_CORPUS": str(folder), "MILLRACE_GOLDEN_QUESTIONS": str(golden),
                "MILLRACE_MIN_RECALL_AT_5": "0", "MILLRACE_MIN_ANN_RECALL": "0",
                "MILLRACE_SHARD_DOCUMENTS": "1000", "MILLRACE_MAX_QUARANTINE_SHARE": "0.5",
                "MILLRACE_CODE_REVISION": "benchmark", **(extra or {}),
            }  # fmt: skip
            subprocess.run(
                [sys.executable, "-m", "tasks", "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL
            )
            yield Corpus(folder, environment)


def _texts(count: int) -> Iterator[str]:
    """Yield so many different documents of five pieces of real text, about 1,100 characters."""
    from benchmarks.real_chunks import pieces

    texts = (row["text"] for row in pieces())
    for number in range(count):
        document = list(itertools.islice(texts, _PIECES))
        if len(document) < _PIECES:
            raise RuntimeError(f"expected text for {count} documents on this machine, found {number}")
        yield f"Document {number}\n\n" + "\n\n".join(document)
