"""A candidate answers a share of the chats beside the live model; its answers are recorded, and nobody gets them.

MILLRACE_SHADOW_MODEL_VERSION names a registered version. Its adapter comes from where the registry says, proven by the digest
that the registry holds, and is attached to the live base model, which must be the one that it was trained on. After a client
has its answer, the candidate gets the very same prompt tokens, when nobody asks: live requests that come meanwhile end its
generation at the next token, and at most two chats wait for it, others are counted as `busy`. Reads MLflow's registry and S3;
writes table `shadow_answers`, whose answers went through `redact`. What cannot be done is counted, logged and told by
`problem`; nothing here fails a request, and none waits for more than the step of the model that is being computed.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from tasks.errors import MillraceError, ServiceUnavailable
from tasks.serving.adapters import adapters_folder, fetch_adapter
from tasks.serving.candidate import Candidate, registered, require_same_base
from tasks.serving.connection import KeptConnection
from tasks.serving.grounding import grounded
from tasks.serving.language_model import Generated, LanguageModel
from tasks.serving.releases import Loaded, Releases
from tasks.serving.request_log import RequestRow
from tasks.serving.shadow_rows import ShadowRow, insert
from tasks.serving.spans import Steps
from tasks.serving.telling import Listener
from tasks.serving.trace_log import sampled
from tasks.settings import Settings
from tasks.storage import Storage

log = logging.getLogger(__name__)

RESULTS = ("answered", "interrupted", "failed", "busy", "unusable", "lost")
PLACES = 2
IDLE_SECONDS, PATIENCE = 0.1, 30.0  # how long nobody asked before it begins; how long it waits for that
CLOSE_SECONDS = 5.0
PAUSE = 60.0  # before a registry that was away, or lacked the version, is asked again
INTERRUPTED = "Interrupted"


def as_it_is(text: str) -> str:
    """Return the text: what `redact` does where nothing is redacted."""
    return text


class Shadow:
    """The candidate and its one thread; without a version there is neither."""

    def __init__(
        self,
        releases: Releases,
        find: Callable[[], Candidate] | None = None,
        fetch: Callable[[Candidate], Path] | None = None,
        write: Callable[[ShadowRow], None] | None = None,
        *,
        share: float = 0.0,
        redact: Callable[[str], str] = as_it_is,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._releases, self._find, self._fetch, self._write = releases, find, fetch, write
        self._share, self._redact = share if find and fetch and write else 0.0, redact
        self._close = close
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(RESULTS, 0)
        self._asking, self._last_asked, self._waiting = 0, 0.0, 0
        self._listener: Listener | None = None
        self._candidate: Candidate | None = None
        self._attached: weakref.ref[LanguageModel] | None = None  # weak: a base model that left must not stay for us
        self._again = 0.0
        self._stop = threading.Event()
        self._problem: str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shadow")

    @classmethod
    def of(cls, settings: Settings, releases: Releases, redact: Callable[[str], str] = as_it_is) -> "Shadow":
        """Return the one that the settings ask for."""
        version = settings.shadow_model_version
        if version is None:
            return cls.off(releases)

        connection = KeptConnection(settings.database_url.get_secret_value())

        def fetch(candidate: Candidate) -> Path:
            storage = Storage(settings.s3_endpoint_url)
            return fetch_adapter(storage, candidate.adapter_uri, candidate.adapter_sha256, adapters_folder(settings))

        return cls(
            releases,
            lambda: registered(settings, settings.model_name, version),
            fetch,
            lambda row: connection.run(lambda opened: insert(opened, row)),
            share=settings.shadow_share,
            redact=redact,
            close=connection.close,
        )

    @classmethod
    def off(cls, releases: Releases) -> "Shadow":
        """Return one that answers nothing."""
        return cls(releases)

    @property
    def problem(self) -> str | None:
        """Why the candidate does not answer, as far as is known."""
        return self._problem

    def counts(self) -> dict[str, int]:
        """Return what became of the sampled chats so far."""
        with self._lock:
            return dict(self._counts)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Say that a live chat is served until the block ends: a shadow's generation ends, and none begins."""
        with self._lock:
            self._asking += 1
            if self._listener is not None:
                self._listener.leave()
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                self._last_asked = time.monotonic()

    def offer(self, row: RequestRow, steps: Steps, question: str) -> None:
        """Take an answered chat when it is sampled; never waits. `question` is as it was asked, `row` as it is kept."""
        if self._share <= 0 or self._stop.is_set() or not sampled(row.id.hex, self._share):
            return
        if steps.generated is None or steps.built is None or not steps.built.token_ids:
            return  # the live model did not answer it either
        with self._lock:
            if self._waiting >= PLACES:
                self._counts["busy"] += 1
                return
            self._waiting += 1
        self._thread.submit(self._answer, row, steps, question).add_done_callback(self._ended)

    def close(self) -> None:
        """End the generation at hand, and stop."""
        self._stop.set()
        with self._lock:
            if self._listener is not None:
                self._listener.leave()
        self._thread.shutdown(wait=False, cancel_futures=True)
        # What it waits for (S3, a registry, a model) is waited for a little: the request log is closed after it.
        ended = threading.Thread(target=lambda: self._thread.shutdown(wait=True), daemon=True)
        ended.start()
        ended.join(timeout=CLOSE_SECONDS)
        if self._close is not None and not ended.is_alive():
            self._close()

    def _ended(self, done: "Future[str]") -> None:
        """Count what became of a chat; what nobody expected is logged here, and ends nothing."""
        error = None if done.cancelled() else done.exception()
        result = "busy" if done.cancelled() else "unusable" if error else done.result()
        if error is not None:
            expected = isinstance(error, MillraceError)
            if str(error) != self._problem or not expected:
                log.error("the shadow does not answer: %s", error, exc_info=None if expected else error)
            self._problem = str(error)
        with self._lock:
            self._waiting -= 1
            self._counts[result] += 1

    def _answer(self, row: RequestRow, steps: Steps, question: str) -> str:
        """Answer a chat as the candidate, and record it; return what became of it. Raises what makes it unusable."""
        candidate = self._known()
        live, built = steps.generated, steps.built
        assert live is not None and built is not None and steps.sampling is not None  # it was answered
        if not self._wait_for_rest():
            return "busy"
        with self._releases.use() as loaded:
            if loaded.release != steps.release:
                return "busy"  # another release took its place meanwhile
            adapter = self._attach(candidate, loaded)
            listener = self._begin() if adapter else None
            if listener is None:
                return "busy"
            try:
                generation = loaded.model.generate(adapter, built.token_ids, steps.sampling, listener)
                error = generation.exception()
            finally:
                with self._lock:
                    self._listener = None
        self._problem = None
        made = ShadowRow(
            request_id=row.id, model_name=candidate.model_name, model_version=candidate.model_version,
            adapter_sha256=candidate.adapter_sha256, release=loaded.release.release, prompt_tokens=len(built.token_ids),
            live_ms=live.seconds * 1000, live_finish_reason=live.finish_reason,
        )  # fmt: skip
        sources = [question, *(hit.text for hit in built.shown)]
        most = steps.sampling.max_tokens
        said = self._said(generation.result(), sources, listener, most) if error is None else {}
        failed = None if error is None else INTERRUPTED if listener.gone else type(error).__name__
        return self._keep(ShadowRow(**asdict(made) | {"error": failed} | said))

    def _said(self, generated: Generated, sources: list[str], listener: Listener, most: int) -> dict[str, Any]:
        """Return the columns of what was generated; a text that was cut short for a live request is no answer."""
        cut = listener.gone and generated.finish_reason == "length" and generated.completion_tokens < most
        return {
            "answer": None if cut else self._redact(generated.text).replace("\x00", "\ufffd"),
            "finish_reason": None if cut else generated.finish_reason,
            "completion_tokens": generated.completion_tokens,
            "latency_ms": generated.seconds * 1000,
            "grounded": None if cut else grounded(generated.text, sources),
            "error": INTERRUPTED if cut else None,
        }

    def _keep(self, row: ShadowRow) -> str:
        assert self._write is not None  # the share is 0 without it
        try:
            self._write(row)
        except (ServiceUnavailable, psycopg.Error) as error:
            log.warning("request=%s the shadow's answer is lost: %s", row.request_id, error)
            return "lost"
        return "answered" if row.error is None else "interrupted" if row.error == INTERRUPTED else "failed"

    def _known(self) -> Candidate:
        """Return what the registry says, asked once; a failure is not repeated before a pause. Raises MillraceError."""
        if self._candidate is None:
            if time.monotonic() < self._again:
                raise ServiceUnavailable(self._problem or "the registry was away")
            self._again = time.monotonic() + PAUSE
            assert self._find is not None  # the share is 0 without it
            self._candidate = self._find()
            self._problem = None
        return self._candidate

    def _wait_for_rest(self) -> bool:
        """Wait until nobody has asked for a moment; return whether that came."""
        until = time.monotonic() + PATIENCE
        while not self._stop.is_set() and time.monotonic() < until:
            with self._lock:
                if self._asking == 0 and time.monotonic() - self._last_asked >= IDLE_SECONDS:
                    return True
            self._stop.wait(IDLE_SECONDS / 4)
        return False

    def _begin(self) -> Listener | None:
        """Return the listener that live requests end, or None where one has just come."""
        with self._lock:
            if self._asking or self._stop.is_set():
                return None
            self._listener = Listener()
            return self._listener

    def _attach(self, candidate: Candidate, loaded: Loaded) -> str | None:
        """Return the name of the candidate's adapter on the live base model, None where somebody asks. Raises ReleaseError."""
        require_same_base(candidate, loaded)
        name = f"shadow_{candidate.model_version}"
        if self._attached is None or self._attached() is not loaded.model:
            if time.monotonic() < self._again and self._problem is not None:
                raise ServiceUnavailable(self._problem)
            self._again = time.monotonic() + PAUSE
            assert self._fetch is not None  # the share is 0 without it
            folder = self._fetch(candidate)
            with self._lock:
                asked = self._asking > 0
            if asked:  # the model is not held up by an adapter that nobody waits for
                self._again = 0.0
                return None
            loaded.model.attach(name, folder)
            self._attached = weakref.ref(loaded.model)
            log.info("shadow: version %s answers beside release %d", candidate.model_version, loaded.release.release)
        return name
