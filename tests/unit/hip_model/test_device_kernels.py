"""Device kernels against their naive twins, forward and backward: on a GPU, or anywhere with TRITON_INTERPRET=1.

Triton is no dependency on CPU: test_device_kernels_interpreted.py installs it and runs this file.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from hip_model import MaskedAutoencoder, Modality, build_model
from hip_model.autoencoder import LossConfig
from hip_model.kernels.device import plain_kernels, recorded_launches
from hip_model.kernels.mlp_rows import mlp_rows
from hip_model.kernels.naive import naive_squared_relu
from hip_model.kernels.pixel_answers import HeadWeights, answer_pixels, naive_answer_pixels
from hip_model.kernels.pixel_keys import PixelWeights, attend_pixels, naive_attend_pixels
from hip_model.kernels.pixel_scores import naive_squared_errors, squared_errors
from hip_model.kernels.row_norm import norm_rows, sum_rows
from hip_model.kernels.rows_linear import rows_linear
from hip_model.kernels.self_attend import naive_self_attend, self_attend
from hip_model.kernels.token_slots import TokenSlots
from hip_model.masking import MaskConfig

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (CUDA or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="no Triton, or neither a GPU nor its interpreter",
)
# The interpreter computes in float32; a GPU in what training uses.
DTYPE, TOLERANCE = (torch.bfloat16, 3e-2) if CUDA else (torch.float32, 1e-4)


@pytest.fixture(autouse=True, scope="module")
def _none_is_too_small() -> Iterator[None]:
    with recorded_launches():
        yield


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """By the norm of the difference: single values near zero may differ by more than their size.

    A gradient that is zero by cancellation, such as that of the only key there is, rounds beside those it is made of.
    """
    largest = max(float(value.double().norm()) for value in expected.values())
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).norm()
        scale = value.double().norm() if value.any() else largest / 100
        assert difference <= TOLERANCE * scale + 1e-5, name


def gradients(run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of every input, and the value itself as ``value``; in float32 inputs the reference."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    value = run(**leaves)
    value.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None} | {"value": value.detach()}


def draw_slots(draw: st.DataObject, batch: int, groups: int, length: int) -> Tensor | None:
    """All tokens, or some of each group, the last few slots of an example empty."""
    count = draw.draw(st.integers(0, length), label="slots")
    if count == 0:
        return None
    rows = batch if draw.draw(st.booleans(), label="one pattern for all groups") else batch * groups
    slots = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(rows)])
    slots[0, count - draw.draw(st.integers(0, count - 1), label="empty") :] = -1
    return slots.view(batch, -1, count).to(DEVICE)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


def places(draw: st.DataObject) -> tuple[TokenSlots, int, int]:
    """Slots of tokens, and an embedding width and a channel count."""
    torch.manual_seed(draw.draw(st.integers(0, 1000), label="seed"))
    batch, groups = draw.draw(st.integers(1, 3), label="batch"), draw.draw(st.integers(1, 3), label="groups")
    length = draw.draw(st.integers(1, 150), label="group tokens")
    missing = draw.draw(st.integers(0, length - 1), label="missing at the end")
    slots = draw_slots(draw, batch, groups, length)
    where = TokenSlots(slots, batch, groups, length, groups * length - missing)
    return where, draw.draw(st.sampled_from([16, 32]), label="width"), draw.draw(st.integers(1, 4), label="channels")


@settings(max_examples=12, deadline=None)
@given(draw=st.data())
def test_attention_over_pixels_equals_its_naive_twin(draw: st.DataObject) -> None:
    where, width, channels = places(draw)
    queries = draw.draw(st.integers(1, 40), label="queries")
    raw = torch.randn(where.batch, where.num_tokens, channels, device=DEVICE)
    inputs = {
        "queries": random(1, where.groups, queries, width),
        "code": random(where.groups * where.group_tokens, width),
        **{"embed_weight": random(width, channels), "embed_bias": random(width)},
        **{"norm_weight": random(width), "norm_bias": random(width)},
    }
    weights = torch.randn(where.batch, where.groups, queries, width, device=DEVICE)

    def run(attend: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        def loss(queries: Tensor, code: Tensor, **parts: Tensor) -> Tensor:
            answers, log_sums = attend(queries, raw, code, where, PixelWeights(**parts), width**-0.5, 1e-5)
            return (answers.float() * weights).sum() + torch.where(log_sums > -1e29, log_sums, 0.0).sum()

        return loss

    reference = {name: value.float() for name, value in inputs.items()}
    assert_close(gradients(run(attend_pixels), inputs), gradients(run(naive_attend_pixels), reference))


@settings(max_examples=12, deadline=None)
@given(draw=st.data())
def test_answers_for_pixels_equal_their_naive_twin(draw: st.DataObject) -> None:
    where, width, channels = places(draw)
    keys = draw.draw(st.integers(1, 40), label="keys")
    shapes: dict[str, tuple[int, ...]] = {
        "norm_weight": (width,), "norm_bias": (width,), "hidden_weight": (width, width), "hidden_bias": (width,),
        "output_weight": (width, width), "output_bias": (width,), "unembed_weight": (channels, width),
        "unembed_bias": (channels,),
    }  # fmt: skip
    inputs = {
        "code": random(where.groups * where.group_tokens, width),
        "keys": random(where.batch, where.groups, keys, width) * 0.3,
        "answers": random(where.batch, where.groups, keys, width),
        **{name: random(*shape) * 0.3 for name, shape in shapes.items()},
    }
    first = torch.arange(where.groups, device=DEVICE).view(1, -1, 1) * where.group_tokens
    slots = torch.arange(where.group_tokens, device=DEVICE).view(1, 1, -1) if where.slots is None else where.slots
    is_token = ((slots >= 0) & (slots + first < where.num_tokens)).unsqueeze(-1)
    weights = torch.randn(where.batch, where.groups, where.per_group, channels, device=DEVICE)

    def run(answer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(code: Tensor, keys: Tensor, answers: Tensor, **parts: Tensor) -> Tensor:
            values = answer(code, where, keys, answers, HeadWeights(**parts), 1e-5)
            return (torch.where(is_token, values.float(), 0.0) * weights).sum()

        return loss

    reference = {name: value.float() for name, value in inputs.items()}
    assert_close(gradients(run(answer_pixels), inputs), gradients(run(naive_answer_pixels), reference))


@settings(max_examples=12, deadline=None)
@given(draw=st.data())
def test_squared_errors_equal_their_naive_twin(draw: st.DataObject) -> None:
    where, _, _ = places(draw)
    channels = draw.draw(st.integers(1, 16), label="channels")
    values = torch.randn(where.batch, where.num_tokens, channels, device=DEVICE)
    inputs = {"answers": random(where.batch, where.groups * where.per_group, channels)}
    weights = torch.randn(channels, device=DEVICE)

    def run(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda answers: (score(answers, values, where) * weights).sum()

    reference = {name: value.float() for name, value in inputs.items()}
    assert_close(gradients(run(squared_errors), inputs), gradients(run(naive_squared_errors), reference))


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 32), (300, 24), (65, 96), (33, 1024)])
@pytest.mark.parametrize("has_plus", [True, False])
def test_norm_of_a_sum_equals_its_two_steps(rows: int, width: int, has_plus: bool) -> None:
    torch.manual_seed(rows)
    inputs = {"x": random(2, rows, width), "weight": random(width), "bias": random(width)}
    inputs |= {"plus": random(1, rows, width), "plus_bias": random(width)} if has_plus else {}
    of_sum, of_norm = torch.randn(2, 2, rows, width, device=DEVICE)

    def fast(x: Tensor, weight: Tensor, bias: Tensor, **plus: Tensor) -> Tensor:
        total, normed = norm_rows(x, plus.get("plus"), plus.get("plus_bias"), weight, bias, 1e-5)
        return (total.float() * of_sum).sum() + (normed.float() * of_norm).sum()

    def naive(x: Tensor, weight: Tensor, bias: Tensor, **plus: Tensor) -> Tensor:
        total = x + plus["plus"] + plus["plus_bias"] if plus else x
        return (total * of_sum).sum() + (layer_norm(total, (width,), weight, bias, 1e-5) * of_norm).sum()

    assert_close(gradients(fast, inputs), gradients(naive, {name: value.float() for name, value in inputs.items()}))


def test_a_sum_before_no_norm_equals_its_naive_form() -> None:
    inputs = {"x": random(3, 70, 48), "plus": random(3, 70, 48), "plus_bias": random(48)}
    weights = torch.randn(3, 70, 48, device=DEVICE)

    def naive(x: Tensor, plus: Tensor, plus_bias: Tensor) -> Tensor:
        return ((x + plus + plus_bias).float() * weights).sum()

    reference = gradients(naive, {name: value.float() for name, value in inputs.items()})
    assert_close(gradients(lambda **parts: (sum_rows(**parts).float() * weights).sum(), inputs), reference)


@pytest.mark.parametrize("rows", [1, 40, 700])
def test_a_linear_map_of_rows_equals_its_naive_form(rows: int) -> None:
    torch.manual_seed(rows)
    inputs = {"x": random(2, rows, 48), "weight": random(130, 48), "bias": random(130)}
    weights = torch.randn(2, rows, 130, device=DEVICE)
    reference = gradients(
        lambda **parts: (linear(*parts.values()) * weights).sum(), {k: v.float() for k, v in inputs.items()}
    )
    assert_close(gradients(lambda **parts: (rows_linear(**parts).float() * weights).sum(), inputs), reference)


@pytest.mark.parametrize("rows", [1, 40, 700])
def test_an_mlp_of_rows_equals_its_naive_form(rows: int) -> None:
    torch.manual_seed(rows)
    inputs = {
        **{"x": random(2, rows, 48), "hidden_weight": random(130, 48) * 0.2, "hidden_bias": random(130)},
        "output_weight": random(24, 130) * 0.2,
    }
    weights = torch.randn(2, rows, 24, device=DEVICE)

    def naive(x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor) -> Tensor:
        return (linear(naive_squared_relu(linear(x, hidden_weight, hidden_bias)), output_weight) * weights).sum()

    reference = gradients(naive, {name: value.float() for name, value in inputs.items()})
    assert_close(gradients(lambda **parts: (mlp_rows(**parts).float() * weights).sum(), inputs), reference)


@pytest.mark.parametrize(
    ("latents", "heads", "head_width"), [(1, 1, 16), (32, 4, 16), (40, 2, 48), (128, 3, 32), (200, 1, 64)]
)
def test_self_attention_from_one_projection_equals_its_naive_twin(latents: int, heads: int, head_width: int) -> None:
    torch.manual_seed(latents)
    width = heads * head_width
    names = ("query", "key", "value")
    inputs = {"x": random(2, 2, latents, width)}
    inputs |= {f"{name}_weight": random(width, width) * 0.15 for name in names}
    inputs |= {f"{name}_bias": random(width) for name in names}
    of_result = torch.randn(2, 2, latents, width, device=DEVICE)

    def run(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(x: Tensor, **maps: Tensor) -> Tensor:
            weights, biases = ([maps[f"{name}_{kind}"] for name in names] for kind in ("weight", "bias"))
            return (attend(x, weights, biases, heads).float() * of_result).sum()

        return loss

    reference = {name: value.float() for name, value in inputs.items()}
    found, expected = gradients(run(self_attend), inputs), gradients(run(naive_self_attend), reference)
    # A key's bias moves all scores of a query alike: its gradient is 0 but for rounding.
    assert found.pop("key_bias").norm() <= TOLERANCE * expected["query_bias"].norm() + 1e-4
    assert_close(found, {name: value for name, value in expected.items() if name != "key_bias"})


IMAGE = [Modality("image", 12 * 13, 3, (12, 13))]
SOUND_AND_VIDEO = [Modality("video", 4 * 6 * 6, 3, (4, 6, 6)), Modality("audio", 75, 1, (75,))]


@pytest.mark.parametrize(
    ("name", "modalities", "mask", "overrides"),
    [
        ("hip_nano", IMAGE, {}, {}),
        ("hip_nano", SOUND_AND_VIDEO, {"policy": "independent"}, {}),
        ("hip_nano", SOUND_AND_VIDEO, {"policy": "tube"}, {}),
        ("hip_nano", SOUND_AND_VIDEO, {"policy": "modality"}, {}),
        ("hip_micro", SOUND_AND_VIDEO, {}, {"mask_padding": True}),
    ],
)
@pytest.mark.parametrize("nobody_hears", [False, True])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_a_model_computes_the_same_with_and_without_device_kernels(
    name: str,
    modalities: list[Modality],
    mask: dict[str, Any],
    overrides: dict[str, Any],
    loss_on: str,
    nobody_hears: bool,
) -> None:
    torch.manual_seed(0)
    model: Any = build_model(name, modalities, **overrides).train().to(DEVICE)
    with torch.no_grad():
        for parameter in (*model.unembed.parameters(), *(p for p in model.parameters() if p.dim() == 1)):
            parameter.normal_(std=0.3)
    autoencoder = MaskedAutoencoder(model.to(DTYPE), MaskConfig(**mask), LossConfig(on=loss_on))
    inputs = {m.name: torch.randn(2, m.num_tokens, m.num_channels, device=DEVICE) for m in modalities}
    hears = None if nobody_hears else torch.tensor([True, False], device=DEVICE)
    present = {"audio": hears} if len(modalities) > 1 else None

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        loss = autoencoder(inputs, torch.arange(2, device=DEVICE), present).loss
        loss.backward()
        # Together: the small gradients of single parameters are lost in their neighbours' rounding.
        return {"loss": loss.detach(), "all": torch.cat([p.grad.flatten() for p in model.parameters()])}

    found = step()
    with plain_kernels():
        expected = step()
    assert_close(found, expected)
