"""How a question finds chunks: `tasks.knowledge.search`, as the corpus `default` is searched, over a kept connection.

Reads the table of the released index version; writes nothing. Fails as the search does: `ServiceUnavailable`, `BadInput`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.serving.connection import KeptConnection
from tasks.serving.releases import Loaded
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit

Vector = NDArray[np.float32]
Find = Callable[[Loaded, str, Vector, int], "Sequence[Hit]"]


def find_in_postgres(connection: KeptConnection, settings: Settings) -> Find:
    """Return the lookup of `tasks.knowledge.search` over a kept connection, as the corpus `default` is searched."""
    own = settings_of(settings, DEFAULT)

    def find(loaded: Loaded, question: str, vector: Vector, k: int) -> "Sequence[Hit]":
        from tasks.knowledge.search import search

        return connection.run(
            lambda opened: search(
                opened,
                loaded.release.index_version,
                vector,
                k,
                text=question,
                mode=own.search_mode,
                ef=own.search_ef,
                reranker=loaded.reranker,
            )
        )

    return find
