"""`python -m tasks choose-min-score`: from which best score on a question is answered, and below which it is not.

Asks an index version the golden questions (it can answer those) and the questions of a file that it mostly cannot, as the
assistant asks, and prints the threshold at which at most a given share of the golden questions would get "I do not know", with
the share of the others that would. By default the others are those of the demo after its shift, but for the families that stay
with the language. Reads the corpus' golden questions, the file, and the version's table; writes nothing: the threshold takes
effect as MILLRACE_ASSISTANT_MIN_SCORE. Fails with `OptionError`, and with `DataError` for a file that cannot be used or a
version that is not there.

    python -m tasks choose-min-score [--unanswerable FILE] [--corpus NAME] [--version N] [--refused 0.05]
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.database import Connection, connect
from tasks.errors import DataError, OptionError
from tasks.knowledge import corpora, index_tables
from tasks.knowledge.embedders import load_embedder
from tasks.knowledge.index_tables import Version
from tasks.knowledge.measure import Asking, asking
from tasks.knowledge.retrieval import load_questions
from tasks.knowledge.search import search
from tasks.options import parse_options
from tasks.serving.prompt import load_prompt
from tasks.serving.replay import read_questions
from tasks.settings import Settings, repository_path, settings
from tasks.storage import Storage

USAGE = "python -m tasks choose-min-score [--unanswerable FILE] [--corpus NAME] [--version N] [--refused 0.05]"
AFTER = "examples/requests_after.jsonl"
STAY = "stay-"  # its families that the demo's corpus does answer
REFUSED = 0.05
_OPTIONS = ("unanswerable", "corpus", "version", "refused")
_DIGITS = 4


@dataclass(frozen=True)
class Choice:
    """A threshold, and the shares of both kinds of questions whose best score is below it."""

    threshold: float
    golden_refused: float
    others_refused: float


def main(arguments: list[str]) -> int:
    """Print the threshold; return the exit code."""
    given = parse_options(arguments)
    wrong = [f"--{name}" for name in given if name not in _OPTIONS]
    wrong += [f"--version {given['version']}"] if not given.get("version", "1").isdecimal() else []
    share = _share(given.get("refused", str(REFUSED)))
    if wrong or share is None:
        found = ", ".join(wrong) or f"--refused {given['refused']}"
        raise OptionError(f"expected the options of choose-min-score, found {found}. Next: {USAGE}")
    chosen = settings()
    corpus = corpora.name_of(chosen, given.get("corpus") or chosen.corpus)
    own = corpora.settings_of(chosen, given.get("corpus"))
    golden = [one.question for one in load_questions(own.golden_questions, Storage(own.s3_endpoint_url))]
    place = given.get("unanswerable", AFTER)
    others = unanswerable(place)
    with connect() as connection:
        version = index_tables.get(connection, int(given["version"]) if "version" in given else None, corpus)
        known, unknown = (best_scores(connection, own, version, questions) for questions in (golden, others))
    print(shown(version, own.golden_questions, known, place, unknown, share))
    return 0


def unanswerable(place: str) -> list[str]:
    """Return the questions of a file; of the demo's, those that its corpus does not answer. Raises DataError."""
    path = repository_path(place)
    questions = read_questions(path, 0)
    if path != repository_path(AFTER):
        return questions
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row["question"] for row in rows if not row["family"].startswith(STAY)]


def best_scores(connection: Connection, own: Settings, version: Version, questions: Sequence[str]) -> list[float]:
    """Return the best score of each question among as many hits as the prompt shows. Raises DataError."""
    asked: Asking = asking(own)
    documents = load_prompt(repository_path(own.prompt)).front.documents
    vectors = load_embedder(own, version.embedder).encode(questions, "query")
    scores = []
    for question, vector in zip(questions, vectors, strict=True):
        hits = search(
            connection,
            version.version,
            vector,
            documents,
            text=question,
            mode=asked.mode,
            ef=asked.ef,
            reranker=asked.reranker,
        )
        # A question without a hit, as words may have none, is one that is not answered at any threshold.
        scores.append(max((hit.score for hit in hits), default=-1.0))
    if not any(score > -1 for score in scores):
        raise DataError(
            f"expected index version {version.version} to find anything, found nothing. Next: choose another."
        )
    return scores


def choose(golden: Sequence[float], others: Sequence[float], refused: float) -> Choice:
    """Return the highest threshold below which at most a share `refused` of the golden questions stays."""
    ranked = sorted(golden)
    highest = ranked[min(int(refused * len(ranked)), len(ranked) - 1)]
    threshold = math.floor(highest * 10**_DIGITS) / 10**_DIGITS
    below = [sum(score < threshold for score in scores) / len(scores) for scores in (ranked, others)]
    return Choice(threshold, *below)


def shown(
    version: Version, golden: str, known: Sequence[float], place: str, unknown: Sequence[float], share: float
) -> str:
    """Return what a person reads; the last line is the setting."""
    lines = [
        f"index version {version.version} of {version.corpus}, {version.embedder}",
        f"{len(known)} golden questions of {golden}, median of their best scores {_median(known):.3f}",
        f"{len(unknown)} questions of {place}, median of their best scores {_median(unknown):.3f}",
        "threshold  golden questions refused  others refused",
    ]
    for one in sorted({0.0, 0.01, 0.02, 0.1, share}):
        found = choose(known, unknown, one)
        mark = "  <- at most as asked for" if one == share else ""
        lines.append(f"{found.threshold:9.4f}  {found.golden_refused:24.1%}  {found.others_refused:14.1%}{mark}")
    return "\n".join([*lines, f"MILLRACE_ASSISTANT_MIN_SCORE={choose(known, unknown, share).threshold:.4f}"])


def _median(scores: Sequence[float]) -> float:
    return sorted(scores)[len(scores) // 2]


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share < 1 else None
