"""Vectors by text: from the table `embedding_cache` where they are, else from the embedder, which fills it.

Reads and writes `embedding_cache`. `EmbeddingCache` serves a stream: call it with some thousand texts at a time; it keeps
none of them, and its model is loaded once, and only when a vector is missing, so that unchanged work costs no model. What
was embedded is stored every few batches: a run that is killed goes on where it was. Fails with `ModelError` when a vector is
missing and the embedder of that name cannot be loaded, with `ServiceUnavailable` when Postgres or an endpoint is away.

Questions have keys of their own where the embedder puts a prompt before them: the same text as a document has another vector.
Vectors of scratch work (`tune-index`) are stored apart, under SCRATCH and the embedder's name: they go with that work, and
serve nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.database import connect
from tasks.errors import ModelError, ServiceUnavailable
from tasks.knowledge.embedders import Embedder, Kind, load_embedder, prompts
from tasks.settings import Settings

if TYPE_CHECKING:
    import numpy

    Vector = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

SCRATCH = "scratch "  # no embedder's identity begins with it
_ROWS_A_STORE = 512
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Vectors:
    """Vectors by the SHA-256 of their text, and where they came from; equal texts count once."""

    by_sha256: "dict[str, Vector]"
    embedded: int
    from_cache: int
    truncated: int  # of those embedded now


@dataclass
class EmbeddingCache:
    """The vectors of one embedder. `embedded`, `from_cache` and `truncated` count all calls together.

    With `scratch` it also finds scratch vectors, and stores what it embeds as such.
    """

    settings: Settings
    embedder: str
    threads: int | None = None
    reference: str | None = None
    scratch: bool = False
    embedded: int = 0
    from_cache: int = 0
    truncated: int = 0
    _model: Embedder | None = field(default=None, repr=False)

    def vectors(
        self, texts: Iterable[str], kind: Kind = "document", progress: Progress = lambda _done, _total: None
    ) -> Vectors:
        """Return a vector for every text; equal texts are embedded once."""
        wanted = {text_sha256(text): text for text in texts}
        keys = self._keys(wanted, kind)
        found = self._stored(keys)
        missing = [sha256 for sha256 in wanted if sha256 not in found]
        from_cache, truncated = len(found), 0
        self.from_cache += from_cache
        if missing:
            before = self.model.truncated
            for part in self._embedded([wanted[sha256] for sha256 in missing], kind):
                fresh = {missing[position]: vector for position, vector in part}
                self._store({keys[sha256]: vector for sha256, vector in fresh.items()})
                found |= fresh
                self.embedded += len(fresh)
                progress(len(found) - from_cache, len(missing))
            truncated = self.model.truncated - before
        self.truncated += truncated
        return Vectors(found, len(missing), from_cache, truncated)

    @property
    def model(self) -> Embedder:
        """The loaded embedder."""
        if self._model is None:
            self._model = load_embedder(self.settings, self.embedder, self.threads, self.reference)
        return self._model

    def _keys(self, wanted: Mapping[str, str], kind: Kind) -> dict[str, str]:
        """Return the key in the table by the SHA-256 of the text: the same, but for questions with a prompt.

        An embedder that is gone is not needed for what is stored: its prompts are asked for only when the table does
        not tell, and when they cannot be had, texts that all have a vector are taken as those of a model without any.
        """
        plain = {sha256: sha256 for sha256 in wanted}
        if kind == "document" or not wanted:
            return plain
        own = {sha256: text_sha256(f"{kind}\n{text}") for sha256, text in wanted.items()}
        if self._all_stored(own):
            return own
        try:
            put_before = prompts(self.settings, self.embedder, self.reference)
        except (ModelError, ServiceUnavailable):
            if self._all_stored(plain):
                return plain
            raise
        return plain if put_before["query"] == put_before["document"] else own

    def _stored(self, keys: Mapping[str, str]) -> "dict[str, Vector]":
        """Return the vectors that are in the table, by the SHA-256 of their text."""
        if not keys:
            return {}
        texts = {key: sha256 for sha256, key in keys.items()}
        with connect() as connection, connection.cursor(binary=True) as cursor:
            cursor.execute(
                "SELECT chunk_sha256, embedding FROM embedding_cache WHERE embedder = ANY(%s) AND chunk_sha256 = ANY(%s)",
                (self._names(), list(texts)),
            )
            return {texts[row["chunk_sha256"]]: _array(row["embedding"]) for row in cursor}

    def _all_stored(self, keys: Mapping[str, str]) -> bool:
        with connect(vectors=False) as connection:
            row = connection.execute(
                "SELECT count(DISTINCT chunk_sha256) AS n FROM embedding_cache WHERE embedder = ANY(%s) AND chunk_sha256 = ANY(%s)",
                (self._names(), list(keys.values())),
            ).fetchone()
        return row is not None and int(row["n"]) == len(set(keys.values()))

    def _names(self) -> list[str]:
        """Return the names under which vectors of this embedder are looked for."""
        return [self.embedder, SCRATCH + self.embedder] if self.scratch else [self.embedder]

    def _embedded(self, texts: Sequence[str], kind: Kind) -> "Iterator[list[tuple[int, Vector]]]":
        """Yield (position, vector) in lists as long as one store takes."""
        ready: list[tuple[int, Vector]] = []
        for positions, part in self.model.encode_batches(texts, kind):
            ready += zip(positions, part, strict=True)
            if len(ready) >= _ROWS_A_STORE:
                yield ready
                ready = []
        if ready:
            yield ready

    def _store(self, fresh: "Mapping[str, Vector]") -> None:
        # In the order of their keys: two shards with texts in common would otherwise wait for each other for ever.
        name = SCRATCH + self.embedder if self.scratch else self.embedder
        with connect() as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO embedding_cache (chunk_sha256, embedder, embedding) VALUES (%s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                [(key, name, vector) for key, vector in sorted(fresh.items(), key=lambda item: item[0])],
            )


def text_sha256(text: str) -> str:
    """Return the key of a text in the cache."""
    return hashlib.sha256(text.encode()).hexdigest()


def vectors(
    settings: Settings,
    embedder: str,
    texts: Iterable[str],
    progress: Progress = lambda _done, _total: None,
    threads: int | None = None,
    kind: Kind = "document",
    reference: str | None = None,
) -> Vectors:
    """Return a vector for every text, in one call: for questions, and for what is not a stream."""
    return EmbeddingCache(settings, embedder, threads, reference).vectors(texts, kind, progress)


def _array(value: Any) -> "Vector":
    """Return a stored vector as a float32 array, whatever the adapter gives."""
    import numpy

    return numpy.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value, dtype=numpy.float32)
