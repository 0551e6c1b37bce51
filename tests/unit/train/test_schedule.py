"""The learning rate as a function of the step."""

from itertools import pairwise

import pytest

from pipeline.train.options import ScheduleOptions
from pipeline.train.schedule import learning_rate_scale


@pytest.mark.parametrize("kind", ["warmup_cosine", "constant_cosine", "constant", "step"])
def test_every_schedule_starts_above_zero_and_never_exceeds_the_peak(kind: str) -> None:
    options = ScheduleOptions(kind=kind)
    scales = [learning_rate_scale(options, step, 200) for step in range(200)]
    assert scales[0] > 0
    assert max(scales) == pytest.approx(1.0)
    assert min(scales) >= 0


def test_warm_up_is_linear_and_the_cosine_ends_at_the_final_scale() -> None:
    options = ScheduleOptions(warmup_share=0.1, final_scale=0.2)
    scales = [learning_rate_scale(options, step, 100) for step in range(101)]
    assert scales[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert scales[10] == pytest.approx(1.0)
    assert scales[55] == pytest.approx(0.6)
    assert scales[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(scales[10:]))


def test_steps_drop_at_their_shares() -> None:
    options = ScheduleOptions(kind="step", warmup_share=0, milestone_shares=(0.5, 0.75), milestone_factor=0.1)
    found = [learning_rate_scale(options, step, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_then_cosine_is_flat_until_its_share() -> None:
    options = ScheduleOptions(kind="constant_cosine", warmup_share=0, constant_share=0.5)
    assert {learning_rate_scale(options, step, 100) for step in range(51)} == {1.0}
    assert learning_rate_scale(options, 75, 100) == pytest.approx(0.5)
