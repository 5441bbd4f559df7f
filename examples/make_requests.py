"""Write requests_before.jsonl and requests_after.jsonl from the families in request_families.toml.

Reads:  request_families.toml, in this folder.
Writes: requests_before.jsonl and requests_after.jsonl, in the folder given by --out (default: this folder).
        One JSON object a line: id, question, topic, family. The same families always give the same bytes:
        rows are ordered by the SHA-256 of their question, which mixes the families without a random number.
Fails:  with exit code 2 and one message if the file is missing or no TOML, if a family is misspelt or empty,
        if a wording has no place for its fill (or the reverse), or if two requests are the same question.

    python -m examples.make_requests
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAMILIES = HERE / "request_families.toml"
# The file a request goes to, the letter its id starts with, and the groups of families it is made of.
# "stay" families ask about the language like "before": some people do not change the subject.
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests_before.jsonl": ("b", ("before",)),
    "requests_after.jsonl": ("a", ("after", "stay")),
}
GROUPS = ("before", "after", "stay")
KEYS = {"family", "topic", "ask", "fill"}


class FamilyError(ValueError):
    """The families cannot be used as they are; the text says what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Family:
    """Requests of one kind: wordings (`ask`), used in turn, one for each `fill`."""

    family: str
    topic: str
    ask: tuple[str, ...]
    fill: tuple[str, ...]

    def questions(self) -> Iterator[str]:
        for number, fill in enumerate(self.fill):
            yield phrase(self, fill, number)


def phrase(family: Family, fill: str, number: int) -> str:
    """One question. A fill "x | y" goes to wordings with {y}, a fill "x" to wordings without it."""
    x, bar, y = fill.partition(" | ")
    fitting = [ask for ask in family.ask if ("{y}" in ask) == bool(bar)]
    # `d1 | d2` is an expression, not two values, where no wording of the family has a second place.
    if bar and not fitting:
        x, fitting = fill, list(family.ask)
    if not fitting:
        raise FamilyError(
            f"family {family.family!r}: expected a wording for the fill {fill!r}, found only wordings "
            "that need a second value; add a wording without {y}, or write the fill as 'x | y'"
        )
    ask = fitting[number % len(fitting)]
    return ask.replace("{x}", x).replace("{y}", y)


def read_families(path: Path) -> dict[str, list[Family]]:
    """The families of each group, in file order."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FamilyError(f"expected a TOML file of families at {path.name}, found: {error}") from error
    if unknown := set(document) - set(GROUPS):
        raise FamilyError(f"expected the groups {', '.join(GROUPS)}, found {sorted(unknown)}; rename them")
    groups: dict[str, list[Family]] = {}
    for group in GROUPS:
        rows = document.get(group, [])
        if not rows:
            raise FamilyError(f"expected at least one [[{group}]] family, found none; add one to {path.name}")
        groups[group] = [_family(row, group) for row in rows]
    names = [family.family for families in groups.values() for family in families]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FamilyError(f"expected family names to be unique, found twice: {twice}; rename one of each")
    return groups


def _family(row: dict[str, object], group: str) -> Family:
    if set(row) != KEYS:
        raise FamilyError(f"a [[{group}]] family has the keys {sorted(row)}, expected exactly {sorted(KEYS)}")
    name, topic = row["family"], row["topic"]
    if not (isinstance(name, str) and name and isinstance(topic, str) and topic):
        raise FamilyError(f"a [[{group}]] family needs a name and a topic, found {name!r} and {topic!r}")
    ask, fill = _texts(row["ask"], name, "ask"), _texts(row["fill"], name, "fill")
    for wording in ask:
        if "{x}" not in wording and "{y}" not in wording:
            raise FamilyError(f"family {name!r}: expected {{x}} or {{y}} in the wording {wording!r}; add one")
    return Family(name, topic, ask, fill)


def _texts(value: object, name: str, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise FamilyError(f"family {name!r}: expected a list of texts in {key!r}, found {value!r}; fill it in")
    return tuple(value)


def make_rows(groups: dict[str, list[Family]]) -> dict[str, list[dict[str, str]]]:
    """The rows of each file, with ids, in their final order."""
    seen: dict[str, str] = {}
    files: dict[str, list[dict[str, str]]] = {}
    for name, (letter, wanted) in FILES.items():
        rows = []
        for family in (family for group in wanted for family in groups[group]):
            for question in family.questions():
                key = " ".join(question.lower().split())
                if key in seen:
                    raise FamilyError(
                        f"expected every question once, found {question!r} in {seen[key]!r} and in "
                        f"{family.family!r}; change one of the two fills"
                    )
                seen[key] = family.family
                rows.append({"question": question, "topic": family.topic, "family": family.family})
        rows.sort(key=lambda row: hashlib.sha256(row["question"].encode()).hexdigest())
        files[name] = [{"id": f"{letter}{number:04d}", **row} for number, row in enumerate(rows, start=1)]
    return files


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", type=Path, default=FAMILIES, help="the TOML file of families")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder to write to, which must exist")
    options = parser.parse_args(arguments)
    try:
        files = make_rows(read_families(options.families))
        if not options.out.is_dir():
            raise FamilyError(f"expected --out to be a folder, found none at {options.out}; make it first")
    except FamilyError as error:
        print(f"make_requests: {error}", file=sys.stderr)
        return 2
    for name, rows in files.items():
        write(rows, options.out / name)
        print(f"{name}: {len(rows)} requests from {len({row['family'] for row in rows})} families")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
