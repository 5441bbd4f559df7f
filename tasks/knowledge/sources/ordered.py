"""Items in the byte order of their URIs, whatever their number, with memory for one run of them.

AWS lists in this order; other servers of S3 do not (SeaweedFS lists folder by folder). Writes temporary files when there are
more items than one run holds, and removes them.
"""

import heapq
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from operator import attrgetter
from typing import IO

from tasks.knowledge.sources.base import Item

RUN = 50_000
_URI = attrgetter("uri")  # code points sort as bytes of UTF-8 do


def in_order(items: Iterator[Item], run: int = RUN) -> Iterator[Item]:
    """Yield items sorted by URI."""
    with ExitStack() as stack:
        files: list[IO[str]] = []
        while part := sorted(islice(items, run), key=_URI):
            if len(part) < run and not files:
                yield from part
                return
            file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            file.writelines(json.dumps([item.uri, item.stamp, item.bytes]) + "\n" for item in part)
            file.seek(0)
            files.append(file)
        yield from heapq.merge(*map(_items, files), key=_URI)


def _items(file: IO[str]) -> Iterator[Item]:
    for line in file:
        yield Item(*json.loads(line))
