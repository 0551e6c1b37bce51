"""Every setting of the dials is a valid geometry, the paper's models are among them, and any can be had at one cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hip_model.accounting import count_parameters, forward_flops, model_cost
from hip_model.budget import BudgetError, solve_budget
from hip_model.config import HiPConfig
from hip_model.errors import ConfigError
from hip_model.geometry import CORE_BLOCKS, GeometryDials, named_dials
from hip_model.hip import HiP
from hip_model.modality import Modality
from hip_model.variants import model_config

VIDEO, AUDIO = Modality("video", 96, 3, (2, 6, 8)), Modality("audio", 50, 1, (50,))
IMAGE = [Modality("image", 64 * 64, 3)]

DIALS = st.builds(
    GeometryDials,
    depth=st.integers(1, 4),
    first_groups=st.integers(2, 24),
    group_fall=st.integers(1, 6),
    first_latents=st.integers(1, 12),
    latent_growth=st.floats(0.5, 3.0),
    maximum_latents=st.integers(1, 20),
    processor_latents=st.integers(1, 12),
    processor_channels=st.integers(8, 64),
    channel_growth=st.floats(1.0, 3.0),
    processor_heads=st.integers(1, 6),
    outer_levels=st.integers(0, 1),
    outer_extra_channels=st.integers(0, 16),
    decoder_extra_channels=st.integers(0, 16),
    decoder_width=st.floats(0.25, 1.5),
    core=st.sampled_from(CORE_BLOCKS),
    core_layers=st.integers(0, 3),
    outer_layers=st.integers(0, 2),
    encoder_layers=st.integers(0, 2),
    processor_layers=st.integers(0, 2),
    decoder_layers=st.integers(0, 2),
    embedding_channels=st.integers(1, 16),
    regroup=st.sampled_from(("reshape", "transpose_reshape")),
    width_scale=st.floats(0.3, 2.0),
)


NARROW = GeometryDials(
    depth=4,
    first_groups=7,
    first_latents=3,
    maximum_latents=6,
    processor_latents=7,
    processor_channels=39,
    channel_growth=2.71875,
    processor_heads=3,
    outer_levels=0,
    decoder_width=1.4375,
    core="processor",
    core_layers=2,
    outer_layers=0,
    encoder_layers=1,
    processor_layers=0,
    decoder_layers=1,
    embedding_channels=3,
    regroup="reshape",
    width_scale=1.34375,
)
"""Four channels at the output: one step gains 1.1e-7."""


@pytest.mark.parametrize("name", sorted(named_dials()))
def test_the_papers_geometries_are_points_of_the_space(name: str) -> None:
    assert named_dials()[name].build() == model_config(name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(dials=DIALS)
@example(dials=NARROW)
def test_every_setting_builds_and_trains_a_step(dials: GeometryDials) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HiP(dials.build(), [VIDEO, AUDIO]).double()  # a few channels gain less than float32 can tell from nothing
    assert count_parameters(model.config, [VIDEO, AUDIO]) == sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = {m.name: torch.randn(2, m.num_tokens, m.num_channels).double() for m in (VIDEO, AUDIO)}

    def loss() -> torch.Tensor:
        output = model(inputs).reconstruction
        return torch.stack([(output[name] - inputs[name]).square().mean() for name in inputs]).sum()

    before = loss()
    before.backward()
    optimizer.step()
    assert torch.isfinite(before)
    assert loss() < before  # the un-embedding starts at zero, so a small step along its gradient must help


@settings(max_examples=60, deadline=None)
@given(dials=DIALS)
def test_dials_survive_a_round_trip(dials: GeometryDials) -> None:
    assert GeometryDials.from_dict(dials.to_dict()) == dials
    assert HiPConfig.from_dict(dials.build().to_dict()) == dials.build()


@pytest.mark.parametrize("unit", ["parameters", "flops"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 2, "core": "processor"},
        {"depth": 5, "first_groups": 256, "first_latents": 32, "embedding_channels": 16},
        {"core": "first_encoder", "core_layers": 4, "decoder_width": 0.5},
        {"first_latents": 256, "maximum_latents": 512, "core": "encoder", "core_layers": 12},
        {"processor_latents": 256, "channel_growth": 1.5, "processor_heads": 8},
    ],
)
def test_candidates_are_solved_to_the_cost_of_hip_16(unit: str, changes: dict[str, object]) -> None:
    def cost(config: HiPConfig) -> float:
        found = model_cost(config, IMAGE)
        return found.parameters if unit == "parameters" else found.training_flops

    target = cost(model_config("hip_16"))
    solved = solve_budget(GeometryDials().changed(**changes), target, cost, tolerance=0.03)
    assert solved.config == solved.dials.build()
    assert cost(solved.config) == pytest.approx(target, rel=0.03)
    assert abs(solved.dials.core_layers - GeometryDials().changed(**changes).core_layers) <= 4


@settings(max_examples=40, deadline=None)
@given(dials=DIALS, target=st.integers(2_000_000, 20_000_000))
def test_a_budget_is_met_or_the_nearest_is_named(dials: GeometryDials, target: int) -> None:
    def cost(config: HiPConfig) -> float:
        return count_parameters(config, IMAGE)

    try:
        solved = solve_budget(dials, target, cost)
    except BudgetError as error:
        refusal = error
        solved = error.nearest
    else:
        refusal = None
    assert (refusal is None) == (solved.error(target) <= 0.03)
    assert refusal is None or f"{solved.cost:,.6g}" in str(refusal)


def test_a_hierarchy_of_merging_groups_serves_every_level() -> None:
    config = GeometryDials(depth=4, first_groups=18, group_fall=4, first_latents=5, processor_latents=3).build()
    assert config.num_groups[:5] == (18, 3, 1, 1, 1)
    assert config.num_latents[:4] == (5, 12, 21, 40)  # rounded up to what the decoder can cut: multiples of 6, then 3


def test_a_budget_below_the_position_tables_is_refused() -> None:
    tables = IMAGE[0].num_tokens * 32
    with pytest.raises(BudgetError, match="nearest costs") as caught:
        solve_budget(GeometryDials(), tables / 2, lambda config: count_parameters(config, IMAGE), unit="parameters")
    assert caught.value.nearest.cost > tables


def test_masked_training_costs_less_to_solve_for() -> None:
    from hip_model.masking import MaskConfig

    config = GeometryDials().build()
    assert forward_flops(config, IMAGE, MaskConfig(ratio=0.85)) < forward_flops(config, IMAGE)


@pytest.mark.parametrize(
    ("dial", "value", "message"),
    [
        ("depth", 0, r"depth=0 must be a whole number from 1 to 8; the nearest is 1"),
        ("depth", 2.5, "whole number"),
        ("decoder_width", 9.0, "nearest is 4.0"),
        ("core", "decoder", "last_encoder"),
        ("regroup", "shuffle", "transpose_reshape"),
        ("outer_levels", 5, "use at most 3"),
        ("dept", 3, "no dial 'dept'"),
        ("first_groups", "16", "whole number"),
    ],
)
def test_bad_dials_are_named(dial: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeometryDials().changed(**{dial: value})
