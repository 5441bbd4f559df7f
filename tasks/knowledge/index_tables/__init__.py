"""Index versions: one table of chunks each, with indexes of its own; or a little of its own on the table of an earlier one.

`versions` knows which there are and begins and drops them; `contents` fills and compares their tables; `overlays` lets one
stand on another; `indexes` builds what makes them quick to search. A version is begun once a run (under an advisory lock), filled document by
document, and never changed after it became current. All of it is named here: `index_tables.begin(...)`.
"""

from tasks.knowledge.index_tables.contents import (
    COLUMNS,
    copy_documents,
    count_chunks_of,
    documents_in,
    keep_only,
    list_uris,
    lock_building,
    replace_documents,
    require_whole,
)
from tasks.knowledge.index_tables.indexes import build_indexes, drop_indexes, has_vector_index, scan
from tasks.knowledge.index_tables.local_settings import local_settings
from tasks.knowledge.index_tables.overlays import Layer, lay_over, layers
from tasks.knowledge.index_tables.versions import (
    DEFAULT_CORPUS,
    Version,
    begin,
    current,
    drop,
    get,
    lock_current,
    of_run,
    require_open,
)

__all__ = [
    "COLUMNS",
    "DEFAULT_CORPUS",
    "Layer",
    "Version",
    "begin",
    "build_indexes",
    "copy_documents",
    "count_chunks_of",
    "current",
    "documents_in",
    "drop",
    "drop_indexes",
    "get",
    "has_vector_index",
    "keep_only",
    "lay_over",
    "layers",
    "list_uris",
    "local_settings",
    "lock_building",
    "lock_current",
    "of_run",
    "replace_documents",
    "require_open",
    "require_whole",
    "scan",
]
