"""When a training saves, and when it stops."""

import math

import pytest

from tasks.training.limits import RECENT, LossWatch, Patience, SaveClock
from tasks.training.recipes import Checkpoints, Stopping


def stopping(**changes: float) -> Stopping:
    values = {"evaluate_every_steps": 1, "patience": 2, "min_improvement": 0.1, "spike_factor": 2.0, "spike_steps": 3}
    return Stopping.model_validate(values | changes)


def test_no_more_than_the_stated_minutes_are_lost() -> None:
    clock = SaveClock(Checkpoints(max_lost_minutes=5, every_steps=None, keep=2), now=0.0)
    assert not clock.due(1, step_seconds=50, now=200)
    assert clock.due(2, step_seconds=50, now=251), "the next step would end after five minutes"
    clock.saved(seconds=1, now=252)
    assert not clock.due(3, step_seconds=50, now=300)


def test_checkpoints_that_are_slow_are_made_less_often() -> None:
    clock = SaveClock(Checkpoints(max_lost_minutes=5, every_steps=None, keep=2), now=0.0)
    clock.saved(seconds=30, now=0)
    assert not clock.due(1, step_seconds=1, now=500), "30 s in 300 s would be a tenth of the time"
    assert clock.due(1, step_seconds=1, now=601)


def test_a_fixed_interval_counts_steps() -> None:
    clock = SaveClock(Checkpoints(max_lost_minutes=5, every_steps=4, keep=2), now=0.0)
    assert [step for step in range(1, 9) if clock.due(step, 1, 10_000)] == [4, 8]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_wrong_at_once(loss: float) -> None:
    assert "a loss of" in str(LossWatch(Stopping()).wrong(loss))


def test_a_loss_that_stays_high_is_wrong_and_a_single_peak_is_not() -> None:
    watch = LossWatch(stopping())
    for _ in range(RECENT):
        assert watch.wrong(1.0) is None
    assert [watch.wrong(loss) for loss in (9.0, 9.0, 1.0, 9.0, 9.0)] == [None] * 5
    assert "3 losses in a row above 2 times the usual 1.000" in str(watch.wrong(9.0))


def test_a_training_goes_on_with_what_it_knew() -> None:
    watch, patience = LossWatch(stopping()), Patience(stopping())
    for _ in range(RECENT):
        watch.wrong(1.0)
    watch.wrong(5.0)
    patience.improved(2.0, 1)
    patience.improved(1.95, 2)
    again, other = LossWatch(stopping()), Patience(stopping())
    again.restore(watch.state())
    other.restore(patience.state())
    assert (again.high, other.best, other.best_step, other.bad) == (1, 2.0, 1, 1)
    assert [again.wrong(5.0) for _ in range(2)][-1]


def test_patience_ends_after_losses_that_are_no_better() -> None:
    patience = Patience(stopping())
    assert patience.improved(1.0, 1)
    assert not patience.improved(0.95, 2), "better, but by less than min_improvement"
    assert not patience.exhausted
    assert not patience.improved(math.nan, 3)
    assert patience.exhausted
    never = Patience(Stopping())
    never.improved(math.nan, 1)
    assert not never.exhausted
