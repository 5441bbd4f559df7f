"""The live release, loaded: what the assistant answers with, and the switch to the next one.

Reads the ledger every two seconds on a thread of its own, the base model and adapter (by digest), the
prompt text kept in the ledger, the row of the index version, its embedder (which is asked once), and the
reranker. The next release is loaded beside the
one that answers, sharing what both have in common, and takes its place in one assignment; requests that
began with the old one end with it. A release that does not load is logged, shown by `problem`, and tried
again after a growing pause, while the old one goes on answering. Writes only below the cache folder.
"""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.database import Connection
from tasks.errors import MillraceError, ReleaseError, ServiceUnavailable
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.release import ledger
from tasks.serving.connection import KeptConnection
from tasks.serving.language_model import LanguageModel, fetch_adapter, load_base
from tasks.serving.prompt import Prompt, parse_prompt
from tasks.serving.refusals import NoRelease
from tasks.settings import Settings
from tasks.storage import Storage

if TYPE_CHECKING:
    from tasks.knowledge.embedders import Embedder
    from tasks.knowledge.reranker import Reranker

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
LONGEST_PAUSE = 60.0


@dataclass(eq=False)
class Loaded:
    """A release in memory. `users` counts the requests that answer with it."""

    release: ledger.Release
    prompt: Prompt
    embedder: "Embedder"
    model: LanguageModel
    adapter: str | None
    reranker: "Reranker | None" = None
    users: int = field(default=0, compare=False)


class Releases:
    """Holds the loaded release and follows the ledger."""

    def __init__(self, settings: Settings, connection: KeptConnection, *, threads: int) -> None:
        self._settings, self._connection, self._threads = settings, connection, threads
        self._lock = threading.Lock()
        self._live: Loaded | None = None
        self._leaving: list[Loaded] = []
        self._problem: str | None = "the ledger has not been read yet"
        self._failed: tuple[int, int, float] | None = None  # release, failures, when to try again
        self._stop = threading.Event()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._thread = threading.Thread(target=self._follow, name="releases", daemon=True)

    @property
    def live(self) -> Loaded | None:
        """The loaded release, or None."""
        return self._live

    @property
    def problem(self) -> str | None:
        """Why the newest release of the ledger is not the loaded one, or None when it is."""
        return self._problem

    @contextmanager
    def use(self) -> Iterator[Loaded]:
        """Yield the live release and keep its parts until the block ends. Raises NoRelease."""
        with self._lock:
            loaded = self._live
            if loaded is None:
                raise NoRelease(
                    f"expected a loaded release, found none: {self._problem}. "
                    "Next: release a model (DAG promote_release); GET /readyz shows how far it is."
                )
            loaded.users += 1
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.users -= 1
            self._let_go()

    def start(self) -> None:
        """Begin to follow the ledger."""
        self._thread.start()

    def close(self) -> None:
        """Stop following the ledger, and let the model end what it is doing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._connection.close()
        if self._live is not None:
            self._live.model.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except ServiceUnavailable as error:
                self._problem = f"the ledger cannot be read: {error}"
            self._stop.wait(POLL_SECONDS)

    def poll(self) -> None:
        """Read the ledger once, and load the newest release when it is not the live one."""
        newest = self._connection.run(ledger.live)
        if newest is None:
            self._problem = "the ledger holds no release yet"
        elif self._live is not None and self._live.release.release == newest.release:
            self._problem, self._failed = None, None
        elif self._failed is None or self._failed[0] != newest.release or time.monotonic() >= self._failed[2]:
            self._switch(newest)

    def _switch(self, newest: ledger.Release) -> None:
        if self._live is None:
            self._problem = f"release {newest.release} is loading"
        started = time.monotonic()
        # On a thread of its own, so that whatever a library raises is looked at here and ends nothing.
        attempt = self._loader.submit(self._load, newest)
        error = attempt.exception()
        if error is not None:
            self._note_failure(newest, error)
            return
        before = self.put_live(attempt.result())
        log.info(
            "release=%d live after %.1f s, index version %d, before it: %s",
            newest.release,
            time.monotonic() - started,
            newest.index_version,
            before.release.release if before else "none",
        )

    def put_live(self, loaded: Loaded) -> Loaded | None:
        """Make `loaded` what the next request answers with; return what was so before."""
        with self._lock:
            before, self._live = self._live, loaded
            self._problem, self._failed = None, None
            if before is not None:
                self._leaving.append(before)
        self._let_go()
        return before

    def _note_failure(self, newest: ledger.Release, error: BaseException) -> None:
        failures = 1 + (self._failed[1] if self._failed and self._failed[0] == newest.release else 0)
        pause = min(LONGEST_PAUSE, POLL_SECONDS * 2**failures)
        self._failed = (newest.release, failures, time.monotonic() + pause)
        kept = f"release {self._live.release.release} goes on answering" if self._live else "nothing can answer"
        self._problem = f"release {newest.release} did not load ({type(error).__name__}: {error}); {kept}"
        expected = isinstance(error, MillraceError)
        log.error("%s; next try in %.0f s", self._problem, pause, exc_info=None if expected else error)

    def _load(self, release: ledger.Release) -> Loaded:
        prompt = parse_prompt(release.prompt, f"the prompt of release {release.release}")
        if prompt.sha256 != release.prompt_sha256:
            raise ReleaseError(
                f"expected a prompt with sha256 {release.prompt_sha256}, found {prompt.sha256}. Next: release again."
            )
        self._connection.run(lambda connection: _check_index(connection, release))
        embedder, reranker = self._embedder(release), self._reranker()
        storage, cache = Storage(self._settings.s3_endpoint_url), Path(self._settings.cache_dir)
        adapter = None
        if release.adapter_uri is not None and release.adapter_sha256 is not None:
            folder = fetch_adapter(storage, release.adapter_uri, release.adapter_sha256, cache)
            # Named by release, not by digest: a release that leaves may then drop its own without asking.
            adapter = f"release_{release.release}"
        model = self._base(release, cache)
        if adapter is not None:
            model.attach(adapter, folder)
        return Loaded(release, prompt, embedder, model, adapter, reranker)

    def _base(self, release: ledger.Release, cache: Path) -> LanguageModel:
        if self._live is not None:
            model = self._live.model
            if (model.reference, model.base_revision) == (release.base_model, release.base_revision):
                return model
        return load_base(
            release.base_model, release.base_revision, cache, self._settings.s3_endpoint_url, self._threads
        )

    def _embedder(self, release: ledger.Release) -> "Embedder":
        if self._live is not None and self._live.embedder.name == release.embedder:
            return self._live.embedder
        from tasks.knowledge.embedders import load_embedder

        embedder = load_embedder(self._settings, release.embedder)
        # An endpoint that refuses us is found out before anybody asks.
        embedder.encode(["Is anybody there?"], kind="query")
        return embedder

    def _reranker(self) -> "Reranker | None":
        """Return the cross-encoder of the corpus that is searched, its weights loaded; the settings name one, or none."""
        if self._live is not None:
            return self._live.reranker
        own = settings_of(self._settings, DEFAULT)
        if own.reranker is None:
            return None
        from tasks.knowledge.reranker import load_reranker

        reranker = load_reranker(own)
        reranker.load()
        return reranker

    def _let_go(self) -> None:
        """Drop the parts of releases that no request uses any more and the live one does not share."""
        with self._lock:
            gone = [loaded for loaded in self._leaving if loaded.users == 0]
            self._leaving = [loaded for loaded in self._leaving if loaded.users > 0]
            kept = [*self._leaving, *([self._live] if self._live else [])]
        for loaded in gone:
            if all(other.model is not loaded.model for other in kept):
                loaded.model.close()
            elif loaded.adapter is not None:
                loaded.model.detach(loaded.adapter)


def _check_index(connection: Connection, release: ledger.Release) -> None:
    row = connection.execute(
        "SELECT embedder, to_regclass(table_name) IS NOT NULL AS stands FROM index_versions WHERE version = %s",
        (release.index_version,),
    ).fetchone()
    if row is None or not row["stands"]:
        raise ReleaseError(
            f"expected index version {release.index_version} to be there, found none. Next: release a newer index."
        )
    if row["embedder"] != release.embedder:
        raise ReleaseError(
            f"expected index version {release.index_version} made by {release.embedder}, found {row['embedder']}. "
            "Next: release the index with the embedder it was made by."
        )
