"""The live release: what the assistant answers with, the switch to the next one, and the way back.

Reads the ledger every two seconds on a thread of its own. The next release is loaded (`loading`) beside the one that answers,
and takes its place in one assignment; requests that began with the old one end with it. A release that does not load is logged,
shown by `problem`, and tried again after a growing pause, while the old one goes on answering. Where none answers yet, the newest
earlier release that loads answers meanwhile (`fallback`); so it does for a pause when the newest fails to generate. An earlier
release is taken only with its own index version; what the ledger says of a promotion or a rollback holds at once. Writes nothing.
"""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tasks.errors import MillraceError, ServiceUnavailable
from tasks.release import ledger
from tasks.serving.connection import KeptConnection
from tasks.serving.fallback import POLL_SECONDS, Setbacks
from tasks.serving.loading import Loaded, Loader
from tasks.serving.refusals import NoRelease
from tasks.settings import Settings

__all__ = ["Loaded", "Releases"]
log = logging.getLogger(__name__)

MOST_STEPS_BACK = 5


class Releases:
    """Holds the loaded release and follows the ledger."""

    def __init__(self, settings: Settings, connection: KeptConnection, *, threads: int) -> None:
        self._connection = connection
        self._loading = Loader(settings, connection, threads=threads)
        self.checks_signatures = self._loading.checks_signatures
        self._lock = threading.Lock()
        self._live: Loaded | None = None
        self._leaving: list[Loaded] = []
        self._newest: int | None = None
        self._problem: str | None = "the ledger has not been read yet"
        self._neither = ""  # what earlier releases failed with, that might have answered
        self._setbacks = Setbacks()
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

    @property
    def newest(self) -> int | None:
        """The newest release of the ledger, as it was last read."""
        return self._newest

    @property
    def fallback(self) -> bool:
        """Whether an earlier release answers because the newest does not load, or fails to generate."""
        live, against = self._live, self._setbacks.current
        return live is not None and against is not None and live.release.release != against.release

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

    def ended(self, loaded: Loaded, generation: "Future[Any]") -> None:
        """Note how a generation ended: several failures in a row are held against its release."""
        if not generation.cancelled():
            self._setbacks.ended(loaded.release.release, generation.exception())

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
        """Read the ledger once; load the newest release when it is not the live one, or step back from it when it fails."""
        newest = self._connection.run(ledger.live)
        self._newest = newest.release if newest else None
        if newest is None:
            self._problem = "the ledger holds no release yet"
        elif self._live is not None and self._live.release.release == newest.release:
            if doubt := self._setbacks.doubt(newest.release):
                self._rest(newest, doubt)
            else:
                self._problem = self._setbacks.complaint(newest.release)
        elif self._setbacks.due(newest.release):
            self._switch(newest)
        elif against := self._setbacks.current:
            self._problem = self._told(against.release, against.reason) + self._neither

    def _switch(self, newest: ledger.Release) -> None:
        if self._live is None:
            self._problem = f"release {newest.release} is loading"
        started = time.monotonic()
        found = self._attempt(newest)
        if isinstance(found, Loaded):
            before = self.put_live(found)
            log.info(
                "release=%d live after %.1f s, index version %d, before it: %s",
                newest.release,
                time.monotonic() - started,
                newest.index_version,
                before.release.release if before else "none",
            )
            return
        against = self._setbacks.not_loaded(newest.release, found)
        self._problem = self._told(newest.release, against.reason)
        expected = isinstance(found, MillraceError)
        log.error("%s; next try in %.0f s", self._problem, against.pause, exc_info=None if expected else found)
        if self._live is None:
            earlier, self._neither = self._earlier(newest, of_another_model=False)
            if earlier is not None:
                self._replace(earlier)
            self._problem = self._told(newest.release, against.reason) + self._neither
            log.warning("%s", self._problem)

    def _rest(self, newest: ledger.Release, doubt: str) -> None:
        """Answer with an earlier model for a while, where there is one."""
        earlier, self._neither = self._earlier(newest, of_another_model=True)
        if earlier is None:
            self._problem = (
                f"release {newest.release} {doubt}, and no earlier release with another model loads; it goes on"
            )
            self._setbacks.stay(newest.release, self._problem)
            log.error("%s", self._problem)
            return
        self._replace(earlier)
        against = self._setbacks.rest(newest.release, doubt)
        self._problem = self._told(newest.release, doubt)
        log.error("%s; it is tried again in %.0f s", self._problem, against.pause)

    def _told(self, release: int, reason: str) -> str:
        kept = f"release {self._live.release.release} answers meanwhile" if self._live else "nothing can answer"
        return f"release {release} {reason}; {kept}"

    def _attempt(self, release: ledger.Release) -> Loaded | BaseException:
        # On a thread of its own, so that whatever a library raises is looked at here and ends nothing.
        attempt = self._loader.submit(self._loading.load, release, self._live)
        error = attempt.exception()
        return attempt.result() if error is None else error

    def _earlier(self, newest: ledger.Release, *, of_another_model: bool) -> tuple[Loaded | None, str]:
        """Return the newest release before `newest` that loads (with its own index version), and what others failed with."""
        neither = ""
        candidate = self._before(newest)
        for _step in range(MOST_STEPS_BACK):
            if candidate is None or self._stop.is_set():
                break
            if not of_another_model or candidate.identity != newest.identity:
                found = self._attempt(candidate)
                if isinstance(found, Loaded):
                    return found, neither
                neither += f"; release {candidate.release} did not load either ({type(found).__name__}: {found})"
            candidate = self._before(candidate)
        return None, neither

    def _before(self, release: ledger.Release) -> ledger.Release | None:
        return self._connection.run(lambda connection: ledger.before(connection, release))

    def put_live(self, loaded: Loaded) -> Loaded | None:
        """Make `loaded`, the newest release, what the next request answers with; return what was so before."""
        self._setbacks.answers(loaded.release.release)
        self._problem, self._neither = None, ""
        return self._replace(loaded)

    def _replace(self, loaded: Loaded) -> Loaded | None:
        with self._lock:
            before, self._live = self._live, loaded
            if before is not None:
                self._leaving.append(before)
        self._let_go()
        return before

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
