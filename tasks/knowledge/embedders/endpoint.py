"""`openai:MODEL`: a model behind an OpenAI-compatible endpoint.

Reads `MILLRACE_EMBEDDER_URL` (which ends before /embeddings), `_KEY` and `_TOKENIZER`; writes nothing. Texts go in batches,
some at once; a batch that the endpoint finds too large goes in halves. 429, 5xx, time-outs and lost connections are tried
again, after as long as the endpoint asks for; for a single question, for which somebody waits, once and soon. Texts longer
than the model takes are cut by its tokenizer and counted. Vectors are normalised. Fails with `ModelError` when the endpoint
refuses or answers something else, with `ServiceUnavailable` when it does not answer several times, with `SettingsError`
without address or tokenizer. The key is in no message: what an endpoint says about it is masked.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tasks.contracts import digest
from tasks.errors import ModelError, ServiceUnavailable, SettingsError
from tasks.knowledge.embedders.folder import Kind, load_tokenizer, max_tokens, tokenizer_sha256
from tasks.knowledge.embedders.identity import OPENAI, EmbedderSpec, endpoint_digest, folder_of
from tasks.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tasks.knowledge.embedders.base import Vectors

log = logging.getLogger(__name__)
BATCH_TEXTS, BATCH_TOKENS = 128, 65536  # OpenAI takes 2,048 texts and 300,000 tokens; a smaller server less
_AT_ONCE = 4
_PERHAPS_TOO_LARGE = (400, 413, 422)  # what servers say to a batch over their limit
_DIMENSIONS: dict[str, int] = {}  # by identity: asked once a process


@dataclass(frozen=True)
class Patience:
    """How long an endpoint is waited for; times in seconds."""

    tries: int
    timeout: float
    longest_pause: float


BULK, QUESTION = Patience(6, 120.0, 60.0), Patience(2, 10.0, 1.0)


class EndpointEmbedder:
    """One model behind one endpoint."""

    def __init__(self, settings: Settings, spec: EmbedderSpec, wait: Callable[[float], None] = time.sleep) -> None:
        if spec.digest != endpoint_digest(settings):
            raise ModelError(
                f"expected the embedder {spec.name}, found another endpoint in MILLRACE_EMBEDDER_URL. "
                "Next: set it to the former one, or run sync_knowledge so that the index is made with the new one."
            )
        key = settings.embedder_key
        self.name, self.truncated = spec.name, 0
        self.tokenizer, self.max_tokens = tokenizer_of_endpoint(settings)
        self._model, self._wait = spec.reference.removeprefix(OPENAI), wait
        self._url = f"{str(settings.embedder_url).rstrip('/')}/embeddings"
        self._key = key.get_secret_value() if key else ""
        self._most = BATCH_TEXTS  # that the endpoint takes at once, as far as is known

    @property
    def dimensions(self) -> int:
        """Length of a vector; the endpoint is asked once a process."""
        if self.name not in _DIMENSIONS:
            with self._client() as http:
                _DIMENSIONS[self.name] = int(self._asked(http, ["dimensions"], BULK).shape[1])
        return _DIMENSIONS[self.name]

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> "Vectors":
        """Return one vector a text, in order: float32, shape (texts, dimensions), normalised."""
        import numpy

        # One question: somebody waits for its answer. What is measured comes through `encode_batches`.
        parts = list(self._parts(texts, QUESTION if kind == "query" and len(texts) == 1 else BULK))
        length = parts[0][1].shape[1] if parts else self.dimensions
        vectors = numpy.empty((len(texts), length), dtype=numpy.float32)
        for positions, part in parts:
            vectors[positions] = part
        return vectors

    def encode_batches(self, texts: Sequence[str], kind: Kind = "document") -> "Iterator[tuple[list[int], Vectors]]":
        """Yield (positions, their vectors) batch by batch. An endpoint has no prompts: vectors do not depend on `kind`."""
        yield from self._parts(texts, BULK)

    def _parts(self, texts: Sequence[str], patience: Patience) -> "Iterator[tuple[list[int], Vectors]]":
        if not texts:
            return
        fitting, batches = self._batches(texts)
        with self._client() as http:
            workers = ThreadPoolExecutor(_AT_ONCE)
            try:
                parts = workers.map(
                    lambda batch: self._asked(http, [fitting[place] for place in batch], patience), batches
                )
                for batch, part in zip(batches, parts, strict=True):
                    length = _DIMENSIONS.setdefault(self.name, part.shape[1])
                    if part.shape[1] != length:
                        raise ModelError(
                            f"expected vectors of length {length} from {self._model}, found {part.shape[1]}. "
                            "Next: check what serves MILLRACE_EMBEDDER_URL."
                        )
                    yield batch, part
            finally:
                workers.shutdown(cancel_futures=True)

    def _client(self) -> httpx.Client:
        return httpx.Client(headers={"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _batches(self, texts: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """Return the texts as long as the model takes them, and their positions in batches."""
        fitting: list[str] = []
        batches: list[list[int]] = []
        tokens = BATCH_TOKENS
        for place, text in enumerate(texts):
            encoded = self.tokenizer.encode(text)
            special = int(self.tokenizer.num_special_tokens_to_add(False))
            count = min(len(encoded.ids), self.max_tokens)
            if len(encoded.ids) > self.max_tokens:
                self.truncated += 1
                plain = self.tokenizer.encode(text, add_special_tokens=False)
                text = text[: plain.offsets[self.max_tokens - special - 1][1]]
            if tokens + count > BATCH_TOKENS or len(batches[-1]) == BATCH_TEXTS:
                batches.append([])
                tokens = 0
            batches[-1].append(place)
            tokens += count
            fitting.append(text or " ")  # the API takes no empty text
        return fitting, batches

    def _asked(self, http: httpx.Client, texts: Sequence[str], patience: Patience) -> "Vectors":
        """Return the vectors of a batch: in halves, down to single texts, where the endpoint may find it too large."""
        import numpy

        tried = len(texts) <= self._most
        if tried:
            response = self._answer(http, texts, patience)
            if response.status_code not in _PERHAPS_TOO_LARGE or len(texts) == 1:
                return self._vectors(response, len(texts))
            log.info("the endpoint refuses %d texts (%d): trying half of them", len(texts), response.status_code)
        half = -(-len(texts) // 2)
        first = self._asked(http, texts[:half], patience)
        if tried:  # and half was taken: what is wrong with one text is no limit
            self._most = min(self._most, half)
        return numpy.concatenate([first, self._asked(http, texts[half:], patience)])

    def _answer(self, http: httpx.Client, texts: Sequence[str], patience: Patience) -> httpx.Response:
        """Return the endpoint's answer, good or not, once it has one. Raises ServiceUnavailable."""
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        told, pause = "nothing", 0.0
        for attempt in range(patience.tries):
            if attempt:
                pause = pause or 2.0**attempt * (0.5 + random.random() / 2)
                self._wait(min(patience.longest_pause, pause))
            try:
                response = http.post(self._url, json=body, timeout=patience.timeout)
            except httpx.TransportError as error:
                told, pause = type(error).__name__, 0.0
                continue
            if response.status_code == 429 or response.status_code >= 500:
                told, pause = f"status {response.status_code}", _retry_after(response)
                continue
            return response
        raise ServiceUnavailable(
            f"expected the embedder {self._model} to answer at MILLRACE_EMBEDDER_URL, found {told} {patience.tries} times. "
            "Next: try again later; what was embedded is kept."
        )

    def _vectors(self, response: httpx.Response, count: int) -> "Vectors":
        import numpy

        if response.status_code != 200:
            said = " ".join(response.text.split())
            said = (said.replace(self._key, "***") if self._key else said)[:200]
            raise ModelError(
                f"expected the endpoint to embed with {self._model!r}, found status {response.status_code}: {said}. "
                "Next: check MILLRACE_EMBEDDER, MILLRACE_EMBEDDER_URL (it ends before /embeddings) and _KEY."
            )
        try:
            rows = sorted(response.json()["data"], key=lambda row: int(row["index"]))
            found = numpy.array([row["embedding"] for row in rows], dtype=numpy.float32)
            lengths = numpy.linalg.norm(found, axis=1, keepdims=True)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"expected an OpenAI-compatible reply of embeddings, found another ({type(error).__name__}). "
                "Next: correct MILLRACE_EMBEDDER_URL."
            ) from error
        if len(found) != count or not numpy.isfinite(found).all() or not (lengths > 0).all():
            raise ModelError(
                f"expected {count} vectors of finite numbers that are not all zero, found {len(found)} or other ones. "
                "Next: check what serves MILLRACE_EMBEDDER_URL."
            )
        vectors: Vectors = found / lengths
        return vectors


def tokenizer_of_endpoint(settings: Settings) -> "tuple[Tokenizer, int]":
    """Return the tokenizer that the settings name for an endpoint, and its largest input. Raises SettingsError."""
    folder = _tokenizer_folder(settings)
    return load_tokenizer(folder), max_tokens(folder)


def _tokenizer_folder(settings: Settings) -> Path:
    if not settings.embedder_tokenizer:
        raise SettingsError(
            "expected MILLRACE_EMBEDDER_TOKENIZER for an openai: embedder (chunks are measured in its tokens), found none. "
            "Next: name a folder with its tokenizer.json and config.json, as package:..., hub:ORG/NAME@COMMIT or s3://..."
        )
    return folder_of(settings, settings.embedder_tokenizer, weights=False)


def digest_of_tokenizer(settings: Settings) -> str:
    """Return what pins the tokenizer that the settings name for an endpoint, and its largest input. Raises SettingsError."""
    folder = _tokenizer_folder(settings)
    return digest([tokenizer_sha256(folder), max_tokens(folder)])


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that an endpoint asks to wait, 0 where it says nothing we understand."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return 0.0
