"""The split that never leaks a source, and the mix of origins."""

import pytest

from tasks.errors import DataError
from tasks.training.examples import Candidate, Message, Origin
from tasks.training.recipes import Data, Mix, load_recipe
from tasks.training.splits import choose, group, shares

TURNS = [Message(role="user", content="q"), Message(role="assistant", content="a")]
GIVEN = {"made_by": "test"}


def candidates(sources: int, rows: int, origin: Origin = "curated", mark: str = "") -> list[Candidate]:
    return [
        Candidate(id=f"{mark}s{s}r{r}", messages=TURNS, source=f"{mark}s{s}", origin=origin, provenance=GIVEN)
        for s in range(sources)
        for r in range(rows)
    ]


def data(train: int, held_out: int, rows_per_source: int, validation: int = 0, **mix: float) -> Data:
    changes = {
        "train_rows": train, "held_out_rows": held_out, "validation_rows": validation, "rows_per_source": rows_per_source,
        "mix": Mix(**({"curated": 1.0, "feedback": 1.0, "corpus": 0.0} | mix)),
    }  # fmt: skip
    return load_recipe("smoke_cpu").data.model_copy(update=changes)


def side(chosen: list[Candidate], name: str) -> list[Candidate]:
    return [candidate for candidate in chosen if candidate.split == name]


@pytest.mark.parametrize(
    ("sources", "rows", "train", "held_out", "validation"),
    [(30, 5, 60, 20, 0), (2, 9, 4, 4, 0), (50, 1, 10, 30, 0), (30, 5, 60, 20, 6), (3, 9, 4, 4, 2)],
)
def test_no_source_is_on_two_sides(sources: int, rows: int, train: int, held_out: int, validation: int) -> None:
    found = candidates(sources, rows)
    wanted = data(train, held_out, 4, validation)
    chosen = choose(found, wanted)
    names = ["train", "held_out", *(["validation"] if validation else [])]
    sides = {name: {c.source for c in side(chosen, name)} for name in names}
    assert all(sides.values())
    assert sum(len(found) for found in sides.values()) == len(set().union(*sides.values()))
    for name, most in (("train", train), ("held_out", held_out), ("validation", validation)):
        assert len(side(chosen, name)) <= most
    for source in {c.source for c in chosen}:
        assert sum(c.source == source for c in chosen) <= 4
    assert choose(found[::-1], wanted) == chosen, "the order of the input does not matter"


def test_training_rows_come_from_all_sources() -> None:
    assert len({c.source for c in side(choose(candidates(20, 10), data(12, 8, 10)), "train")}) == 12


@pytest.mark.parametrize(("sources", "validation"), [(1, 0), (2, 10)])
def test_too_few_sources_cannot_be_split(sources: int, validation: int) -> None:
    with pytest.raises(DataError, match="at least two sources"):
        choose(candidates(sources, 50), data(10, 10, 50, validation))


def test_feedback_comes_first_and_is_never_held_out() -> None:
    given = candidates(3, 1, "feedback", "f")
    chosen = choose(given + candidates(40, 2), data(10, 8, 4))
    assert [c.origin for c in side(chosen, "train")] == ["feedback"] * 3 + ["curated"] * 7
    assert {c.origin for c in side(chosen, "held_out")} == {"curated"}
    without = choose(candidates(40, 2), data(10, 8, 4))
    assert side(chosen, "held_out") == side(without, "held_out"), "feedback moves no held-out row"
    assert side(chosen, "train")[3:] == side(without, "train")[:7]


def test_the_mix_is_the_share_of_the_training_rows() -> None:
    found = candidates(40, 2) + candidates(40, 2, "corpus", "c") + candidates(5, 1, "feedback", "f")
    chosen = choose(found, data(40, 8, 4, 6, curated=3.0, feedback=1.0, corpus=1.0))
    counts = {name: sum(group(c) == name for c in side(chosen, "train")) for name in ("curated", "corpus", "feedback")}
    assert counts["feedback"] == 5, "all there is, less than its share of 8"
    assert counts["curated"] + counts["corpus"] == 35
    assert 2.5 <= counts["curated"] / counts["corpus"] <= 3.5
    assert {group(c) for c in side(chosen, "held_out")} == {"curated", "corpus"}


def test_feedback_alone_is_split_too() -> None:
    chosen = choose(candidates(40, 1, "feedback"), data(20, 8, 4))
    assert (len(side(chosen, "train")), len(side(chosen, "held_out"))) == (20, 8)


def test_a_source_of_two_origins_stays_on_one_side() -> None:
    chosen = choose(candidates(30, 2) + [c.model_copy(update={"id": f"c{c.id}", "origin": "corpus"}) for c in candidates(30, 2)],
                    data(40, 12, 4, 6, corpus=1.0))  # fmt: skip
    sides = [{c.source for c in side(chosen, name)} for name in ("train", "validation", "held_out")]
    assert sum(map(len, sides)) == len(set().union(*sides))


@pytest.mark.parametrize(
    ("total", "weights", "available", "expected"),
    [
        (10, {"a": 1, "b": 1}, {"a": 100, "b": 100}, {"a": 5, "b": 5}),
        (10, {"a": 1, "b": 1}, {"a": 2, "b": 100}, {"a": 2, "b": 8}),
        (10, {"a": 1, "b": 0}, {"a": 4, "b": 100}, {"a": 4, "b": 0}),
        (7, {"a": 3, "b": 1, "c": 1}, {"a": 100, "b": 100, "c": 1}, {"a": 5, "b": 1, "c": 1}),
        (5, {"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1}),
        (3, {"a": 1, "b": 1}, {}, {"a": 0, "b": 0}),
    ],
)
def test_shares(total: int, weights: dict[str, float], available: dict[str, int], expected: dict[str, int]) -> None:
    assert shares(total, weights, available) == expected
