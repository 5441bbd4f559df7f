"""Two windows compared: what moved, what is harm, and whose doing it was."""

from typing import Any

import numpy
import pytest

from tasks.errors import DataError
from tasks.monitoring.compare import Compared, compare, p_values_of
from tasks.monitoring.evidently_report import report
from tasks.monitoring.figures import EMBEDDING, SHARES, pairs
from tasks.monitoring.topics import topics
from tasks.monitoring.window import Window

from .windows import joined, made

REFERENCE = made(1500, 1)


def compared(current: Window) -> Compared:
    return compare(REFERENCE, current, alpha=0.01, least=100)


def test_the_same_kind_of_requests_is_no_drift() -> None:
    assert compared(made(600, 2)).drifted == []


def test_a_tenth_without_a_good_hit_is_found_although_the_median_stays() -> None:
    found = compared(joined(made(540, 3), made(60, 4, (9,), best_score=0.2)))
    assert "no_good_hit" in found.harm and not found.tests["best_score"].drifted
    assert EMBEDDING in found.drifted and EMBEDDING not in found.harm


def test_better_is_no_harm() -> None:
    found = compared(made(600, 5, best_score=lambda random: 0.8 + 0.05 * random.random()))
    assert "best_score" in found.drifted and found.harm == []


def test_worse_answers_are_told_from_worse_searches() -> None:
    found = compared(
        made(600, 6, grounded=lambda random: 0.3 * random.random(), negative=lambda r: float(r.random() < 0.6))
    )
    assert set(found.harm) == {"grounded", "ungrounded", "negative"}


def test_a_significant_change_must_also_matter() -> None:
    found = compare(
        made(20_000, 7), made(20_000, 8, latency_ms=lambda random: random.gamma(8, 110)), alpha=0.01, least=100
    )
    assert found.tests["latency_ms"].p_adjusted < 1e-6 and not found.tests["latency_ms"].drifted


def test_what_one_client_did_is_set_aside() -> None:
    flood = made(250, 9, (9,), best_score=0.2, client=77)
    found = compared(joined(made(500, 10), flood))
    assert "no_good_hit" in found.harm and found.surges["client"] == pytest.approx(1 / 3)
    assert found.without is not None and found.without.harm == [] and found.set_aside == 250


def test_one_question_asked_again_and_again_is_set_aside() -> None:
    found = compared(joined(made(500, 11), made(100, 12, (9,), best_score=0.2, asked=5)))
    assert found.without is not None and found.without.harm == [] and "question" in found.surges


def test_a_deployment_with_one_client_sets_nobody_aside() -> None:
    reference, current = (made(600, seed, client=1) for seed in (13, 14))
    assert compare(reference, current, alpha=0.01, least=100).surges == {}


def test_a_client_that_always_was_much_of_the_traffic_is_the_traffic() -> None:
    before = joined(made(900, 23, client=1), made(600, 24))
    after = joined(made(450, 25, (9,), client=1, best_score=0.2), made(150, 26))
    found = compare(before, after, alpha=0.01, least=100)
    assert found.surges == {} and "no_good_hit" in found.lasting


def test_a_night_of_one_new_client_is_its_doing() -> None:
    found = compared(joined(made(40, 27), made(500, 28, (9,), best_score=0.2, client=77)))
    assert "no_good_hit" in found.harm and found.lasting == []
    assert not any(test.harm for test in found.judged.values()) and found.judged


def test_harm_that_only_the_rest_shows_is_none() -> None:
    """Without its loudest client a team that always scored lower is left: that is no harm of this night."""
    low = made(700, 29, best_score=lambda random: 0.4 + 0.05 * random.standard_normal(), client=5)
    reference = joined(made(800, 30, client=6), low)
    bad = made(500, 31, client=77, negative=lambda random: float(random.random() < 0.9))
    current = joined(bad, made(100, 32, best_score=lambda random: 0.4 + 0.05 * random.standard_normal(), client=5))
    found = compare(reference, current, alpha=0.01, least=90)
    assert "negative" in found.harm and found.without is not None and "best_score" in found.without.harm
    assert found.lasting == []


def test_a_tail_of_equal_values_is_compared_all_the_same() -> None:
    def sometimes(share: float) -> Any:
        return lambda random: 0.0 if random.random() < share else 0.7 + 0.05 * random.standard_normal()

    found = compare(
        made(1500, 33, grounded=sometimes(0.06)), made(600, 34, grounded=sometimes(0.3)), alpha=0.01, least=100
    )
    assert "ungrounded" in found.harm


def test_ratings_are_few_and_tested_all_the_same() -> None:
    found = compared(
        made(150, 15, negative=lambda random: float(random.random() < 0.9) if random.random() < 0.3 else None)
    )
    assert found.tests["negative"].current_rows < 100 and "negative" in found.harm


def test_what_cannot_be_tested_says_why() -> None:
    found = compared(made(150, 16, vector=None, grounded=None))
    assert found.skipped["grounded"] == "1500 and 0 values, 100 needed"
    assert "0 vectors" in found.skipped[EMBEDDING]
    assert found.skipped["failed"] == "always 0"


def test_evidently_tests_as_we_do() -> None:
    found, _ = pairs(REFERENCE, made(700, 17, failed=lambda random: float(random.random() < 0.3)), 100)
    columns = [{name: pair[side].tolist() for name, pair in found.items()} for side in (0, 1)]
    sizes = [max(map(len, side.values())) for side in columns]
    padded = [
        {name: [*values, *([None] * (size - len(values)))] for name, values in side.items()}
        for side, size in zip(columns, sizes, strict=True)
    ]
    shares = [name for name in found if name in SHARES]
    theirs = report(padded[0], padded[1], [name for name in found if name not in shares], shares, 0.01).p_values
    ours = p_values_of(found)
    for name in found:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6, abs=1e-12), name


def test_a_window_survives_its_bytes() -> None:
    side = made(40, 18, vector=lambda random: None if random.random() < 0.5 else numpy.ones(3, numpy.float32))
    again = Window.from_bytes(side.to_bytes())
    assert again.ids.tolist() == side.ids.tolist() and (again.vectors == side.vectors).all()
    kept = side.take(side.at > side.at[19])
    assert len(kept) == 20 and len(kept.vectors) == (kept.vector >= 0).sum()
    with pytest.raises(DataError, match="expected a window"):
        Window.from_bytes(b"nothing")


def test_topics_that_appear_and_grow_are_named_by_their_questions() -> None:
    current = joined(made(400, 19), made(80, 20, (9,)), made(150, 21, (2,)))
    found = topics(REFERENCE.vectors, current.vectors)
    appeared = [topic for topic in found.changed if topic.kind == "appeared"]
    grew = [topic for topic in found.changed if topic.kind == "grew"]
    assert appeared[0].now == pytest.approx(80 / 630, abs=0.02)
    assert all(400 <= position < 480 for position in appeared[0].examples)
    assert len(grew) == 1 and grew[0].now > grew[0].before + 0.04
    assert found.p_value < 1e-6 and found.moved > 0.1


def test_the_same_topics_do_not_change() -> None:
    found = topics(REFERENCE.vectors, made(600, 22).vectors)
    assert found.changed == [] and found.p_value > 0.001
