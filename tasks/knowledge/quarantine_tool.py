"""The quarantine, for people.

| command | what it does |
| --- | --- |
| `python -m tasks quarantine list [--corpus C] [--kind K] [--rule R] [--run R] [--status held] [--limit 50]` | newest first |
| `python -m tasks quarantine show ID` | one rejection: rule, reason, excerpt, where its bytes are |
| `python -m tasks quarantine replay [ID] [--corpus NAME] [--rule RULE]` | look at held documents again, by today's rules |
| `python -m tasks quarantine accept ID --by WHO --note WHY` | take this document, as it is, against that rule |
| `python -m tasks quarantine purge ID --by WHO --note WHY` | delete the bytes and the excerpt; the row stays |

Reads and writes the tables `quarantine`, `acceptances` and `documents`, and the bytes under `s3://BUCKET/quarantine/`. A
document that passes, or is accepted, is indexed by the next sync, from the bytes kept. Fails with `OptionError` for a wrong
command, with `DataError` for a row that is not there, or cannot be replayed, accepted or purged.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from tasks.database import Connection, connect
from tasks.errors import DataError, OptionError
from tasks.knowledge import corpora, quarantine
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import Extractor
from tasks.settings import Settings, settings
from tasks.storage import Storage

_FILTERS = ("corpus", "kind", "rule", "run", "status")
_USAGE = "python -m tasks quarantine list | show ID | replay [ID] | accept ID --by WHO --note WHY | purge ID --by WHO --note WHY"
# Against these no person can accept: there is no text to index.
_NO_TEXT = "there is no text of it to index"


def main(arguments: list[str]) -> int:
    """Run one command of the quarantine."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    from tasks.__main__ import parse_options

    command, rest = arguments[0], arguments[1:]
    number = int(rest.pop(0)) if rest and rest[0].isdecimal() else None
    given = parse_options(rest)
    known = {
        "list": {*_FILTERS, "limit"}, "show": set(), "replay": {"corpus", "rule"}, "accept": {"by", "note"}, "purge": {"by", "note"},
    }  # fmt: skip
    if (
        command not in known
        or set(given) - known[command]
        or (command in ("show", "accept", "purge") and number is None)
    ):
        raise OptionError(f"expected {_USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    if command in ("accept", "purge") and not all(given.get(name, "").strip() for name in ("by", "note")):
        raise OptionError(
            f"expected --by and --note of {command}, found {sorted(given)}. Next: say who decides, and why."
        )
    if command == "list":
        return _list(given)
    if command == "replay":
        return _replay(settings(), number, given)
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


def _replay(own: Settings, number: int | None, given: dict[str, str]) -> int:
    """Examine held documents again; say of each what became of it."""
    storage = Storage(own.s3_endpoint_url)
    with connect(vectors=False) as connection:
        wanted = {"kind": "document", "status": "held", **given}
        rows = [_one(connection, number)] if number is not None else _rows(connection, wanted, None)
        accepted = {name: quarantine.accepted(connection, name) for name in {row["corpus"] for row in rows}}
    by_item: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["body_uri"] is None and number is not None:
            raise DataError(
                f"expected the bytes of rejection {number} to be kept, found none ({row['rule']}). Next: correct the document at its source."
            )
        if row["body_uri"] is not None:
            by_item[row["corpus"], row["item"]] = row
    passed = 0
    for (corpus, item), row in sorted(by_item.items()):
        body = storage.get_bytes(row["body_uri"])
        sha256 = hashlib.sha256(body).hexdigest()
        limits = corpora.settings_of(own, corpus)
        with Extractor(limits.extraction_seconds, limits.extraction_memory_gb) as extractor:
            found = examine([Body(item, "", sha256, body)], extractor, accepted[corpus], limits)
        if found.rejected:
            print(f"{item}: still rejected, {'; '.join(f'{one.rule}: {one.reason}' for one in found.rejected)}")
            continue
        passed += 1
        with connect(vectors=False) as connection:
            connection.execute(
                "UPDATE quarantine SET status = 'passed', decided_at = now() WHERE kind = 'document' AND corpus = %s AND item = %s "
                "AND content_sha256 = %s AND status = 'held'",
                (corpus, item, sha256),
            )
            _look_again(connection, corpus, item)
        print(f"{item}: passes; the next sync indexes it")
    print(f"{passed} of {len(by_item)} documents pass")
    return 0


def _accept(number: int, given: dict[str, str]) -> int:
    with connect(vectors=False) as connection:
        row = _one(connection, number)
        if row["kind"] != "document" or row["status"] != "held" or row["content_sha256"] is None:
            raise DataError(
                f"expected a held document, found {number}: {row['kind']}, {row['status']}"
                f"{'' if row['content_sha256'] else ', and its bytes were never read'}. Next: see `quarantine show {number}`."
            )
        if not row["excerpt"] and row["rule"] not in _COPIES:
            raise DataError(
                f"expected a document with a text, found {number} ({row['rule']}): {_NO_TEXT}. Next: correct it at its source."
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
        _look_again(connection, row["corpus"], row["item"])
    print(
        f"{row['item']} is accepted against {row['rule']}, as long as its bytes stay the same; the next sync indexes it"
    )
    return 0


# Rules of validate_documents: what they reject has a text, of which no excerpt is kept.
_COPIES: Sequence[str] = ("text_is_new", "text_is_not_alike")


def _purge(number: int, given: dict[str, str]) -> int:
    storage = Storage(settings().s3_endpoint_url)
    with connect(vectors=False) as connection:
        row = _one(connection, number)
        gone = storage.delete_prefix(row["body_uri"]) if row["body_uri"] else 0
        connection.execute(
            "UPDATE quarantine SET status = 'purged', excerpt = '', body_uri = NULL, decided_by = %s, decided_at = now(), note = %s "
            "WHERE id = %s OR (body_uri IS NOT NULL AND body_uri = %s)",
            (given["by"], given["note"], number, row["body_uri"]),
        )
    print(
        f"{row['item']}: excerpt and {gone} object{'' if gone == 1 else 's'} deleted; the row says that {given['by']} purged it"
    )
    return 0


def _look_again(connection: Connection, corpus: str, uri: str) -> None:
    """Make the next sync look at a rejected document again (reconciliation: a rejected document without a rule)."""
    connection.execute(
        "UPDATE documents SET rule = NULL WHERE corpus = %s AND uri = %s AND status = 'rejected'", (corpus, uri)
    )


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
