"""The parts of a block: names a reader finds in a checkpoint, the three forms of attention, the inner loops' twins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from hip_model import Modality, build_model
from hip_model.attention import CrossAttention, Keys, SelfAttention
from hip_model.kernels.attention import HIDDEN_SCORE, _attention, explicit_attention
from hip_model.kernels.naive import naive_cross_attention, naive_self_attention, naive_squared_relu
from hip_model.kernels.select_rows import select_rows
from hip_model.kernels.squared_relu import squared_relu_linear


def _randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["plain", "folded_into_queries", "folded_into_keys"]),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    widths=st.tuples(st.sampled_from([2, 6]), st.sampled_from([2, 8])),
    shared=st.booleans(),
    hidden=st.booleans(),
    seed=st.integers(0, 999),
)
def test_every_form_of_cross_attention_equals_the_naive_one_forward_and_backward(
    form: str,
    batch: int,
    groups: int,
    queries: int,
    keys: int,
    widths: tuple[int, int],
    shared: bool,
    hidden: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = CrossAttention(widths[0], widths[1], heads=1, widening=1)
    _randomise(layer, seed)
    # In float64: the gradient of a layer norm over two channels multiplies rounding by hundreds.
    layer.double()
    layer._cheapest_form = lambda *_: form  # type: ignore[method-assign]
    asking = torch.randn(1 if shared else batch, groups, queries, widths[0], generator=generator).double()
    asked = torch.randn(batch, groups, keys, widths[1], generator=generator).double()
    may_look, bias = None, None
    if hidden:
        may_look = torch.rand(batch, groups, 1, keys, generator=generator) > 0.5
        bias = torch.zeros(may_look.shape).masked_fill(~may_look, HIDDEN_SCORE)
    upstream = torch.randn(batch, groups, queries, widths[0], generator=generator).double()
    results = []
    for run in (
        lambda q, k: layer(q, [Keys(k, bias)]),
        lambda q, k: naive_cross_attention(layer, q.expand(batch, -1, -1, -1), k, may_look=may_look),
    ):
        layer.zero_grad()
        inputs = [asking.clone().requires_grad_(), asked.clone().requires_grad_()]
        output = run(*inputs)
        output.backward(upstream)
        results.append([output.detach(), *(x.grad for x in inputs), *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_cheapest_form_follows_the_shapes() -> None:
    def form(queries: int, keys: int, width: int, inner: int, batch: int = 1, heads: int = 1) -> str:
        layer = CrossAttention(width, inner, heads=heads, widening=1)
        return layer._cheapest_form(torch.empty(batch, 1, queries, width), keys)

    assert form(128, 3136, 128, 32) == "folded_into_queries"  # HiP-16's first block
    assert form(3136, 128, 32, 128) == "folded_into_keys"  # its reconstruction head
    assert form(256, 64, 512, 1024, batch=4) == "folded_into_keys"  # its first decoder block
    assert form(128, 3136, 128, 32, heads=2) == "plain"


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), out=st.integers(1, 4), seed=st.integers(0, 99))
def test_squared_relu_and_its_linear_map_equal_the_naive_twin(shape: list[int], out: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(size, generator=generator) for size in ([*shape, 3], (out, 3), (out,))]
    upstream = torch.randn(*shape, out, generator=generator)
    results = []
    for run in (squared_relu_linear, lambda x, weight, bias: linear(naive_squared_relu(x), weight, bias)):
        inputs = [value.clone().requires_grad_() for value in values]
        output = run(*inputs)
        output.backward(upstream)
        results.append([output.detach(), *(x.grad for x in inputs)])
    torch.testing.assert_close(*results)


def test_frozen_weights_get_no_gradient() -> None:
    x, weight, bias = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4)
    squared_relu_linear(x, weight, bias).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@given(rows=st.integers(1, 12), batch=st.integers(1, 3), keep=st.integers(0, 12), seed=st.integers(0, 99))
def test_select_rows_equals_indexing_and_ignores_empty_slots(rows: int, batch: int, keep: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 3, generator=generator)
    chosen = torch.rand(batch, rows, generator=generator).argsort(1)[:, : min(keep, rows)]
    empty = torch.rand(chosen.shape, generator=generator) < 0.3
    chosen = chosen.masked_fill(empty, 0)
    upstream = torch.randn(*chosen.shape, 3, generator=generator)
    mine, theirs = table.clone().requires_grad_(), table.clone().requires_grad_()
    found = select_rows(mine, chosen, empty)
    expected = theirs[chosen]
    torch.testing.assert_close(found, expected)
    found.backward(upstream)
    expected.backward(upstream.masked_fill(empty.unsqueeze(-1), 0.0))
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_self_attention_equals_its_naive_twin() -> None:
    layer = SelfAttention(12, heads=3, widening=2, dropout=0.5, drop_path=0.5).eval()
    _randomise(layer, 0)
    x = torch.randn(2, 3, 5, 12)
    torch.testing.assert_close(layer(x), naive_self_attention(layer, x), rtol=1e-4, atol=1e-5)


def test_wide_heads_have_an_explicit_form_where_fused_ones_end() -> None:
    query, key, value = (torch.randn(1, 2, 3, 8) for _ in range(3))
    bias = torch.zeros(1, 1, 1, 3).index_fill(-1, torch.tensor([1]), HIDDEN_SCORE)
    for mask in (None, bias):
        torch.testing.assert_close(explicit_attention(query, key, value, mask), _attention(query, key, value, mask))


def test_state_dict_names_read_well() -> None:
    names = set(build_model("hip_nano", [Modality("image", 64, 3)]).state_dict())
    assert {
        "embed.image.weight", "unembed.image.bias", "positions.image.weight", "blocks.0.latents.weight",
        "blocks.0.cross_attention.query.weight", "blocks.1.self_attention.0.mlp.hidden.bias", "head.key_norm.weight",
    } <= names  # fmt: skip
    assert len(names) == len(list(build_model("hip_nano", [Modality("image", 64, 3)]).parameters()))


@pytest.mark.parametrize("name", ["hip_nano", "io_mini"])
def test_low_precision_stays_close(name: str) -> None:
    modality = Modality("image", 64, 3)
    torch.manual_seed(0)
    model = build_model(name, [modality]).eval()
    _randomise(model, 1)
    inputs = {"image": torch.randn(2, 64, 3)}
    with torch.no_grad():
        exact = model(inputs).reconstruction["image"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(inputs).reconstruction["image"]
        halved = model.bfloat16()(inputs).reconstruction["image"]
    for found in (mixed, halved):
        assert found.dtype == torch.bfloat16
        assert float((found.float() - exact).norm() / exact.norm()) < 0.1
