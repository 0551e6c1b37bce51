from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.evaluate.resampling import Estimate
from pipeline.registry.gate import decide
from pipeline.registry.options import GateOptions


def _estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 100)


def test_a_clear_gain_is_promoted_with_its_figures() -> None:
    decision = decide({"top1": _estimate(0.9)}, {"top1": _estimate(0.8)}, GateOptions())
    assert decision.promote
    assert decision.to_dict()["metrics"]["top1"]["gain"] == pytest.approx(0.1)


def test_a_gain_within_the_interval_is_not() -> None:
    decision = decide({"top1": _estimate(0.81)}, {"top1": _estimate(0.80)}, GateOptions())
    assert not decision.promote
    assert "not better by more than its interval" in decision.reason


def test_not_being_worse_is_enough_when_asked() -> None:
    gate = GateOptions(require_improvement=False)
    assert decide({"top1": _estimate(0.80)}, {"top1": _estimate(0.80)}, gate).promote
    assert not decide({"top1": _estimate(0.70)}, {"top1": _estimate(0.80)}, gate).promote


def test_one_modality_that_falls_too_far_blocks() -> None:
    candidate = {"psnr/video": _estimate(30.0), "psnr/audio": _estimate(19.0)}
    champion = {"psnr/video": _estimate(25.0), "psnr/audio": _estimate(20.0)}
    decision = decide(candidate, champion, GateOptions(maximum_modality_loss=0.02))
    assert not decision.promote
    assert "psnr/audio" in decision.reason
    assert decide(candidate, champion, GateOptions(maximum_modality_loss=0.1)).promote


def test_less_loss_is_better() -> None:
    assert decide({"loss": _estimate(0.5)}, {"loss": _estimate(0.9)}, GateOptions()).promote
    assert not decide({"loss": _estimate(0.9)}, {"loss": _estimate(0.5)}, GateOptions()).promote


def test_a_candidate_that_gives_no_number_is_not_promoted() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    assert not decide({"top1": nothing}, {"top1": _estimate(0.1)}, GateOptions()).promote
    better = {"top1": _estimate(0.9), "other": nothing}
    assert not decide(better, {"top1": _estimate(0.1), "other": _estimate(0.1)}, GateOptions()).promote


def test_metrics_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(UserError, match="share no metric"):
        decide({"top1": _estimate(1)}, {"psnr": _estimate(1)}, GateOptions())
    with pytest.raises(UserError, match="did you mean 'top1'"):
        decide({"top1": _estimate(1)}, {"top1": _estimate(1)}, GateOptions(metric="top_1"))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.2))
def test_two_versions_never_each_replace_the_other(first: float, second: float, half: float) -> None:
    one, other = {"top1": _estimate(first, half)}, {"top1": _estimate(second, half)}
    assert not (decide(one, other, GateOptions()).promote and decide(other, one, GateOptions()).promote)
