"""`python -m tasks tune-index`: which settings find the most for a corpus' golden questions.

Checks the whole command first. Reads the documents of the corpus from their source, once, as a sync would, but for those
that were erased. For each combination of chunker, size, overlap and embedder it builds an index version of its own beside
the others, asks the golden questions in each search mode and with each ef, prints a row of the table as soon as it is
known, adds a run to the MLflow experiment `tune_index`, and drops the version again. Vectors that the cache has are reused,
and what was embedded for one combination is not embedded again for another; at the end the new ones go. Nothing
that serves is touched. An error of one combination is its row; then the exit code is that of the first error. Fails with
`OptionError` or `SettingsError` for a wrong command, `Preempted` on SIGTERM, and otherwise with the errors of a sync.

    python -m tasks tune-index [--corpus NAME] [--chunkers A,B] [--sizes 128,200] [--overlaps 0] [--embedders REF,REF]
                               [--modes vector,hybrid] [--ef 40,80] [--documents N]
"""

import hashlib
import itertools
import json
import logging
import signal
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO

from tasks.database import connect
from tasks.errors import DataError, MillraceError, OptionError, Preempted, nearest
from tasks.knowledge import corpora, index_tables, quarantine, tuning
from tasks.knowledge.embedders import tokenizer_of
from tasks.knowledge.erasure import erased
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import DocumentRefused, Extractor
from tasks.knowledge.measure import Asking, asking
from tasks.knowledge.read_documents import BATCH_BYTES, BATCH_DOCUMENTS
from tasks.knowledge.retrieval import GoldenQuestion, load_questions, require_known
from tasks.knowledge.search import MODES, Mode
from tasks.knowledge.sources import Item, open_source
from tasks.knowledge.tune_trial import HEAD, Bench, Combination, Tried, best_first, bounded, track
from tasks.options import parse_options
from tasks.settings import MOST_EF, Settings, settings
from tasks.storage import Storage

log = logging.getLogger(__name__)
_OPTIONS = ("corpus", "chunkers", "sizes", "overlaps", "embedders", "modes", "ef", "documents")


@dataclass(frozen=True)
class Plan:
    """A command that was checked: what is tried, how each is asked, and on how many documents."""

    own: Settings
    corpus: str
    source: str
    combinations: list[Combination]
    ways: list[tuple[Mode, int]]
    documents: int | None


def main(arguments: list[str]) -> int:
    """Try the combinations that the command names; print a row for each, and at the end all, best recall@5 first."""
    plan = planned(arguments)
    storage = Storage(plan.own.s3_endpoint_url)
    questions = load_questions(plan.own.golden_questions, storage)
    usual = asking(plan.own)
    askings = [replace(usual, mode=mode, ef=ef) for mode, ef in plan.ways]
    with _stopped(), tuning.alone(), tempfile.TemporaryFile() as kept:
        wanted = {uri for question in questions for uri in question.documents}
        read = _read(plan, storage, kept, wanted)
        questions = _askable(plan, questions, read.asked_for)
        tried, code = _try_all(plan, askings, questions, kept, read.same_as)
    if len(tried) > 1:
        print("\nbest recall@5 first:", HEAD, *best_first(tried), sep="\n")
    return code


def planned(arguments: list[str]) -> Plan:
    """Return what a command asks for, all of it checked before anything is read or built. Raises OptionError, SettingsError."""
    given = parse_options(arguments)
    if unknown := sorted(set(given) - set(_OPTIONS)):
        raise OptionError(
            f"expected options of tune-index ({', '.join(_OPTIONS)}), found {unknown}. Next: correct them."
        )
    chosen = settings()
    own = corpora.settings_of(chosen, given.get("corpus"))
    combinations = [
        Combination(*values)
        for values in itertools.product(
            _words(given, "chunkers", own.chunker),
            _numbers(given, "sizes", own.chunk_tokens),
            _numbers(given, "overlaps", own.chunk_overlap),
            _words(given, "embedders", own.embedder),
        )
    ]
    ways = itertools.product(
        _modes(given, own.search_mode), _numbers(given, "ef", own.search_ef, least=1, most=MOST_EF)
    )
    documents = _numbers(given, "documents", 0, least=1) if "documents" in given else [None]
    if len(documents) > 1:
        raise OptionError(f"expected one number of --documents, found {given['documents']!r}. Next: choose one.")
    _require_chunkers(own, combinations)
    return Plan(
        own,
        corpora.name_of(chosen, given.get("corpus") or chosen.corpus),
        corpora.source_of(chosen, given.get("corpus")),
        combinations,
        list(ways),
        documents[0],
    )


def _words(given: dict[str, str], name: str, default: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in given.get(name, default).split(",") if word.strip()))
    if not words:
        raise OptionError(f"expected --{name} with values and commas, found {given.get(name)!r}. Next: correct it.")
    return words


def _numbers(given: dict[str, str], name: str, default: int, least: int = 0, most: int | None = None) -> list[int]:
    words = _words(given, name, str(default))
    if not all(word.isdecimal() and least <= int(word) <= (most or int(word)) for word in words):
        bounds = f"from {least}" + (f" to {most}" if most else "")
        raise OptionError(
            f"expected --{name} with numbers {bounds} and commas, found {given[name]!r}. Next: correct it."
        )
    return [int(word) for word in words]


def _modes(given: dict[str, str], default: Mode) -> list[Mode]:
    words = _words(given, "modes", default)
    for word in words:
        if word not in MODES:
            raise OptionError(
                f"expected --modes of {', '.join(MODES)}, found {word!r}.{nearest(word, MODES)} Next: correct it."
            )
    return [mode for mode in MODES if mode in words]


def _require_chunkers(own: Settings, combinations: Sequence[Combination]) -> None:
    """Make the chunker of each combination: none may turn out to be impossible after others were built. Raises SettingsError."""
    tokenizers = {}
    for one in combinations:
        if one.embedder not in tokenizers:
            tokenizers[one.embedder] = tokenizer_of(one.settings(own))
        one.cutter(own, *tokenizers[one.embedder])


@contextmanager
def _stopped() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into Preempted, after what was built is dropped; a second SIGTERM does not disturb that."""

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt  # no library takes it for an error of its own, as MLflow would any other

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Preempted("expected tune-index to end, found SIGTERM or Ctrl-C. Next: start it again.") from error
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Read:
    """What was read: documents that questions ask for (erased ones too, as a sync lists them), and copies left out."""

    asked_for: set[str] = field(default_factory=set)
    same_as: dict[str, str] = field(default_factory=dict)


def _read(plan: Plan, storage: Storage, kept: IO[bytes], wanted: Set[str]) -> _Read:
    """Write the documents that a sync would index to a scratch file, but that near copies of others are not looked for."""
    place, own, found = open_source(plan.source, storage), plan.own, _Read()
    first: dict[str, str] = {}
    with connect(vectors=False) as connection:
        gone, accepted = erased(connection, plan.corpus), quarantine.accepted(connection, plan.corpus)

    def listed() -> Iterator[Item]:
        for item in place.list():
            if item.uri not in gone:
                yield item
            else:
                found.asked_for.update({item.uri} & wanted)

    def bodies() -> Iterator[Body]:
        for item in itertools.islice(listed(), plan.documents):
            found.asked_for.update({item.uri} & wanted)
            try:
                body = place.read(item, int(own.max_document_mb * 1_000_000))
            except DocumentRefused as refused:
                log.info("passed over %s: %s", item.uri, refused)
                continue
            yield Body(item.uri, item.stamp, hashlib.sha256(body).hexdigest(), body)

    with Extractor(own.extraction_seconds, own.extraction_memory_gb) as extractor:
        for batch in bounded(bodies(), lambda body: len(body.body), BATCH_DOCUMENTS, BATCH_BYTES):
            for row in examine(batch, extractor, accepted, own).rows:
                stands = first.setdefault(row["text_sha256"], row["uri"])
                if stands == row["uri"]:
                    kept.write(json.dumps(row).encode() + b"\n")
                else:
                    found.same_as[row["uri"]] = stands
    return found


def _askable(plan: Plan, questions: list[GoldenQuestion], uris: set[str]) -> list[GoldenQuestion]:
    """Return the questions about documents that were read: of a whole corpus all, or it is an error. Raises DataError."""
    if plan.documents is None:
        require_known(questions, uris, plan.own.golden_questions)
        return questions
    found = [question for question in questions if question.documents <= uris]
    if not found:
        raise DataError(
            f"expected golden questions about the first {plan.documents} documents, found none of {len(questions)}. "
            "Next: raise --documents."
        )
    print(f"asking {len(found)} of {len(questions)} golden questions: those about the first {plan.documents} documents")
    return found


def _try_all(
    plan: Plan,
    askings: Sequence[Asking],
    questions: Sequence[GoldenQuestion],
    kept: IO[bytes],
    same_as: Mapping[str, str],
) -> tuple[list[Tried], int]:
    """Print a row for each combination and way to ask; return the trials, and the exit code of the first error."""
    tried: list[Tried] = []
    codes: list[int] = []
    run = f"tune/{uuid.uuid4().hex}"
    with connect(vectors=False) as connection:
        serving = index_tables.current(connection, plan.corpus)
    bench = Bench(
        plan.own, plan.corpus, askings, questions, kept, same_as, indexed_by=serving.embedder if serving else None
    )

    def tell(one: Tried) -> None:
        print(one, flush=True)
        tried.append(one)
        try:
            track(plan.own, run, one)
        except MillraceError as error:
            log.error("not in MLflow: %s", error)
            codes.append(error.exit_code)

    print(HEAD, flush=True)
    for combination in plan.combinations:
        try:
            bench.try_one(combination, tell)
        except MillraceError as error:
            print(f"{combination}  {type(error).__name__}: {error}", flush=True)
            codes.append(error.exit_code)
    return tried, codes[0] if codes else 0
