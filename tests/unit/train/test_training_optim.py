"""Groups by parameter name, LAMB, the refusal of non-finite gradients, and the moving average."""

import math

import pytest
import torch
from torch import nn

from hip_model import Modality, build_model
from hip_model.autoencoder import MaskedAutoencoder
from pipeline.train.optim import FiniteStep, Lamb, WeightAverage, build_optimizer, parameter_groups, set_learning_rate
from pipeline.train.options import OptimOptions


@pytest.fixture(scope="module")
def named_parameters() -> dict[str, nn.Parameter]:
    model = build_model("hip_nano", [Modality("image", 64, 3, (8, 8))])
    return dict(MaskedAutoencoder(model).named_parameters())


def test_only_matrices_of_linear_layers_decay(named_parameters: dict[str, nn.Parameter]) -> None:
    groups = parameter_groups(named_parameters.items(), OptimOptions(weight_decay=0.1))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    kept = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    assert decayed | kept == set(named_parameters)
    assert "model.embed.image.weight" in decayed
    assert "model.blocks.0.cross_attention.query.weight" in decayed
    for name in ("model.positions.image.weight", "model.blocks.0.latents.weight", "model.embed.image.bias"):
        assert name in kept
    assert all("norm" not in name and not name.endswith("bias") for name in decayed)


def test_position_tables_and_deep_blocks_get_their_own_rates(named_parameters: dict[str, nn.Parameter]) -> None:
    options = OptimOptions(position_learning_rate_scale=5.0, layer_decay=0.5)
    groups = parameter_groups(named_parameters.items(), options)
    set_learning_rate(groups, 0.1)
    rate = {name: group["lr"] for group in groups for name in group["names"]}
    assert rate["model.unembed.image.weight"] == pytest.approx(0.1)
    assert rate["model.blocks.2.latents.weight"] == pytest.approx(0.1 / 2)  # the last of three blocks
    assert rate["model.blocks.0.latents.weight"] == pytest.approx(0.1 / 8)
    assert rate["model.embed.image.weight"] == pytest.approx(0.1 / 16)
    assert rate["model.positions.image.weight"] == pytest.approx(0.5 / 16)


@pytest.mark.parametrize(
    ("model", "block", "layers", "cross"),
    [("io_mini", "block.", 2, "cross_attention"), ("perceiver_tiny", "", 2, "shared_cross_attention")],
)
def test_layers_of_perceivers_count_as_blocks_do(model: str, block: str, layers: int, cross: str) -> None:
    named = MaskedAutoencoder(build_model(model, [Modality(n, 64, 3, (8, 8)) for n in "ab"])).named_parameters()
    groups = parameter_groups(named, OptimOptions(layer_decay=0.5))
    rate = {name.removeprefix("model."): group["lr_scale"] for group in groups for name in group["names"]}
    assert rate["unembed.a.weight"] == rate["head.query.weight"] == 1.0
    for layer in range(layers):
        assert rate[f"{block}self_attention.{layer}.query.weight"] == 0.5 ** (layers - layer)
    assert rate[f"{block}{cross}.query.weight"] == rate[f"{block}latents.weight"] == 0.5 ** (layers + 1)
    assert rate["embed.a.weight" if block else "modality_vectors.a.weight"] == 0.5 ** (layers + 2)


def test_lamb_moves_each_tensor_in_proportion_to_its_norm() -> None:
    weights = [nn.Parameter(torch.full((4,), size)) for size in (1.0, 100.0)]
    optimizer = Lamb(parameter_groups(zip("ab", weights, strict=True), OptimOptions(kind="lamb", weight_decay=0)))
    set_learning_rate(optimizer.param_groups, 0.01)
    for weight in weights:
        weight.grad = torch.tensor([1.0, -1.0, 2.0, 0.5])
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    # The first Adam direction is the gradient's sign, of norm 2; the trust ratio makes the step 0.01 of the norm.
    for weight, old in zip(weights, before, strict=True):
        moved = (old - weight.detach()) / old.norm()
        assert moved == pytest.approx(torch.tensor([0.005, -0.005, 0.005, 0.005]), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_moves_nothing(bad: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = FiniteStep(build_optimizer(parameter_groups([("w", weight)], OptimOptions()), OptimOptions()), 1.0)
    set_learning_rate(optimizer.param_groups, 0.1)
    weight.grad = torch.tensor([1.0, bad, 0.0])
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(weight.detach(), torch.ones(3))
    weight.grad = torch.tensor([3.0, 4.0, 0.0])
    optimizer.step()
    assert not optimizer.overflow
    assert optimizer._global_grad_norm == pytest.approx(5.0)
    assert weight.grad.norm() == pytest.approx(1.0, rel=1e-5)
    assert not torch.equal(weight.detach(), torch.ones(3))


def test_the_average_follows_slowly() -> None:
    weight = torch.zeros(2)
    average = WeightAverage({"w": weight}, decay=0.9)
    weight += 1
    average.update({"w": weight})
    average.update({"w": weight})
    assert average.weights["w"] == pytest.approx(torch.full((2,), 1 - 0.9**2))


def test_the_learning_rate_scales_with_the_batch_unless_it_is_given() -> None:
    assert OptimOptions(base_learning_rate=1e-3).peak_learning_rate(512) == pytest.approx(2e-3)
    assert OptimOptions(base_learning_rate=1e-3, learning_rate=0.5).peak_learning_rate(512) == 0.5
