"""The frozen evaluation sets that are answered: golden questions, safety probes, format probes.

Reads each source once (MILLRACE_GOLDEN_QUESTIONS of the corpus `default`, MILLRACE_PROBES), takes as many rows as the recipe
says (a sample by its seed, spread over topics), and writes the very rows as JSON lines: their digest is the set's. A set that
cannot be asked is left out with the reason. Fails with `DataError` when a source is missing or malformed.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.contracts import Artifact
from tasks.evaluation.measures import SetName
from tasks.evaluation.probes import FormatProbe, SafetyProbe, load_format, load_safety
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.knowledge.retrieval import GoldenQuestion, load_questions
from tasks.settings import Settings
from tasks.storage import Storage
from tasks.training.recipes import Evaluation

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit

NO_INDEX = "no index version of the corpus `default` serves yet"
NONE_ASKED = "the recipe asks for none"
Item = TypeVar("Item")
Row = GoldenQuestion | SafetyProbe | FormatProbe


@dataclass(frozen=True)
class Question:
    """One row of a set, with what every model is shown: `hits`, found in the index or made of a probe's context."""

    set: SetName
    id: str
    question: str
    topic: str
    row: Row
    corpus: str = ""
    hits: "Sequence[Hit]" = ()


@dataclass(frozen=True)
class Frozen:
    """The sets of one evaluation: their rows, the artifacts that hold them, and why others were left out."""

    questions: list[Question] = field(default_factory=list)
    outputs: dict[str, Artifact] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        """Take all sets back: nothing of them was measured."""
        self.left_out.update((name, reason) for name in self.digests())
        self.outputs.clear()

    def digests(self) -> dict[str, dict[str, Any]]:
        """Return digest and number of rows of each set, as the manifest tells them."""
        return {
            name.removeprefix("sets/"): {"sha256": artifact.sha256, "rows": artifact.rows}
            for name, artifact in self.outputs.items()
            if name.startswith("sets/")
        }


def choose(
    settings: Settings, storage: Storage, how: Evaluation, *, indexed: bool
) -> tuple[dict[SetName, list[Question]], dict[str, str]]:
    """Return the rows of the sets that `how` asks for, and why others are left out. Writes nothing. Raises DataError."""
    own = settings_of(settings, DEFAULT)
    sources: dict[SetName, Callable[[], list[Question]]] = {
        "golden": lambda: [_golden(row) for row in load_questions(own.golden_questions, storage)],
        "safety": lambda: [_safety(row) for row in load_safety(settings.probes, storage)],
        "format": lambda: [_format(row) for row in load_format(settings.probes, storage)],
    }
    chosen: dict[SetName, list[Question]] = {}
    left_out: dict[str, str] = {}
    for name, read in sources.items():
        count = how.asked[name]
        if count == 0 or (name == "golden" and not indexed):
            left_out[name] = NONE_ASKED if count == 0 else NO_INDEX
        else:
            chosen[name] = spread(read(), count, how.seed, id_of=lambda q: q.id, topic_of=lambda q: q.topic)
    return chosen, left_out


def freeze(settings: Settings, storage: Storage, folder: str, how: Evaluation, *, indexed: bool) -> Frozen:
    """Read the sets that `how` asks for, and write their rows below `folder`. Without an index, no golden questions.

    Raises DataError.
    """
    chosen, left_out = choose(settings, storage, how, indexed=indexed)
    frozen = Frozen(left_out=left_out)
    for name, questions in chosen.items():
        frozen.outputs[f"sets/{name}"] = storage.put_rows(f"{folder}/sets/{name}.jsonl", map(written, questions))
        frozen.questions.extend(questions)
    return frozen


def spread(
    rows: Sequence[Item], count: int | None, seed: int, *, id_of: Callable[[Item], str], topic_of: Callable[[Item], str]
) -> list[Item]:
    """Return `count` rows (None: all) in the order of their ids: one of each topic, then a second one, and so on.

    Which, is drawn by `seed` and the ids alone: a row that is added elsewhere in the file moves no other in its topic.
    """
    if count is None or count >= len(rows):
        return sorted(rows, key=id_of)

    def drawn(text: str) -> str:
        return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()

    topics: dict[str, list[Item]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: drawn(id_of(row))):
        topics[topic_of(row)].append(row)
    turns = [(place, drawn(topic), row) for topic, found in topics.items() for place, row in enumerate(found)]
    return sorted((row for _place, _topic, row in sorted(turns, key=lambda turn: turn[:2])[:count]), key=id_of)


def lengths(sizes: Mapping[str, int]) -> dict[str, str]:
    """Return by id whether a row is among the short, middle or long third; equal sizes go together."""
    ordered = sorted(sizes.values())
    first, second = (ordered[(len(ordered) - 1) * part // 3] for part in (1, 2)) if ordered else (0, 0)
    return {id: "short" if size <= first else "middle" if size <= second else "long" for id, size in sizes.items()}


def _golden(row: GoldenQuestion) -> Question:
    # Of several documents, the first by name: a question belongs to one topic.
    topic = min(row.documents).rsplit("/", 1)[-1]
    return Question("golden", row.id, row.question, topic, row, corpus=DEFAULT)


def _safety(row: SafetyProbe) -> Question:
    return Question("safety", row.id, row.question, row.kind, row, hits=_shown(row))


def _format(row: FormatProbe) -> Question:
    return Question("format", row.id, row.question, row.form.type, row, hits=_shown(row))


def _shown(row: SafetyProbe | FormatProbe) -> "list[Hit]":
    from tasks.knowledge.search import Hit

    if not row.context:
        return []
    return [Hit(chunk_id=row.id, document_uri=f"probe:{row.id}", title="Notes", text=row.context, ordinal=0, score=1.0)]


def written(question: Question) -> dict[str, Any]:
    """Return what is frozen of a row: all that it is asked with and judged by."""
    row = question.row
    if isinstance(row, GoldenQuestion):
        return {"id": row.id, "question": row.question, "answer": row.answer, "documents": sorted(row.documents)}
    return row.model_dump(mode="json")
