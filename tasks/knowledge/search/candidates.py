"""The SQL of a search: the nearest chunks to a vector, and the chunks that hold the words of a question.

Reads a version's table; writes nothing. Both return rows in a fixed order: of chunks that are equally good the one
with the smaller URI and ordinal comes first. Who asks for more gets the same first ones. A filter never makes a search
return less than there is: up to EXACT_ROWS matching rows of a table are compared one by one, and where more match HNSW goes on
scanning until it has enough of them, or gives up, and then they are compared one by one too.
"""

import heapq
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import sql

from tasks.database import Connection
from tasks.knowledge.index_tables import Version, layers, local_settings
from tasks.knowledge.index_tables.contents import as_stored
from tasks.knowledge.search.filters import Filters

# On 24,600 real chunks a filter that 1,700 of them pass costs HNSW more time than comparing those 1,700 (36 ms and 20 ms at
# the median of a busy machine), and its recall stays at 0.98, whatever ef_search.
EXACT_ROWS = 10_000
# A version's own rows beside an earlier table (index_tables.overlays): so few of them are compared one by one without a filter too.
SMALL_LAYER = 1_000
# Rows that HNSW may look at in search of those that match; beyond it an exact scan of the matching ones is as quick.
SCAN_TUPLES = 40_000
_MOST_EF = 1000  # of pgvector
_SPARE = 20  # rows beyond those asked for, among which equals at the edge are put in order
_BLOCK = 40  # rows of HNSW that are put in order together
_FIELDS = sql.SQL(", ").join(
    sql.Identifier(name)
    for name in (
        "chunk_id", "document_uri", "title", "text", "ordinal", "start", "end", "headings", "page", "last_page", "covered",
        "metadata",
    )
)  # fmt: skip
# `relaxed_order` yields a little out of order and leaves nothing out, as `strict_order` does; the rows are sorted after it,
# each %(block)s of them by themselves: a search that goes on for more finds the same at its head.
_NEAREST = sql.SQL(
    "WITH near AS MATERIALIZED (SELECT {fields}, embedding <=> %(vector)s AS distance FROM {table} WHERE {condition} "
    "ORDER BY {order} LIMIT %(rows)s), "
    "placed AS (SELECT *, (row_number() OVER () - 1) / %(block)s AS block FROM near) "
    'SELECT {fields}, 1 - distance AS score FROM placed ORDER BY block, distance, document_uri COLLATE "C", ordinal LIMIT %(k)s'
)
_APPROXIMATE = sql.SQL("embedding <=> %(vector)s")
_EXACT = sql.SQL("(embedding <=> %(vector)s) + 0")  # no longer what the index is on: every matching row is compared
# The score of a chunk with all words is the same among those that have them all and among those that have some.
_BY_WORDS = sql.SQL(
    "SELECT {fields}, 1 - (embedding <=> %(vector)s) AS score, "
    "ts_rank_cd(words, CASE WHEN words @@ {every} THEN {every} ELSE {some} END, 1) AS text_score FROM {table} "
    "WHERE words @@ {some} AND {condition} "
    "ORDER BY words @@ {every} DESC, text_score DESC, document_uri, ordinal LIMIT %(k)s"
)
_EVERY = {
    True: sql.SQL("websearch_to_tsquery({config}, %(text)s)"),
    False: sql.SQL("plainto_tsquery({config}, %(text)s)"),
}
# Any of the words. A question that excludes words (-word) is taken as it is: "or not that" would match nearly all.
_SOME = sql.SQL(
    "(CASE WHEN {every}::text LIKE '%%!%%' THEN {every} ELSE replace({every}::text, ' & ', ' | ')::tsquery END)"
)
_ANY = sql.SQL("replace({every}::text, ' & ', ' | ')::tsquery")

log = logging.getLogger(__name__)

Row = dict[str, Any]


def nearest(connection: Connection, version: Version, vector: Any, k: int, where: Filters, ef: int) -> list[Row]:
    """Return the `k` matching chunks nearest to `vector`, or all that match where they are fewer."""
    condition, values = where.condition()
    block = min(ef, _BLOCK)  # not more than HNSW finds at once
    rows = math.ceil((k + _SPARE) / block) * block
    values |= {"vector": as_stored(vector, version.vector_type), "rows": rows, "k": k, "block": block}
    filtered = where != Filters()
    options = {
        "hnsw.ef_search": str(min(_MOST_EF, ef)),
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": str(SCAN_TUPLES),
        "hnsw.scan_mem_multiplier": "4",
        # Postgres takes a filter for a rare one, and would sort all that match: here it is known that many do.
        **(dict.fromkeys(("enable_seqscan", "enable_bitmapscan", "enable_sort"), "off") if filtered else {}),
    }
    found = []
    for layer in layers(version):
        both = sql.SQL("{} AND {}").format(layer.condition, condition)
        most = EXACT_ROWS if filtered else SMALL_LAYER if layer.own and version.base_table else 0
        # Decided by what is there, never by how much is asked for: whoever asks for more gets the same first hits. What is hidden
        # counts too: to look each row up here took five times as long as the search.
        if most and _matches_at_most(connection, layer.table, condition, values, most):
            found.append(_compared(connection, layer.table, both, values))
        else:
            found.append(_by_index(connection, version, layer.table, both, values, options))
    return found[0] if len(found) == 1 else _merged(found)[:k]


def _by_index(
    connection: Connection,
    version: Version,
    table: sql.Identifier,
    condition: sql.Composable,
    values: Mapping[str, Any],
    options: Mapping[str, str],
) -> list[Row]:
    """Return the rows that HNSW finds in a table; all that match are compared where it finds too few."""
    query = _NEAREST.format(fields=_FIELDS, table=table, condition=condition, order=_APPROXIMATE)
    with local_settings(connection, options):
        found = _rows(connection, query, values)
    if len(found) == values["k"]:
        return found
    log.debug(
        "index version=%d: HNSW found %d of %d, all that match are compared", version.version, len(found), values["k"]
    )
    return _compared(connection, table, condition, values)


def _compared(
    connection: Connection, table: sql.Identifier, condition: sql.Composable, values: Mapping[str, Any]
) -> list[Row]:
    query = _NEAREST.format(fields=_FIELDS, table=table, condition=condition, order=_EXACT)
    return _rows(connection, query, {**values, "block": values["rows"]})


def _matches_at_most(
    connection: Connection, table: sql.Identifier, condition: sql.Composable, values: Mapping[str, Any], most: int
) -> bool:
    query = sql.SQL("SELECT count(*) AS n FROM (SELECT FROM {} WHERE {} LIMIT {}) AS matching").format(
        table, condition, sql.Literal(most + 1)
    )
    return bool(_rows(connection, query, values)[0]["n"] <= most)


def by_words(
    connection: Connection, version: Version, text: str, vector: Any, k: int, where: Filters, *, marks: bool
) -> list[Row]:
    """Return the `k` best matching chunks that hold all words of `text`; where those are fewer, then some of them.

    With `marks`, quotes, `or` and `-` mean what they mean to a search engine; else a text is its words and nothing else.
    """
    condition, values = where.condition()
    values |= {"vector": as_stored(vector, version.vector_type), "text": text, "k": k}
    every = _EVERY[marks].format(config=version.text_config)
    found: list[Row] = []
    for some in (every, (_SOME if marks else _ANY).format(every=every)):
        query = _BY_WORDS.format(fields=_FIELDS, table=version.table, condition=condition, some=some, every=every)
        found = _rows(connection, query, values)
        if len(found) == k:
            break
    return found


def _merged(found: Iterable[list[Row]]) -> list[Row]:
    """Return the rows of all layers in one order, the best first; each layer's stay in theirs."""
    return list(heapq.merge(*found, key=lambda row: (-row["score"], row["document_uri"], row["ordinal"])))


def _rows(connection: Connection, query: sql.Composed, values: Mapping[str, Any]) -> list[Row]:
    return connection.execute(query, values).fetchall()
