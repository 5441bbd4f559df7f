"""The quarantine, for people.

| command | what it does |
| --- | --- |
| `python -m tasks quarantine list [--corpus C] [--kind K] [--rule R] [--run R] [--status held] [--limit 50]` | newest first |
| `python -m tasks quarantine show ID` | one rejection: rule, reason, excerpt, where its bytes are |
| `python -m tasks quarantine replay [ID] [--corpus NAME] [--rule RULE]` | look at held documents again, by today's rules |
| `python -m tasks quarantine accept ID --by WHO --note WHY` | take this document, as it is, against that rule |
| `python -m tasks quarantine purge ID --by WHO --note WHY` | delete the bytes and what quotes them; the row stays |

Reads and writes the tables `quarantine`, `acceptances` and `documents`, and the bytes under `s3://BUCKET/quarantine/`; purge
also deletes the lists of rejections that name the document in the folders of its runs. A document that passes, or is accepted,
is indexed by the next sync, from the bytes kept. Fails with `OptionError` for a wrong
command, with `DataError` for a row that is not there, or cannot be replayed, accepted or purged.
"""

from typing import Any

from tasks.database import Connection, connect
from tasks.errors import DataError, OptionError
from tasks.knowledge import index_tables, quarantine
from tasks.knowledge.quarantine_replay import COPIES, OUTCOMES, look_again, replay
from tasks.knowledge.traces import naming
from tasks.options import parse_command, require_words, wrong_command
from tasks.settings import settings
from tasks.storage import Storage

_FILTERS = ("corpus", "kind", "rule", "run", "status")
_USAGE = "python -m tasks quarantine list | show ID | replay [ID] | accept ID --by WHO --note WHY | purge ID --by WHO --note WHY"
# Against these no person can accept, nor against those that refuse a document before it has a text.
_NO_TEXT = "there is no text of it to index"
_NEVER = {
    "text_has_no_nul": "Postgres cannot store NUL",
    "text_is_present": _NO_TEXT,
    "uri_is_present": "it has no address",
}
# What a run wrote about its rejections, in its folder; the table has all of it.
_LISTS = ("/rejected.jsonl", "/quarantine.jsonl")


def main(arguments: list[str]) -> int:
    """Run one command of the quarantine."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    known = {
        "list": {*_FILTERS, "limit"}, "show": set(), "replay": {"corpus", "rule"}, "accept": {"by", "note"}, "purge": {"by", "note"},
    }  # fmt: skip
    command, number, given = parse_command(arguments, known, _USAGE)
    if command in ("show", "accept", "purge") and number is None:
        raise wrong_command(_USAGE, arguments)
    if command in ("accept", "purge"):
        require_words(command, given, "by", "note")
    if command == "list":
        return _list(given)
    if command == "replay":
        return _replay(number, given)
    assert number is not None
    return {"show": _show, "accept": _accept, "purge": _purge}[command](number, given)


def _list(given: dict[str, str]) -> int:
    if not given.get("limit", "50").isdecimal():
        raise OptionError(f"expected --limit with a number, found {given['limit']!r}. Next: correct it.")
    limit = int(given.pop("limit", "50"))
    with connect(vectors=False) as connection:
        rows = _rows(connection, {"status": "held", **given}, limit + 1)
        total = _rows_total(connection, {"status": "held", **given})
    for row in rows[:limit]:
        print(f"{row['id']:>8}  {row['created_at']:%Y-%m-%d %H:%M}  {row['kind']:<9} {row['rule']:<24} {row['item']}")
        print(f"          {row['reason'][:160]}")
    print(f"{min(limit, len(rows))} of {total} rejections")
    return 0


def _show(number: int, _given: dict[str, str]) -> int:
    with connect(vectors=False) as connection:
        row = _one(connection, number)
    for name in ("id", "kind", "corpus", "item", "rule", "reason", "excerpt", "run", "created_at", "status", "body_uri", "decided_by",
                 "decided_at", "note"):  # fmt: skip
        if row[name] is not None:
            print(f"{name:<12}{row[name]}")
    return 0


def _replay(number: int | None, given: dict[str, str]) -> int:
    """Look at held documents again; say of each what became of it."""
    with connect(vectors=False) as connection:
        rows = [_held(connection, number)] if number is not None else quarantine.latest(connection, **given)
    found = []
    for outcome, line in replay(settings(), rows):
        found.append(outcome)
        print(line)
    told = [f"{found.count(outcome)} {words}" for outcome, words in OUTCOMES.items() if outcome in found]
    print(f"{len(found)} documents: {', '.join(told) or 'none is held'}")
    return 0


def _accept(number: int, given: dict[str, str]) -> int:
    with connect(vectors=False) as connection:
        # Decisions and switches one after another: neither misses the other, nor waits for it crosswise.
        index_tables.lock_current(connection, _held(connection, number)["corpus"])
        row = _held(connection, number)
        if row["content_sha256"] is None:
            raise DataError(
                f"expected a document whose bytes were read, found {number} ({row['rule']}). Next: correct it at its source."
            )
        if row["rule"] in _NEVER or not (row["excerpt"] or row["rule"] in COPIES):
            raise DataError(
                f"expected a document that can be indexed as it is, found {number} ({row['rule']}): "
                f"{_NEVER.get(row['rule'], _NO_TEXT)}. Next: correct it at its source."
            )
        connection.execute(
            "INSERT INTO acceptances (corpus, content_sha256, rule, accepted_by, note) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            (row["corpus"], row["content_sha256"], row["rule"], given["by"], given["note"]),
        )
        connection.execute(
            "UPDATE quarantine SET status = 'accepted', decided_by = %s, decided_at = now(), note = %s WHERE kind = 'document' "
            "AND corpus = %s AND item = %s AND rule = %s AND content_sha256 = %s AND status = 'held'",
            (given["by"], given["note"], row["corpus"], row["item"], row["rule"], row["content_sha256"]),
        )
        then = look_again(connection, row, "indexes")
    print(f"{row['item']} is accepted against {row['rule']}, as long as its bytes stay the same; {then}")
    return 0


def _purge(number: int, given: dict[str, str]) -> int:
    storage = Storage(settings().s3_endpoint_url)
    with connect(vectors=False) as connection:
        row = _one(connection, number)
        same = "id = %(id)s OR (body_uri IS NOT NULL AND body_uri = %(body)s)"
        about = {"id": number, "body": row["body_uri"], "by": given["by"], "note": given["note"]}
        rows = connection.execute(
            f"SELECT id, item, run, reason FROM quarantine WHERE {same}".encode(), about
        ).fetchall()
        gone = storage.delete_prefix(row["body_uri"]) if row["body_uri"] else 0
        for run, item in {(one["run"], one["item"]) for one in rows if one["run"].startswith("s3://")}:
            gone += sum(map(storage.delete_prefix, list(naming(storage, f"{run}/", item, _LISTS))))
        for one in rows:
            connection.execute(
                "UPDATE quarantine SET status = 'purged', excerpt = '', reason = %s, body_uri = NULL, decided_by = %s, "
                "decided_at = now(), note = %s WHERE id = %s",
                (quarantine.unquoted(one["reason"]), given["by"], given["note"], one["id"]),
            )
    print(
        f"{row['item']}: excerpt and {gone} object{'' if gone == 1 else 's'} deleted; the row says that {given['by']} purged it"
    )
    return 0


def _held(connection: Connection, number: int) -> dict[str, Any]:
    """Return a rejection of a document that nobody has decided about yet. Raises DataError."""
    row = _one(connection, number)
    if row["kind"] != "document" or row["status"] != "held":
        raise DataError(
            f"expected a held document, found {number}: {row['kind']}, {row['status']}. "
            f"Next: see `python -m tasks quarantine show {number}`."
        )
    return row


def _one(connection: Connection, number: int) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM quarantine WHERE id = %s", (number,)).fetchone()
    if row is None:
        raise DataError(f"expected a rejection {number}, found none. Next: python -m tasks quarantine list")
    return row


def _where(given: dict[str, str]) -> str:
    return " AND ".join(f"{name} = %({name})s" for name in _FILTERS if name in given) or "true"


def _rows(connection: Connection, given: dict[str, str], limit: int | None) -> list[dict[str, Any]]:
    query = f"SELECT * FROM quarantine WHERE {_where(given)} ORDER BY id DESC LIMIT %(limit)s"
    return list(connection.execute(query.encode(), {**given, "limit": limit}))


def _rows_total(connection: Connection, given: dict[str, str]) -> int:
    row = connection.execute(f"SELECT count(*) AS n FROM quarantine WHERE {_where(given)}".encode(), given).fetchone()
    return int(row["n"]) if row else 0
