"""A base model and its adapters on a model server (vLLM, or one that answers as it does), proven to be the release's.

Reads tokenizer and configuration of the base model, not its weights: prompts are made here and sent as token ids. The base is
served under a name that holds its revision (`served_base`; what starts the server gives it, from the bytes that it serves) or
that MILLRACE_GENERATION_MODEL says. An adapter is loaded from a folder that server and assistant share, whose digest was just
proven, under a name that holds that digest; it counts as loaded when the server lists it with that folder and that base.
A server that was restarted has lost its adapters: they are loaded again when it says that it does not know one.

Several generations run at once; each ends its HTTP request when its listener is gone, which ends the server's work.
Fails with `ReleaseError` when the server serves something else, `ServiceUnavailable` when it is away while a release is loaded;
at a generation with `GenerationAway`, `GenerationBroke`, `Busy` or `TooLate`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tasks import models
from tasks.errors import BadInput, ReleaseError, ServiceUnavailable, SettingsError
from tasks.serving.adapters import folder_digest
from tasks.serving.base_files import digests, require_signed
from tasks.serving.language_model import Generated, Sampling, ends_of, load_tokenizer, window_of
from tasks.serving.model_server import BadAnswer, BadStatus, Card, ModelServer
from tasks.serving.refusals import Busy, GenerationAway, GenerationBroke, TooLate
from tasks.serving.telling import Listener
from tasks.serving.upstream_text import Text
from tasks.settings import Settings
from tasks.storage import Storage

log = logging.getLogger(__name__)
T = TypeVar("T")

WATCH_SECONDS = 0.05  # between two looks at whether a listener is still there
_GATEWAY = {502, 503, 504}
_UNKNOWN, _FULL = 404, 429


def served_base(base_revision: str) -> str:
    """Return the name under which a base model is to be served."""
    return f"millrace-base-{base_revision[:16]}"


class UpstreamModel:
    """A base model on a server. Its methods may be called from any thread; HTTP is done on a thread of its own."""

    def __init__(self, reference: str, base_revision: str, folder: Path, server: ModelServer, served: str) -> None:
        from transformers import AutoConfig, GenerationConfig

        self.reference, self.base_revision = reference, base_revision
        self.files: Mapping[str, str] = digests(folder)
        self.tokenizer: Any = load_tokenizer(reference, folder)
        self._server, self._base = server, served
        self._adapters: dict[str, tuple[str, Path]] = {}  # by the name in this process: the name there, and the files
        self._changes = asyncio.Lock()
        self._at_work: set[asyncio.Task[Any]] = set()
        self._closed = False
        has_ends = (folder / "generation_config.json").is_file()
        self._ends = ends_of(GenerationConfig.from_pretrained(folder) if has_ends else None, self.tokenizer)
        window = window_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), self.tokenizer)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="upstream", daemon=True).start()
        try:
            card = self._begin(self._proven_base()).result()
        except BaseException:
            self.close()
            raise
        self.window = min(window, card.max_model_len or window)

    def attach(self, name: str, folder: Path) -> None:
        """Have the adapter in `folder` loaded there, unless it is; prove that it is."""
        self._adapters[name] = (f"millrace-{folder_digest(folder)[:16]}", folder.resolve())
        try:
            self._begin(self._proven_adapter(*self._adapters[name])).result()
        except BaseException:
            del self._adapters[name]
            raise

    def detach(self, name: str) -> None:
        """Have an adapter dropped that no release here uses any more. Returns at once."""
        served, _folder = self._adapters.pop(name, ("", None))
        if served:
            self._begin(self._drop(served))

    def generate(
        self, adapter: str | None, token_ids: Sequence[int], sampling: Sampling, listener: Listener | None = None
    ) -> "Future[Generated]":
        """Begin a generation; see `LanguageModel`."""
        return self._begin(self._generate(adapter, list(token_ids), sampling, listener or Listener()))

    def close(self) -> None:
        """End the thread once what is at work has ended."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop)

    def _begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start work on the loop; `close` waits for it."""
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # it runs as one
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return await work

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _shut(self) -> None:
        while self._at_work:
            await asyncio.wait(self._at_work)
        await asyncio.sleep(0)  # whoever waited for them is told
        await self._server.close()
        self._loop.stop()

    async def _proven_base(self) -> Card:
        return _base_of(await self._listing(), self._base)

    async def _listing(self) -> dict[str, Card]:
        try:
            return await self._server.models()
        except (httpx.HTTPError, BadStatus, BadAnswer) as error:
            raise _not_there(error) from error

    async def _proven_adapter(self, served: str, folder: Path) -> None:
        """Load an adapter unless it is loaded, and prove by the server's own list that it is the one."""
        async with self._changes:
            cards, refused = await self._listing(), None
            _base_of(cards, self._base)
            if served not in cards:
                try:
                    await self._server.load(served, str(folder))
                except BadStatus as error:
                    refused = error  # perhaps because another assistant was first: the list tells
                except (httpx.HTTPError, BadAnswer) as error:
                    raise _not_there(error) from error
                cards = await self._listing()
        card = cards.get(served)
        if card is None:
            raise ReleaseError(
                f"expected the model server to load the adapter {served}, found {refused or 'it missing from its list'}. "
                "Next: see its log; it needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, a --max-lora-rank of at "
                "least the adapter's, and the folder MILLRACE_GENERATION_ADAPTERS at the same path."
            )
        if card.parent != self._base or card.root not in {None, str(folder)}:
            raise ReleaseError(
                f"expected {served} to be an adapter of {self._base} from the folder of this release, found one of "
                f"{card.parent} from another place. Next: restart the model server; let nobody else load adapters into it."
            )

    async def _drop(self, served: str) -> None:
        async with self._changes:
            if any(served == other for other, _folder in self._adapters.values()):
                return
            try:
                await self._server.unload(served)
            except (httpx.HTTPError, BadStatus, BadAnswer) as error:
                log.warning("the adapter %s was not dropped by the model server: %s", served, error or type(error))

    async def _generate(self, adapter: str | None, ids: list[int], sampling: Sampling, listener: Listener) -> Generated:
        if listener.gone:
            raise _too_late()
        started, text = time.monotonic(), Text(self.tokenizer, sampling.stop, listener)
        work = asyncio.ensure_future(self._answer(adapter, self._asked(adapter, ids, sampling), text))
        while not work.done():
            await asyncio.wait({work}, timeout=WATCH_SECONDS)
            if listener.gone:
                work.cancel()
        if not work.cancelled():
            work.result()
        elif not text.begun:
            raise _too_late()
        return text.generated(len(ids), time.monotonic() - started)

    def _asked(self, adapter: str | None, ids: list[int], sampling: Sampling) -> dict[str, Any]:
        """Return the body of a request. All is said: a server fills in what is not from the model's generation_config."""
        body = {
            "model": self._base if adapter is None else self._adapters[adapter][0],
            "prompt": ids,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop": list(sampling.stop),
            "stop_token_ids": self._ends,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        return body if sampling.seed is None else body | {"seed": sampling.seed}

    async def _answer(self, adapter: str | None, body: dict[str, Any], text: Text) -> None:
        try:
            try:
                await self._read(body, text)
            except BadStatus as error:
                if error.status != _UNKNOWN or adapter is None:
                    raise
                log.warning("the model server does not know %s (any more): it is loaded again", body["model"])
                await self._proven_adapter(*self._adapters[adapter])
                await self._read(body, text)
        except (httpx.HTTPError, BadStatus, BadAnswer, BadInput, ServiceUnavailable) as error:
            log.error("a generation failed: %s: %s", type(error).__name__, error)
            raise _failure(error, text.begun) from error

    async def _read(self, body: dict[str, Any], text: Text) -> None:
        async with aclosing(self._server.completion(body)) as events:  # type: ignore[type-var]
            async for event in events:
                text.put(event)
                if text.stopped:
                    return
        if text.finish_reason is None:
            raise BadAnswer("a stream that ended without a reason")


def _base_of(cards: dict[str, Card], served: str) -> Card:
    card = cards.get(served)
    if card is None or card.parent is not None:
        found = ", ".join(sorted(each.id for each in cards.values() if each.parent is None)) or "none"
        raise ReleaseError(
            f"expected the model server to serve the base model {served}, found {found}. "
            "Next: start it with this release's base model and --served-model-name, or set MILLRACE_GENERATION_MODEL."
        )
    return card


def _not_there(error: Exception) -> ServiceUnavailable:
    found = str(error) if isinstance(error, BadStatus | BadAnswer) else type(error).__name__
    return ServiceUnavailable(
        f"expected the model server of MILLRACE_GENERATION_URL to answer, found {found}. "
        "Next: start it, or correct MILLRACE_GENERATION_URL and _KEY; it is tried again by itself."
    )


def _failure(error: Exception, begun: bool) -> GenerationAway | GenerationBroke | Busy:
    if isinstance(error, BadStatus) and error.status == _FULL:
        return Busy("expected the model's server to take the request, found it full. Next: retry after a second.")
    # What it refuses (a key, a field) says nothing against the model, or a caller could choose what is held against it.
    refused = isinstance(error, BadStatus) and (
        error.status in _GATEWAY or (error.status < 500 and error.status != _UNKNOWN)
    )
    if refused or isinstance(error, ServiceUnavailable) or (isinstance(error, httpx.HTTPError) and not begun):
        return GenerationAway(
            "expected the model to answer, found it away. Next: try again; the assistant's log says why."
        )
    return GenerationBroke(
        "expected the model to write an answer, found that it failed. Next: try again; the assistant's log says why."
    )


def _too_late() -> TooLate:
    return TooLate("expected the model to be free in time, found others before this request. Next: try again.")


def connect_base(
    reference: str, base_revision: str, settings: Settings, files: Mapping[str, str] | None = None
) -> UpstreamModel:
    """Return the base model of a release on the server of the settings. Raises ReleaseError when it serves another.

    `files`, where they are known, are the digests of the model's files: configuration and tokenizer are read here.
    """
    if settings.generation_url is None:
        raise SettingsError("expected MILLRACE_GENERATION_URL, found none. Next: set it.")
    key = settings.generation_key.get_secret_value() if settings.generation_key else None
    server = ModelServer(settings.generation_url, key)
    storage = Storage(settings.s3_endpoint_url)
    folder = models.fetch_tokenizer(reference, Path(settings.cache_dir), storage)
    if files is not None:
        require_signed(reference, folder, files)
    served = settings.generation_model or served_base(base_revision)
    return UpstreamModel(reference, base_revision, folder, server, served)
