"""`python -m tasks choose-min-score`: the arithmetic, and the tool over a real index in Postgres."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.database import connect, migrate
from tasks.errors import DataError
from tasks.serving.min_score import choose, unanswerable
from tasks.settings import settings
from tests.knowledge.syncing import environment_of

from .conftest import CHUNKS


@pytest.mark.parametrize(
    ("golden", "refused", "threshold", "lost"),
    [
        ([0.5, 0.6, 0.7, 0.8], 0.0, 0.5, 0.0),
        ([0.8, 0.5, 0.7, 0.6], 0.25, 0.6, 0.25),
        ([0.5, 0.6, 0.7, 0.8], 0.49, 0.6, 0.25),
        ([0.5, 0.5, 0.5, 0.8], 0.5, 0.5, 0.0),
        ([0.50009], 0.99, 0.5, 0.0),
        ([number / 100 for number in range(100)], 0.05, 0.05, 0.05),
    ],
)
def test_the_threshold_refuses_at_most_the_share(
    golden: list[float], refused: float, threshold: float, lost: float
) -> None:
    found = choose(golden, [0.1, 0.55, 0.65, 0.9], refused)
    assert (found.threshold, found.golden_refused) == (threshold, lost) and found.golden_refused <= refused
    assert found.others_refused == sum(score < threshold for score in (0.1, 0.55, 0.65, 0.9)) / 4


def test_of_the_demos_questions_those_about_the_language_are_answerable() -> None:
    found = unanswerable("examples/requests_after.jsonl")
    assert 250 < len(found) < 297 and "How does Python decide to call __iadd__?" not in found


def test_a_file_of_ones_own_is_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "one"}\n\n{"question": "two", "family": "stay-here"}\n')
    assert unanswerable(str(tmp_path / "q.jsonl")) == ["one", "two"]
    (tmp_path / "q.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match="line 1"):
        unanswerable(str(tmp_path / "q.jsonl"))


@pytest.mark.parametrize(
    "arguments",
    [["--refused", "1"], ["--refused", "x"], ["--refused", "-0.1"], ["--version", "x"], ["--unansweable", "f"]],
)
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choose-min-score", *arguments]) == 2
    assert "choose-min-score" in capsys.readouterr().err


@pytest.fixture
def indexed(stack: Any, new_database: Any, tmp_path: Path) -> Iterator[int]:
    """CHUNKS as the current index version, a golden question for each, in a database of our own."""
    from .test_serving_integration import build_index

    golden = tmp_path / "golden.jsonl"
    golden.write_text(
        "".join(
            json.dumps({"id": chunk.chunk_id, "question": chunk.text, "documents": [chunk.document_uri]}) + "\n"
            for chunk in CHUNKS
        )
    )
    values = stack.env | {
        "MILLRACE_DATABASE_URL": new_database("min_score"), "MILLRACE_GOLDEN_QUESTIONS": str(golden),
    }  # fmt: skip
    with environment_of(values):
        migrate(values["MILLRACE_DATABASE_URL"])
        yield build_index(settings())[1]


def tables() -> list[Any]:
    with connect() as connection:
        names = connection.execute("SELECT relname, n_live_tup FROM pg_stat_user_tables ORDER BY 1").fetchall()
        written = connection.execute(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) AS n FROM pg_stat_user_tables"
        ).fetchall()
    return [*names, *written]


@pytest.mark.integration
def test_the_tool_tells_questions_apart_and_writes_nothing(
    indexed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others.jsonl"
    asked = ["Which wine goes with roast duck?", "How tall is the Eiffel tower?", CHUNKS[0].text]
    others.write_text("".join(json.dumps({"question": question}) + "\n" for question in asked))
    before = tables()
    assert main(["choose-min-score", "--version", str(indexed), "--unanswerable", str(others), "--refused", "0.0"]) == 0
    out = capsys.readouterr().out
    assert "3 golden questions" in out and "3 questions of" in out
    row = next(line.split() for line in out.splitlines() if line.endswith("<- at most as asked for"))
    assert row[1:3] == ["0.0%", "66.7%"], "wine and tower are refused, what is a document's own text is not"
    setting = out.splitlines()[-1]
    assert setting == f"MILLRACE_ASSISTANT_MIN_SCORE={row[0]}" and 0.9 < float(row[0]) <= 1
    assert tables() == before
    assert main(["choose-min-score", "--version", "999", "--unanswerable", str(others)]) == 2
