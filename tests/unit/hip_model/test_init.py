"""Initial distributions, as the specification's section 8 gives them."""

from __future__ import annotations

import math

import pytest
import torch

from hip_model import HiP, Modality
from hip_model.init import Linear, Table
from hip_model.variants import HIP_VARIANTS


@pytest.mark.parametrize(
    ("module", "fan_in"), [(Linear(64, 4096), 64), (Table(400, 512), 400), (Linear(512, 256), 512)]
)
def test_weights_are_truncated_normals_scaled_by_fan_in(module: Linear | Table, fan_in: int) -> None:
    weight = module.weight.detach().double()
    std = 1 / math.sqrt(fan_in)
    assert float(weight.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * std
    assert 2.2 * std < float(weight.abs().max()) <= 2.2738 * std
    # A normal cut at two deviations has less in its tails than an uncut one: kurtosis 2.37 and not 3.
    assert float(((weight / weight.std()) ** 4).mean()) == pytest.approx(2.365, abs=0.05)


def test_every_parameter_of_a_fresh_model() -> None:
    model = HiP(HIP_VARIANTS["hip_micro"], [Modality("image", 1024, 3)])
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias") or name.startswith("unembed."):
            assert bool((parameter == 0).all()), name
        else:
            table = name.startswith("positions.") or ".latents." in name
            fan_in = parameter.shape[0] if table else parameter.shape[1]
            bound = 2.2738 / math.sqrt(fan_in)
            assert 0 < float(parameter.detach().abs().max()) <= bound, name
            if parameter.numel() > 2000:
                assert float(parameter.detach().std()) == pytest.approx(1 / math.sqrt(fan_in), rel=0.1), name


def test_the_way_back_through_a_weight_gives_the_two_parts_of_a_score() -> None:
    layer = Linear(3, 5)
    with torch.no_grad():
        layer.bias.normal_()
    x, y = torch.randn(2, 5), torch.randn(2, 3)
    back, constant = layer(x, transposed=True)
    torch.testing.assert_close((back * y).sum(-1) + constant, (x * layer(y)).sum(-1))
