"""Training examples from the documents of the corpus, from their structure alone: nothing is invented.

Reads documents through the sources and rules of `sync_knowledge` (what may not be indexed is not learned
either). A heading, or a definition (`name(...)` with an indented text below), is the question; the first
paragraphs under it are the answer. For method pretrain a row is a piece of a document, cut where a reader would
pause. Documents come in the order of their digests, and no more are read than the recipe has room for. Writes
nothing. Fails with `CorpusError` when the corpus cannot be read.
"""

import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from tasks.contracts import digest
from tasks.knowledge import chunking
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import MARKDOWN_HEADING, UNDERLINED_HEADING, Extractor
from tasks.knowledge.sources import DocumentRefused, Item, Source, open_source
from tasks.storage import Storage
from tasks.training.examples import Candidate, pair, rank
from tasks.training.overlap import nearest_earlier
from tasks.training.recipes import Recipe

MAKER = "structure/1"
_BATCH = 32  # documents that are checked at once
_LARGEST = 50_000_000  # bytes of a document
_LARGEST = 50_000_000  # bytes of a document
_ANSWER = 600  # characters; whole paragraphs up to here
_LONGEST = 1500
_DEFINITION = re.compile(r"^(?P<title>[A-Za-z_][\w.]{2,})\([^\n]*\)[^\n]*\n(?:[ \t]*\n)?(?=[ \t]+\S)", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_LAID_OUT = re.compile(r"^(?:[ \t]|[-*+|] |```|\d+\. )", re.MULTILINE)  # code, tables, lists: their lines stay
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")
# A piece of this kind is at most a token of any tokenizer in use, as a rule less: what is cut by it fits.
_TOKEN = re.compile(r"\w{1,4}|[^\w\s]")

_HEADINGS = ("What does the documentation say about {name}?", "Explain {name}.", "What should one know about {name}?")
_DEFINITIONS = ("What does `{name}` do?", "What is `{name}` for?", "Explain `{name}`.")


@dataclass(frozen=True)
class Document:
    """A document that may be learned from."""

    uri: str
    title: str
    text: str
    text_sha256: str


@dataclass(frozen=True)
class Section:
    """A heading or definition, and where its text stands in the document."""

    heading: str
    definition: bool
    start: int
    end: int


def from_corpus(
    corpus: str, storage: Storage, recipe: Recipe, erased: Collection[str] = ()
) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates of a corpus, without near copies, and counts of what was looked at. Raises CorpusError.

    `erased` are documents that must not be learned from (tasks.knowledge.erasure).
    """
    data, counts = recipe.data, Counter({"corpus_documents": 0, "corpus_documents_rejected": 0, "corpus_copies": 0})
    wanted = data.train_rows + data.validation_rows + data.held_out_rows
    found: list[Candidate] = []
    for documents, rejected in _documents(open_source(corpus, storage), erased):
        counts.update({"corpus_documents": len(documents), "corpus_documents_rejected": rejected})
        for document in documents:
            made = list(texts(document, data.max_tokens) if recipe.method == "pretrain" else pairs(document))
            found += sorted(made, key=lambda candidate: rank(candidate.id))[: data.rows_per_source]
        if len(found) >= 1.2 * wanted + 2 * data.rows_per_source:  # the surplus is for copies
            break
    copies = nearest_earlier([_said(candidate) for candidate in found])
    counts["corpus_copies"] = len(copies)
    return [candidate for place, candidate in enumerate(found) if place not in copies], dict(counts)


def pairs(document: Document) -> Iterator[Candidate]:
    """Yield a question and an answer for every section of a document that has something under its heading."""
    for number, section in enumerate(sections(document)):
        answer = lead(document.text[section.start : section.end])
        if answer is None:
            continue
        provenance = _provenance(document, section.start, section.end) | {"section": section.heading}
        name = f"corpus:{document.uri}#{number}"
        yield pair(name, question(document, section), answer, document.uri, "corpus", provenance)


def texts(document: Document, max_tokens: int) -> Iterator[Candidate]:
    """Yield a document in pieces that fit `max_tokens` of a tokenizer nobody has loaded here: sooner shorter than longer."""
    spans = [match.span() for match in _TOKEN.finditer(document.text)]
    for number, (start, end) in enumerate(chunking.cut(document.text, spans, max(1, max_tokens - 1))):
        yield Candidate(
            id=f"corpus:{document.uri}#{number}",
            source=document.uri,
            origin="corpus",
            text=document.text[start:end],
            provenance=_provenance(document, start, end),
        )


def sections(document: Document) -> list[Section]:
    """Return the sections of a document, in order; without any heading the whole is one, under its title."""
    marks = sorted(
        (match.start(), match.end(), match["title"].strip(), pattern is _DEFINITION)
        for pattern in (MARKDOWN_HEADING, UNDERLINED_HEADING, _DEFINITION)
        for match in pattern.finditer(document.text)
    )
    if not marks:
        return [Section(document.title, False, 0, len(document.text))]
    ends = [mark[0] for mark in marks[1:]] + [len(document.text)]
    return [
        Section(heading, definition, start, end)
        for (_begin, start, heading, definition), end in zip(marks, ends, strict=True)
        if start <= end
    ]


def question(document: Document, section: Section) -> str:
    """Return one of several wordings, chosen by the place, so that it never changes."""
    wordings = _DEFINITIONS if section.definition else _HEADINGS
    name = section.heading if section.definition else f'"{section.heading}"'
    if not section.definition and section.heading != document.title:
        name += f' in "{document.title}"'
    chosen = int(digest([document.uri, section.heading])[:8], 16) % len(wordings)
    return wordings[chosen].format(name=name)


def lead(body: str) -> str | None:
    """Return the first paragraphs of a section as they stand, lines of prose joined; None when there is no prose.

    A paragraph that ends with a colon takes the next one along. What is indented before the first prose (a grammar, an
    example) is passed over.
    """
    paragraphs = [part.strip("\n") for part in _PARAGRAPH.split(textwrap.dedent(body.strip("\n"))) if part.strip()]
    while paragraphs and paragraphs[0].startswith((" ", "\t", "```", "|", ">")):
        paragraphs.pop(0)
    kept: list[str] = []
    for paragraph in paragraphs:
        size = sum(len(part) for part in kept)
        hanging = bool(kept) and kept[-1].endswith((":", ","))
        if kept and not hanging and size + len(paragraph) > _ANSWER:
            break
        kept.append(paragraph if _LAID_OUT.search(paragraph) else " ".join(paragraph.split()))
    answer = "\n\n".join(kept)
    if len(answer) > _LONGEST:
        answer = _sentences(answer)
    return answer or None


def _sentences(text: str) -> str:
    """Return the whole sentences at the start of a text that fit."""
    kept = ""
    for sentence in _SENTENCE.split(text):
        if len(kept) + len(sentence) + 1 > _LONGEST:
            break
        kept = f"{kept} {sentence}" if kept else sentence
    return kept


def _documents(source: Source, erased: Collection[str]) -> Iterator[tuple[list[Document], int]]:
    """Yield the documents that may be learned from, a batch at a time, and how many of the batch may not."""
    items = iter(sorted((item for item in source.list() if item.uri not in erased), key=lambda item: rank(item.uri)))
    with Extractor() as extractor:
        while batch := list(islice(items, _BATCH)):
            bodies = [body for item in batch if (body := _fetched(source, item)) is not None]
            rows = examine(bodies, extractor).rows
            yield (
                [Document(row["uri"], row["title"], row["text"], row["text_sha256"]) for row in rows],
                len(batch) - len(rows),
            )


def _fetched(source: Source, item: Item) -> Body | None:
    """Return the bytes of a document; None for one that a sync would put into quarantine."""
    try:
        body = source.read(item, _LARGEST)
    except DocumentRefused:
        return None
    return Body(item.uri, item.stamp, hashlib.sha256(body).hexdigest(), body)


def _provenance(document: Document, start: int, end: int) -> dict[str, str | int]:
    return {
        "document": document.uri,
        "text_sha256": document.text_sha256,
        "start": start,
        "end": end,
        "made_by": MAKER,
    }


def _said(candidate: Candidate) -> str:
    return candidate.text if candidate.messages is None else candidate.messages[-1].content  # type: ignore[return-value]
