"""Equality with the original release on every golden file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDENS, entries, golden_inputs, golden_model, load_golden, read_json, rule_parameters

from hip_model import ModelOutput
from hip_model.attention import HIDDEN_SCORE, CrossAttention, Keys
from hip_model.reference import load_reference_parameters, reference_parameters
from hip_model.tokens import TokenModel

pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="the golden files are not at hand")

STORED = ["hip_tiny5", "hip_tiny3_supersample", "hip_tiny5_transpose_posproj", "class_bottleneck_tiny", "io_mini"]
VARIANTS = ["16", "256", "16x3", "io_c_50m", "io_c_150m"]
TOLERANCE = 1e-4


def _golden(name: str) -> tuple[dict[str, Any], Any, TokenModel]:
    entry, arrays = read_json("manifest.json")[name], np.load(GOLDENS / f"{name}.npz")
    return entry, arrays, load_golden(entry, arrays)


def _loss(output: ModelOutput, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([(output.reconstruction[name] - inputs[name]).square().mean() for name in inputs]).mean()


def _largest_difference(found: torch.Tensor, expected: Any) -> float:
    return float((found.detach() - torch.from_numpy(np.asarray(expected))).abs().max())


@pytest.mark.parametrize("name", [*STORED, "mini"])
def test_reconstruction_latents_loss_and_gradients_equal_the_original(name: str) -> None:
    entry, arrays, model = _golden(name)
    inputs = golden_inputs(arrays)
    output = model(inputs)
    for modality, expected in entries(arrays, "output/input_reconstruction/"):
        assert _largest_difference(output.reconstruction[modality], expected) < TOLERANCE, modality
    for index, latents in enumerate(output.latents):
        block = "perceiver_block" if f"intermediate/perceiver_block_{index}" in arrays.files else "block"
        expected = arrays[f"intermediate/{block}_{index}"]
        assert _largest_difference(latents[: len(expected)], expected) < TOLERANCE, f"block {index}"
    loss = _loss(output, inputs)
    assert float(loss.detach()) == pytest.approx(entry["loss"], rel=1e-5)
    loss.backward()
    for path, (parameter, transposed) in reference_parameters(model).items():
        assert parameter.grad is not None, path
        gradient = parameter.grad.T if transposed else parameter.grad
        norm = float(arrays[f"grad_norm/{path}"])
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-4), path
        if f"grad/{path}" in arrays.files:
            assert _largest_difference(gradient, arrays[f"grad/{path}"]) < 1e-4 + 1e-3 * norm, path


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_filled_by_rule_equal_the_original(name: str) -> None:
    entry = read_json("manifest.json")[f"variants_by_rule/{name}"]
    arrays = np.load(GOLDENS / "variants_by_rule.npz")
    model = golden_model(entry).eval()
    parameters = rule_parameters(model, entry["rule_seed"])
    _check_rule(parameters, read_json("rule_param_checks.json")["checks"][f"variants_by_rule/{name}"])
    load_reference_parameters(model, parameters)
    with torch.no_grad():
        output = model(golden_inputs(arrays))
    for modality, expected in entries(arrays, f"{name}/output/input_reconstruction/"):
        assert _largest_difference(output.reconstruction[modality], expected) < TOLERANCE, modality


def test_mini_by_rule_has_the_parameters_the_original_had() -> None:
    entry = read_json("manifest.json")["mini"]
    _check_rule(
        rule_parameters(golden_model(entry), entry["rule_seed"]), read_json("rule_param_checks.json")["checks"]["mini"]
    )


def _check_rule(parameters: dict[str, Any], checks: dict[str, Any]) -> None:
    assert set(parameters) == set(checks)
    for path, (shape, total, squares, first) in checks.items():
        values = parameters[path]
        assert list(values.shape) == shape, path
        exact = values.astype(np.float64)
        assert exact.sum() == pytest.approx(total, rel=1e-9, abs=1e-9), path
        assert np.square(exact).sum() == pytest.approx(squares, rel=1e-9), path
        assert exact.ravel()[: len(first)].tolist() == pytest.approx(first, rel=1e-12), path


@pytest.mark.parametrize("masked", [True, False])
def test_one_cross_attention_layer_with_a_mask_equals_the_original(masked: bool) -> None:
    arrays = np.load(GOLDENS / "cross_attention_masked.npz")
    layer = CrossAttention(16, 12, heads=2, widening=2, skip_channels=10)
    _load_layer(layer, arrays)
    bias = None
    if masked:
        bias = torch.zeros(arrays["input/mask"].shape).masked_fill(
            ~torch.from_numpy(arrays["input/mask"]), HIDDEN_SCORE
        )
    queries, keys, skip = (torch.from_numpy(arrays[f"input/{name}"]) for name in ("queries", "keys_values", "skip"))
    found = layer(queries, [Keys(keys, bias)], skip)
    assert _largest_difference(found, arrays[f"output/{'masked' if masked else 'unmasked'}"]) < TOLERANCE


def _load_layer(layer: CrossAttention, arrays: Any) -> None:
    from hip_model.reference import _CROSS

    for ours, theirs in _CROSS.items():
        module = layer.get_submodule(ours)
        weight, bias = ("w", "b") if f"param/cross/{theirs}/w" in arrays.files else ("scale", "offset")
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(arrays[f"param/cross/{theirs}/{weight}"].T))
            module.bias.copy_(torch.from_numpy(arrays[f"param/cross/{theirs}/{bias}"]))
