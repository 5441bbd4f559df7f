"""The example data: it parses, it is complete, the golden questions are answered where they say, and the
requests are what their maker writes. Needs the standard library and pytest, nothing running.

golden_evidence.json holds, for each golden question, short phrases of the topics that answer it. A topic is
named by the question if and only if it holds one of them, so a wrong or a forgotten document fails here.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from examples import make_requests
from tasks.evaluation.probes import Choice, Items, Json, load_format, load_safety
from tasks.evaluation.scorers import refused, valid
from tasks.storage import Storage

EXAMPLES = Path(make_requests.__file__).parent
PREFIX = "pydoc:topics/"


def rows(name: str) -> list[dict[str, Any]]:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def plain(text: str) -> str:
    """Curly quotes straight, and any run of blanks one space: phrases may cross a line end."""
    return " ".join(text.translate(str.maketrans("’‘“”", "''\"\"")).split())


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9_']+", plain(text).lower())


FIELDS = {
    "golden_questions.jsonl": ["id", "question", "documents", "answer"],
    "requests_before.jsonl": ["id", "question", "topic", "family"],
    "requests_after.jsonl": ["id", "question", "topic", "family"],
    "corrections.jsonl": ["request_id", "question", "answer", "rating"],
}


PROBES = ("probes/safety.jsonl", "probes/format.jsonl")


@pytest.mark.parametrize("name", FIELDS)
def test_rows_have_their_fields_and_come_sorted(name: str) -> None:
    found = rows(name)
    key = FIELDS[name][0]
    assert all(list(row) == FIELDS[name] for row in found)
    assert all(value for row in found for value in row.values())
    ids = [row[key] for row in found]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("golden_questions.jsonl", 72, 999),
        ("requests_before.jsonl", 240, 9999),
        ("requests_after.jsonl", 240, 9999),
        ("corrections.jsonl", 24, 40),
    ],
)
def test_there_are_enough_rows(name: str, least: int, most: int) -> None:
    assert least <= len(rows(name)) <= most


def test_the_row_counts_in_the_readme_are_true() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w/]+\.jsonl)` \| (\d+) \|", readme, flags=re.MULTILINE))
    assert table == {name: str(len(rows(name))) for name in (*FIELDS, *PROBES)}


def test_no_question_appears_twice() -> None:
    questions = [
        " ".join(row["question"].lower().split())
        for name in ("golden_questions.jsonl", "requests_before.jsonl", "requests_after.jsonl", *PROBES)
        for row in rows(name)
    ]
    assert [question for question, times in Counter(questions).items() if times > 1] == []


# ---- golden questions


def test_golden_documents_exist_and_cover_the_corpus() -> None:
    named = [uri for row in rows("golden_questions.jsonl") for uri in row["documents"]]
    assert all(uri.startswith(PREFIX) for uri in named)
    keys = {uri.removeprefix(PREFIX) for uri in named}
    assert keys <= set(topics)
    assert len(keys) >= 55
    assert all(len(set(row["documents"])) == len(row["documents"]) for row in rows("golden_questions.jsonl"))


def test_golden_documents_are_exactly_those_that_hold_the_answer() -> None:
    evidence = json.loads((Path(__file__).parent / "golden_evidence.json").read_text(encoding="utf-8"))
    texts = {key: plain(text) for key, text in topics.items()}
    golden = rows("golden_questions.jsonl")
    assert list(evidence) == [row["id"] for row in golden]
    wrong = {}
    for row in golden:
        holders = {phrase: {key for key, text in texts.items() if phrase in text} for phrase in evidence[row["id"]]}
        assert all(holders.values()), f"{row['id']}: a phrase is in no topic: {holders}"
        found = sorted(PREFIX + key for key in set.union(*holders.values()))
        if found != row["documents"]:
            wrong[row["id"]] = found
    assert wrong == {}


def test_golden_questions_copy_no_sentence_of_the_corpus() -> None:
    size = 8
    corpus = set()
    for text in topics.values():
        of_topic = words(text)
        corpus |= {tuple(of_topic[i : i + size]) for i in range(len(of_topic) - size + 1)}
    for row in rows("golden_questions.jsonl"):
        for field in ("question", "answer"):
            mine = words(row[field])
            copied = [run for i in range(len(mine) - size + 1) if (run := tuple(mine[i : i + size])) in corpus]
            assert copied == [], f"{row['id']} {field}"


# ---- requests


def test_the_committed_requests_are_what_the_maker_writes(tmp_path: Path) -> None:
    assert make_requests.main(["--out", str(tmp_path)]) == 0
    for name in make_requests.FILES:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes(), (
            f"{name} is not what the families give; run: python -m examples.make_requests"
        )


def test_families_are_many_and_none_is_large() -> None:
    for name in make_requests.FILES:
        sizes = Counter(row["family"] for row in rows(name))
        assert len(sizes) >= 40
        assert max(sizes.values()) <= 10


def test_about_a_tenth_of_after_is_still_about_the_language() -> None:
    after = rows("requests_after.jsonl")
    language = {row["topic"] for row in rows("requests_before.jsonl")}
    staying = [row for row in after if row["family"].startswith("stay-")]
    assert 0.05 <= len(staying) / len(after) <= 0.15
    assert {row["topic"] for row in staying} <= language
    assert not language & {row["topic"] for row in after if row not in staying}


def divergence(left: list[str], right: list[str]) -> float:
    """Jensen-Shannon divergence of two lists of words, in bits: 0 the same, 1 nothing in common."""
    total = 0.0
    a, b = Counter(left), Counter(right)
    for word in a.keys() | b.keys():
        p, q = a[word] / len(left), b[word] / len(right)
        middle = (p + q) / 2
        total += sum(x / 2 * math.log2(x / middle) for x in (p, q) if x)
    return total


def test_the_vocabulary_shifts_more_than_chance() -> None:
    before = [words(row["question"]) for row in rows("requests_before.jsonl")]
    after = [words(row["question"]) for row in rows("requests_after.jsonl")]

    def flat(part: list[list[str]]) -> list[str]:
        return [word for question in part for word in question]

    shift = divergence(flat(before[::2]), flat(after[::2]))
    chance = divergence(flat(before[::2]), flat(before[1::2]))
    assert shift > 2 * chance, (shift, chance)
    corpus = set(words(" ".join(topics.values())))
    unknown = {
        name: sum(word not in corpus for word in flat(part)) / len(flat(part))
        for name, part in (("before", before), ("after", after))
    }
    assert unknown["after"] > 2 * unknown["before"], unknown


GOOD = '[[before]]\nfamily="f1"\ntopic="t"\nask=["A {x}?"]\nfill=["1"]\n'
REST = '[[after]]\nfamily="f2"\ntopic="t"\nask=["B {x}?"]\nfill=["1"]\n[[stay]]\nfamily="f3"\ntopic="t"\nask=["C {x}?"]\nfill=["1"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "expected a TOML file"),
        (REST, "at least one [[before]] family"),
        (GOOD.replace("fill", "fills") + REST, "expected exactly"),
        (GOOD.replace('["1"]', "[]") + REST, "expected a list of texts"),
        (GOOD.replace("{x}", "") + REST, "expected {x} or {y}"),
        (GOOD.replace("{x}", "{x} {y}") + REST, "expected a wording for the fill"),
        (GOOD.replace("A {x}", "B {x}") + REST, "expected every question once"),
        (GOOD.replace("f1", "f2") + REST, "family names to be unique"),
        ('[other]\na="b"\n' + GOOD + REST, "expected the groups"),
    ],
)
def test_bad_families_end_with_one_message_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    families = tmp_path / "families.toml"
    families.write_text(text, encoding="utf-8")
    assert make_requests.main(["--families", str(families), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.jsonl")) == []


def test_an_output_folder_that_is_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_requests.main(["--out", str(tmp_path / "nowhere")]) == 2
    assert "expected --out to be a folder" in capsys.readouterr().err


# ---- corrections


def test_corrections_answer_requests_about_the_new_subject() -> None:
    after = {row["id"]: row for row in rows("requests_after.jsonl")}
    for row in rows("corrections.jsonl"):
        request = after[row["request_id"]]
        assert row["question"] == request["question"]
        assert not request["family"].startswith("stay-")
        assert row["rating"] == "down"
        assert len(row["answer"]) <= 240


# ---- probes


def test_probes_are_read_by_their_own_reader_and_come_sorted() -> None:
    storage = Storage(None)
    for found, least in ((load_safety("examples/probes", storage), 24), (load_format("examples/probes", storage), 12)):
        ids = [row.id for row in found]
        assert len(ids) >= least
        assert ids == sorted(ids)


def test_each_safety_probe_can_be_followed_and_seen_to_be() -> None:
    """What must not be said is asked for by the question, or stands in the context: nobody says it by chance."""
    found = load_safety("examples/probes", Storage(None))
    assert Counter(row.kind for row in found) == {"harmful": 8, "injection": 8, "personal": 8}
    for row in found:
        for text in row.followed:
            assert text in (row.question if row.kind == "harmful" else row.context), row.id
            assert row.kind == "harmful" or text not in row.question, row.id
            # At the beginning: recipes ask for answers of 16 tokens, and more of them would show nothing new.
            assert row.kind != "harmful" or re.search(rf"Begin( it)? with: (def )?{re.escape(text)}$", row.question), (
                row.id
            )
            assert [other.id for other in found if not refused(f"{other.question} {other.context}", [text])] == [row.id]


def test_the_form_that_is_asked_for_can_be_given() -> None:
    given = {
        "json": "{}",
        "list": "- a\n- b",
        "choice": "yes",
        "number": "3",
        "words": "It ends it.",
        "date": "2031-01-02",
    }
    found = load_format("examples/probes", Storage(None))
    assert {row.form.type for row in found} == set(given)
    for row in found:
        answer = given[row.form.type]
        if isinstance(row.form, Json):
            answer = json.dumps(dict.fromkeys(row.form.keys, "x"))
        if isinstance(row.form, Items):
            answer = "\n".join(f"- {n}" for n in range(row.form.items))
        if isinstance(row.form, Choice):
            answer = row.form.of[0]
            assert all(word in row.question for word in row.form.of)
        assert valid(answer, row.form), row.id
        assert not valid(row.question, row.form), row.id
