"""Checkpoints on their way to S3 while the ranks train on.

Reads the folders `checkpoint-N` that the ranks finished, one after another in a thread of the stage (not of a
rank: no step waits for it), and removes each from the local disk after it is safe, with all that are older. An
upload that fails is told in the log; the next checkpoint is tried anew. `finish` waits for what is under
way and raises what stopped the newest, for a preempted training lives on by nothing else.
"""

import logging
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tasks.errors import MillraceError, ServiceUnavailable

log = logging.getLogger(__name__)
_FOLDER = re.compile(r"^checkpoint-(\d+)$")


class Uploads:
    """One upload at a time; `save(step, folder)` does it."""

    def __init__(self, folder: Path, save: Callable[[int, Path], None]) -> None:
        self._folder, self._save = folder, save
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self._newest: Future[None] | None = None

    def add(self, step: int) -> None:
        """Begin the upload of the checkpoint of `step` as soon as earlier ones are through."""
        self._newest = self._thread.submit(self._upload, step)

    def finish(self) -> None:
        """Wait for all uploads. Raises what stopped the newest one."""
        self._thread.shutdown(wait=True)
        if self._newest is not None:
            self._newest.result()

    def abandon(self) -> None:
        """Begin no further upload."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _upload(self, step: int) -> None:
        try:
            self._save(step, self._folder / f"checkpoint-{step}")
        except ServiceUnavailable as error:
            log.warning("the checkpoint of step %d is not in S3; the training goes on: %s", step, error)
            raise
        except MillraceError as error:
            log.error("the checkpoint of step %d is not whole in S3; the training goes on: %s", step, error)
            raise
        finally:
            self._remove_up_to(step)

    def _remove_up_to(self, step: int) -> None:
        for path in self._folder.iterdir():
            if (match := _FOLDER.match(path.name)) and int(match[1]) <= step:
                shutil.rmtree(path)
