"""Search an index version: by vector, by words, or by both; the one function of assistant, check and command line.

    search(connection, None, vector, 5, text=question, mode="hybrid", where=Filters(prefix="s3://docs/manual/"))

`find` has the function, `filters` what a search may be narrowed to, `candidates` the SQL, `command` the tool
`python -m tasks search`. Reads `index_versions` and the version's table; writes nothing.
"""

from tasks.knowledge.search.command import main
from tasks.knowledge.search.filters import Filters
from tasks.knowledge.search.find import EF_SEARCH, MODES, Hit, Mode, Reranks, search

__all__ = ["EF_SEARCH", "MODES", "Filters", "Hit", "Mode", "Reranks", "main", "search"]
