"""What a step leaves behind until the workers look at it."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.train.engine import StepResult
from pipeline.train.steps import StepRecord, gather


def record_with(norm: float | torch.Tensor) -> StepRecord:
    record = StepRecord(
        step=1,
        examples_consumed=4,
        learning_rate=0.1,
        example_ids=torch.arange(4),
        global_batch_size=4,
        modalities=("image",),
        wait_seconds=0.0,
        result=StepResult(True, norm),
    )
    loss, seen = torch.tensor(2.0), torch.tensor(4)
    record.add(loss, {"image": loss}, {"image": torch.tensor(10.0)}, {"image": seen})
    return record


@pytest.mark.parametrize("norm", [1.5, torch.tensor(1.5), torch.tensor(1.5, dtype=torch.bfloat16)])
def test_a_gradient_norm_is_read_when_workers_gather_whatever_it_is_kept_as(norm: float | torch.Tensor) -> None:
    (facts,) = gather([record_with(norm)], workers=1, stop_code=0)
    assert facts.gradient_norm == 1.5
    assert (facts.loss, facts.per_modality_loss, facts.psnr) == (
        2.0,
        {"image": 2.0},
        {"image": pytest.approx(10.0)},
    )


@pytest.mark.parametrize("norm", [math.inf, torch.tensor(math.nan)])
def test_an_unknown_gradient_norm_stays_unknown(norm: float | torch.Tensor) -> None:
    (facts,) = gather([record_with(norm)], workers=1, stop_code=0)
    assert not math.isfinite(facts.gradient_norm)
    assert facts.loss == 2.0


def test_decibels_are_of_the_mean_error_however_a_batch_is_cut() -> None:
    """10 dB is an error of 0.1 of the squared peak, 20 dB one of 0.01; their mean over 4 and 12 tokens is 0.0325."""
    record, loss = record_with(1.0), torch.tensor(1.0)
    record.add(loss, {"image": loss}, {"image": torch.tensor(20.0)}, {"image": torch.tensor(12)})
    (facts,) = gather([record], workers=1, stop_code=0)
    assert facts.psnr["image"] == pytest.approx(-10 * math.log10(0.0325), rel=1e-6)
