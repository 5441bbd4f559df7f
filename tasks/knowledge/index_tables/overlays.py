"""A version that stands on the table of an earlier one: a little changed, so that little is written and indexed.

Such a version has a table of its own rows (`chunks_vN_own`, with HNSW and the other indexes), a list of the documents of
the earlier table that it does not show (`chunks_vN_hidden`), and a view `chunks_vN` of the rows it has: it is read like any
other. Nothing of the earlier table is changed, so every version that shows it keeps its rows, and can be gone back to.
A version stands on a table of rows, never on a view: of one that stands itself on another, the own rows are copied.
Only the search by nearness has to know (`layers`): it asks the HNSW index of each table, and puts what they find together.
Fails only as the database does.
"""

from dataclasses import dataclass, replace

from psycopg import sql

from tasks.database import Connection
from tasks.knowledge.index_tables.contents import NAMES
from tasks.knowledge.index_tables.indexes import add_words
from tasks.knowledge.index_tables.versions import Version, get

# Of so few rows everything is copied and indexed in a second or two, and one table is simpler than two.
LEAST_ROWS = 5_000
# More that are not shown could keep HNSW from finding enough that are, where all that is near a question is hidden.
MOST_HIDDEN = 20_000
# A document that went stays in the table where it is not shown any more: not for longer than this and until the next change.
MOST_DAYS = 30
# What two versions must have in common, so that one can show the other's rows.
_ALIKE = ("fingerprint", "corpus", "embedder", "dimensions", "vector_type", "text_search")


@dataclass(frozen=True)
class Layer:
    """A table of rows, and the condition under which a row belongs to the version; `own`: the version's own table."""

    table: sql.Identifier
    condition: sql.Composable
    own: bool


def layers(version: Version) -> list[Layer]:
    """Return the tables of rows whose indexes a search of `version` asks."""
    own = Layer(version.own, sql.SQL("TRUE"), own=True)
    if version.base_table is None:
        return [own]
    # Not as a join, which would lose the order in which HNSW yields; and Postgres takes it to be true of every other row.
    shown = sql.SQL("NOT coalesce((SELECT TRUE FROM {} h WHERE h.uri = document_uri), FALSE)").format(version.hidden)
    return [own, Layer(sql.Identifier(version.base_table), shown, own=False)]


def lay_over(connection: Connection, base: Version, version: Version, table: str, share: float) -> Version | None:
    """Let `version`, which holds what is new, show what stays of `base` from the table where that is.

    `table` is a temporary table of the documents (uri) that stay. `share` is how much of the version may be its own rows, and
    how much of the earlier table it may hide: beyond it, and where the two are not alike or the table is small or old, nothing
    is done and None is returned. Returns the version as it now stands; it is to be indexed (`build_indexes`) and read.
    """
    root = replace(base, table_name=base.base_table, base_table=None) if base.base_table else base
    if not share or any(getattr(base, name) != getattr(version, name) for name in _ALIKE):
        return None
    stays = sql.Identifier("pg_temp", table)
    if not _young(connection, root) or not _pays(connection, base, root, version, stays, share):
        return None
    given = {
        "own": version.table, "hidden": version.hidden, "root": root.table, "base_own": base.own, "base_hidden": base.hidden,
        "stays": stays, "names": NAMES,
    }  # fmt: skip
    connection.execute(sql.SQL("CREATE TABLE {hidden} (uri text PRIMARY KEY)").format(**given))
    connection.execute(
        sql.SQL(
            "INSERT INTO {hidden} SELECT DISTINCT document_uri FROM {root} c "
            "WHERE NOT EXISTS (SELECT FROM {stays} s WHERE s.uri = c.document_uri)"
        ).format(**given)
    )
    if base.base_table:
        connection.execute(
            sql.SQL("INSERT INTO {hidden} SELECT uri FROM {base_hidden} ON CONFLICT DO NOTHING").format(**given)
        )
        connection.execute(
            sql.SQL(
                "INSERT INTO {own} ({names}) SELECT {names} FROM {base_own} c "
                "WHERE EXISTS (SELECT FROM {stays} s WHERE s.uri = c.document_uri)"
            ).format(**given)
        )
    connection.execute(sql.SQL("ANALYZE {hidden}").format(**given))
    connection.execute(
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(version.table, sql.Identifier(f"{version.table_name}_own"))
    )
    connection.execute(
        "UPDATE index_versions SET base_table = %s WHERE version = %s", (root.table_name, version.version)
    )
    laid = get(connection, version.version)
    add_words(connection, laid)
    connection.execute(
        sql.SQL(
            "CREATE VIEW {view} AS SELECT {names}, words FROM {own} UNION ALL SELECT {names}, words FROM {root} c "
            "WHERE NOT EXISTS (SELECT FROM {hidden} h WHERE h.uri = c.document_uri)"
        ).format(**{**given, "view": laid.table, "own": laid.own})
    )
    return laid


def _young(connection: Connection, root: Version) -> bool:
    row = connection.execute(
        "SELECT created_at > now() - make_interval(days => %s) AS young FROM index_versions WHERE table_name = %s",
        (MOST_DAYS, root.table_name),
    ).fetchone()
    return bool(row and row["young"])


def _pays(
    connection: Connection, base: Version, root: Version, version: Version, stays: sql.Identifier, share: float
) -> bool:
    """Say whether little enough would be the version's own, and little enough of the earlier table hidden."""
    staying = sql.SQL("EXISTS (SELECT FROM {} s WHERE s.uri = c.document_uri)").format(stays)
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {root}) AS root, (SELECT count(*) FROM {version}) AS loaded, "
            "(SELECT count(*) FROM {base} c WHERE {staying}) AS kept, (SELECT count(*) FROM {own} c WHERE {staying}) AS kept_own"
        ).format(root=root.table, version=version.table, base=base.table, own=base.own, staying=staying)
    ).fetchone()
    assert row is not None
    kept_own = row["kept_own"] if base.base_table else 0
    own, total, shown = row["loaded"] + kept_own, row["loaded"] + row["kept"], row["kept"] - kept_own
    hidden = row["root"] - shown
    return bool(
        row["root"] >= LEAST_ROWS and own <= share * total and hidden <= share * row["root"] and hidden <= MOST_HIDDEN
    )
