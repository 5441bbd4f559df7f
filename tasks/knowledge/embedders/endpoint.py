"""`openai:MODEL`: a model behind an OpenAI-compatible endpoint.

Reads `MILLRACE_EMBEDDER_URL` (which ends before /embeddings), `_KEY` and `_TOKENIZER`; writes nothing. Texts go in batches,
some at once; 429, 5xx, time-outs and lost connections are tried again, after as long as the endpoint asks for. Texts
longer than the model takes are cut by its tokenizer and counted. Vectors are normalised. Fails with `ModelError` when the
endpoint refuses or answers something else, with `ServiceUnavailable` when it does not answer several times, with
`SettingsError` without address or tokenizer. The key is in no message: what an endpoint says about it is masked.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx

from tasks.errors import ModelError, ServiceUnavailable, SettingsError
from tasks.knowledge.embedders.folder import Kind, load_tokenizer, max_tokens
from tasks.knowledge.embedders.identity import OPENAI, EmbedderSpec, endpoint_digest, folder_of
from tasks.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tasks.knowledge.embedders.base import Vectors

BATCH_TEXTS, BATCH_TOKENS = 128, 65536  # OpenAI takes 2,048 texts and 300,000 tokens; a smaller server less
_AT_ONCE, _TRIES, _LONGEST_WAIT, _TIMEOUT = 4, 6, 60.0, 120.0
_DIMENSIONS: dict[str, int] = {}  # by identity: asked once a process


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

    @property
    def dimensions(self) -> int:
        """Length of a vector; the endpoint is asked once a process."""
        if self.name not in _DIMENSIONS:
            _DIMENSIONS[self.name] = int(self._ask_alone(["dimensions"]).shape[1])
        return _DIMENSIONS[self.name]

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> "Vectors":
        """Return one vector a text, in order: float32, shape (texts, dimensions), normalised."""
        import numpy

        vectors = numpy.empty((len(texts), self.dimensions), dtype=numpy.float32)
        for positions, part in self.encode_batches(texts, kind):
            vectors[positions] = part
        return vectors

    def encode_batches(self, texts: Sequence[str], kind: Kind = "document") -> "Iterator[tuple[list[int], Vectors]]":
        """Yield (positions, their vectors) batch by batch. An endpoint has no prompts: `kind` changes nothing."""
        if not texts:
            return
        fitting, batches = self._batches(texts)
        with self._client() as http:
            workers = ThreadPoolExecutor(_AT_ONCE)
            try:
                parts = workers.map(lambda batch: self._asked(http, [fitting[place] for place in batch]), batches)
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

    def _ask_alone(self, texts: Sequence[str]) -> "Vectors":
        with self._client() as http:
            return self._asked(http, texts)

    def _client(self) -> httpx.Client:
        return httpx.Client(headers={"Authorization": f"Bearer {self._key}"} if self._key else {}, timeout=_TIMEOUT)

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

    def _asked(self, http: httpx.Client, texts: Sequence[str]) -> "Vectors":
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        told, pause = "nothing", 0.0
        for attempt in range(_TRIES):
            if attempt:
                self._wait(pause or min(_LONGEST_WAIT, 2.0**attempt) * (0.5 + random.random() / 2))
            try:
                response = http.post(self._url, json=body)
            except httpx.TransportError as error:
                told, pause = type(error).__name__, 0.0
                continue
            if response.status_code == 429 or response.status_code >= 500:
                told, pause = f"status {response.status_code}", _retry_after(response)
                continue
            return self._vectors(response, len(texts))
        raise ServiceUnavailable(
            f"expected the embedder {self._model} to answer at MILLRACE_EMBEDDER_URL, found {told} {_TRIES} times. "
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
    if not settings.embedder_tokenizer:
        raise SettingsError(
            "expected MILLRACE_EMBEDDER_TOKENIZER for an openai: embedder (chunks are measured in its tokens), found none. "
            "Next: name a folder with its tokenizer.json and config.json, as package:..., hub:ORG/NAME@COMMIT or s3://..."
        )
    folder = folder_of(settings, settings.embedder_tokenizer, weights=False)
    return load_tokenizer(folder), max_tokens(folder)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that an endpoint asks to wait, 0 where it says nothing we understand."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", ""))))
    except ValueError:
        return 0.0
