"""The versions of an index, for people.

| command | what it does |
| --- | --- |
| `python -m tasks index list [--corpus C]` | the versions that are still there, newest first |
| `python -m tasks index use VERSION --by WHO --reason WHY` | make a version that served before the current one again |

`use` reads and writes `index_versions`, and marks the corpus' rows of `documents`: they told what the other version holds,
so the next sync reads every document again (vectors come from the cache) and goes on from there. A sync that runs
meanwhile is refused at its switch. What the assistant answers from is the version its live release names: that one changes
by a release, or by rolling one back. Fails with `OptionError` for a wrong command, with `DataError` for a version that
never served, is retired, or serves already.
"""

import logging
from typing import Any

from tasks.database import connect
from tasks.errors import DataError
from tasks.knowledge import index_tables
from tasks.options import parse_command, require_words, wrong_command

log = logging.getLogger(__name__)

_USAGE = "python -m tasks index list [--corpus C] | use VERSION --by WHO --reason WHY"


def main(arguments: list[str]) -> int:
    """Run one command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, number, given = parse_command(arguments, {"list": {"corpus"}, "use": {"by", "reason"}}, _USAGE)
    if (command == "use") is (number is None):
        raise wrong_command(_USAGE, arguments)
    if number is None:
        return _list(given.get("corpus"))
    require_words(command, given, "by", "reason")
    corpus, former = use(number, given["by"], given["reason"])
    print(
        f"index version {number} of {corpus} is current; version {former} served until now. The next sync of {corpus}"
    )
    print(
        "reads every document again and goes on from what its settings say: put those back first if they were at fault."
    )
    return 0


def use(version: int, who: str, why: str) -> tuple[str, int | None]:
    """Make `version`, which served before, current again; return its corpus, and what served until now."""
    with connect(vectors=False) as connection:
        corpus = index_tables.get(connection, version).corpus
        serving = index_tables.lock_current(connection, corpus)
        found = index_tables.get(connection, version)  # under the lock: housekeeping may have retired it meanwhile
        if found.status != "former":
            raise DataError(
                f"expected a version that served before, found {version} {found.status}. Next: take one of `index list`."
            )
        if serving is not None:
            connection.execute("UPDATE index_versions SET status = 'former' WHERE version = %s", (serving.version,))
        connection.execute(
            "UPDATE index_versions SET status = 'current', switched_at = now(), switched_by = %s, switch_reason = %s "
            "WHERE version = %s",
            (who, why, version),
        )
        connection.execute("UPDATE documents SET stamp = '', fingerprint = '' WHERE corpus = %s", (corpus,))
    log.warning("index version=%d corpus=%s made current by %s: %s", version, corpus, who, why)
    return corpus, serving.version if serving else None


def _list(corpus: str | None) -> int:
    with connect(vectors=False) as connection:
        rows: list[dict[str, Any]] = connection.execute(
            "SELECT version, corpus, status, documents, chunks, embedder, created_at, switched_at, switched_by, switch_reason, base_table, "
            "(metrics ->> 'recall_at_5')::real AS recall FROM index_versions WHERE status <> 'retired' "
            "AND (%(corpus)s::text IS NULL OR corpus = %(corpus)s) ORDER BY version DESC",
            {"corpus": corpus},
        ).fetchall()
    for row in rows:
        recall = "" if row["recall"] is None else f"recall@5 {row['recall']:.3f}"
        print(
            f"{row['version']:>6}  {row['corpus']:<16} {row['status']:<9} {row['created_at']:%Y-%m-%d %H:%M}  "
            f"{row['documents'] or 0:>8} documents {row['chunks'] or 0:>9} chunks  {recall}  {row['embedder']}"
            + (f"  laid over {row['base_table']}" if row["base_table"] else "")
        )
        if row["switched_by"]:
            print(
                f"        put back by {row['switched_by']}, {row['switched_at']:%Y-%m-%d %H:%M}: {row['switch_reason']}"
            )
    print(f"{len(rows)} versions")
    return 0
