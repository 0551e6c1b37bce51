"""The update ratio is the norm of the last step over the norm of all weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.train.guards import Guard
from pipeline.train.metrics import Metrics
from pipeline.train.options import GuardOptions


def test_update_ratio_is_the_norm_of_the_update_over_that_of_the_weights():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    trainer = SimpleNamespace(
        rank=0,
        state=SimpleNamespace(step=4),
        options=SimpleNamespace(metrics=SimpleNamespace(every_steps=5), engine=SimpleNamespace(stage=0)),
        engine=SimpleNamespace(module=module),
    )
    metrics = Metrics(Guard(GuardOptions()), 1, 1.0, None)
    metrics.on_step(trainer)  # the step before the last of an interval
    before = torch.cat([p.detach().flatten() for p in module.parameters()])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    expected = float((after - before).norm() / after.norm())
    assert metrics.update_ratio(trainer) == pytest.approx(expected, rel=1e-5)
