"""Which objects in S3 name a document: rows that stages wrote, datasets, answers of the teacher.

Reads S3, writes nothing. Fails as S3 does.
"""

import json
from collections.abc import Iterator

from tasks.storage import Storage


def naming(
    storage: Storage, prefix: str, uri: str, within: tuple[str, ...] = ("",), suffix: str = ".jsonl"
) -> Iterator[str]:
    """Yield the objects below a prefix that name the document `uri`, or an example made from it.

    Only objects that end with `suffix` and have one of `within` in their place are read.
    """
    names = {json.dumps(uri, ensure_ascii=False), json.dumps(uri)}  # rows are written without escapes, other JSON with
    names |= {json.dumps(f"corpus:{uri}#", ensure_ascii=False)[:-1]}  # the id of an example goes on with its number
    needles = [name.encode() for name in sorted(names)]
    for place, _size, _etag in storage.list(prefix):
        if place.endswith(suffix) and any(part in place for part in within) and storage.contains(place, *needles):
            yield place
