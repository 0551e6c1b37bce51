"""What counts as a bad step."""

import math
from dataclasses import replace

import pytest

from pipeline.train.guards import Guard
from pipeline.train.options import GuardOptions
from pipeline.train.steps import StepFacts

GOOD = StepFacts(1, 8, 1.0, {}, {}, 1.0, True, 1e-3, 0.1, 0.0, 0)


def warmed_up(losses: list[float]) -> Guard:
    guard = Guard(GuardOptions(spike_window=16, spike_deviations=10))
    guard.losses.extend(losses)
    return guard


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (GOOD, None),
        (replace(GOOD, loss=math.nan), "non_finite_loss"),
        (replace(GOOD, loss=math.inf), "non_finite_loss"),
        (replace(GOOD, applied=False), "skipped_steps"),
        (replace(GOOD, gradient_norm=math.nan), "skipped_steps"),
        (replace(GOOD, loss=1.5), None),
        (replace(GOOD, loss=2.1), "loss_spikes"),
        (replace(GOOD, loss=0.0), None),
    ],
)
def test_a_step_is_judged(facts: StepFacts, reason: str | None) -> None:
    assert warmed_up([0.9, 1.0, 1.1] * 5).judge(facts) == reason  # median 1, deviation 0.1: a spike is above 2


def test_nothing_is_a_spike_before_enough_was_seen() -> None:
    assert warmed_up([1.0] * 7).judge(replace(GOOD, loss=1e9)) is None
    assert warmed_up([1.0] * 8).judge(replace(GOOD, loss=1e9)) == "loss_spikes"


def test_an_outlier_does_not_hide_the_next_one() -> None:
    guard = warmed_up([1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 50.0])
    assert guard.spike_threshold() < 3


def test_the_memory_of_a_guard_survives_a_restart() -> None:
    guard = warmed_up([1.0] * 10)
    guard.counts["loss_spikes"], guard.rollbacks, guard.consecutive = 3, 1, 2
    other = Guard(guard.options)
    other.load_state(guard.state())
    assert other.state() == guard.state()
    assert not other.is_healthy
