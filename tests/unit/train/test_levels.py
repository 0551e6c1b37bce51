"""Norms by level: names, and that Adam's memory of a steady gradient is that gradient."""

import pytest
import torch
from torch import nn

from pipeline.train.engine import ParameterState
from pipeline.train.levels import gradient_norms, level_of


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("model.blocks.3.attend.query.weight", "block_03"),
        ("model.positions.video.table", "positions"),
        ("blocks.12.norm.bias", "block_12"),
    ],
)
def test_a_parameter_belongs_to_its_block_or_to_the_module_at_the_top(name: str, level: str) -> None:
    assert level_of(name) == level


@pytest.mark.parametrize("steps", [1, 7, 300])
def test_a_steady_gradient_has_its_own_norm(steps: int) -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95))
    for _ in range(steps):
        parameter.grad = torch.full((4,), 0.5)
        optimizer.step()
    state = ParameterState(parameter, {"exp_avg_sq": optimizer.state[parameter]["exp_avg_sq"]})
    found = gradient_norms([("model.blocks.0.weight", state)], 0.95, steps)
    assert found == {"gradients/block_00": pytest.approx(1.0, rel=1e-4)}  # four values of 0.5
