"""Closed-form costs against the real models: parameters and FLOPs exactly, activations within a stated tolerance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hip_model.accounting import (
    activation_bytes,
    count_parameters,
    forward_flops,
    model_cost,
    optimizer_bytes,
)
from hip_model.errors import ConfigError
from hip_model.masking import MaskConfig, sample_selection
from hip_model.modality import Modality
from hip_model.perceiver_io import PerceiverIO
from hip_model.selection import TokenSelection
from hip_model.variants import build_model, model_config

COUNTS_FILE = Path(__file__).parents[4] / "shared/reference/goldens/param_counts.json"
IMAGE = Modality("image", 256, 3, (16, 16))
VIDEO = Modality("video", 1024, 3, (4, 16, 16))
AUDIO = Modality("audio", 300, 1, (300,))
CASES = [
    ("hip_nano", (IMAGE,), {}),
    ("hip_nano", (IMAGE, AUDIO), {"mask_padding": True}),
    ("hip_micro", (VIDEO, AUDIO), {}),
    ("hip_micro", (VIDEO, AUDIO), {"position_projection": True, "position": {"video": "fourier", "audio": "learned"}}),
    ("hip_nano", (IMAGE,), {"processor_latents_eval": 32, "num_channels": (32, 64, 48)}),
    ("io_mini", (IMAGE, AUDIO), {}),
]
# Share of the measured bytes: small models keep relatively more of what the formula leaves out.
ACTIVATION_TOLERANCE = 0.15


@pytest.fixture(autouse=True)
def as_the_paper_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed forms describe unfolded projections; the models fold them where that is cheaper."""
    monkeypatch.setattr("hip_model.attention.CrossAttention._cheapest_form", lambda *_: "plain")


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{len(case[1])}-{'-'.join(case[2]) or 'plain'}")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Modality, ...]]:
    torch.set_num_threads(1)
    name, modalities, overrides = request.param
    return build_model(name, modalities, **overrides), modalities


@pytest.fixture(params=[None, MaskConfig(ratio=0.85), MaskConfig(ratio=0.5)], ids=["full", "mask85", "mask50"])
def mask(request: pytest.FixtureRequest) -> MaskConfig | None:
    return request.param


def _inputs(modalities: tuple[Modality, ...]) -> dict[str, torch.Tensor]:
    return {m.name: torch.randn(1, m.num_tokens, m.num_channels) for m in modalities}


def _selection(model: nn.Module, modalities: tuple[Modality, ...], mask: MaskConfig | None) -> TokenSelection | None:
    return None if mask is None else sample_selection(mask, modalities, model.group_plan(), torch.tensor([7]))


def test_parameters_equal_the_models(case: tuple[nn.Module, tuple[Modality, ...]]) -> None:
    model, modalities = case
    assert count_parameters(model.config, modalities) == sum(parameter.numel() for parameter in model.parameters())


def test_flops_equal_the_counted_ones(case: tuple[nn.Module, tuple[Modality, ...]], mask: MaskConfig | None) -> None:
    model, modalities = case
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(_inputs(modalities), _selection(model, modalities, mask))
    assert forward_flops(model.config, modalities, mask) == counter.get_total_flops()


def kept_bytes(model: Any, run: Callable[[], Any], stage: nn.Module | None = None) -> int:
    """Bytes that autograd keeps while ``run`` runs, or while ``stage`` runs in it; parameters are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: list[torch.Tensor] = []  # holding them keeps their addresses distinct
    running = [stage is None]
    handles = []
    if stage is not None:
        handles.append(stage.register_forward_pre_hook(lambda *_: running.__setitem__(0, True)))
        handles.append(stage.register_forward_hook(lambda *_: running.__setitem__(0, False)))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if running[0]:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    for handle in handles:
        handle.remove()
    assert output.latents
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in sizes.items() if address not in own)


def test_activation_bytes_are_near_what_autograd_keeps(
    case: tuple[nn.Module, tuple[Modality, ...]], mask: MaskConfig | None
) -> None:
    model, modalities = case
    measured = kept_bytes(model, lambda: model(_inputs(modalities), _selection(model, modalities, mask)))
    assert activation_bytes(model.config, modalities, mask) == pytest.approx(measured, rel=ACTIVATION_TOLERANCE)


def test_recomputed_blocks_leave_their_outputs_and_the_inside_of_the_largest(
    case: tuple[nn.Module, tuple[Modality, ...]], mask: MaskConfig | None
) -> None:
    model, modalities = case

    def run() -> Any:
        return model(_inputs(modalities), _selection(model, modalities, mask))

    model.recompute_blocks = True
    outside = kept_bytes(model, run)
    model.recompute_blocks = False
    if isinstance(model, PerceiverIO):
        stages = [model.block.cross_attention, *model.block.self_attention]
        outputs = 4 * run().latents[0].numel() * len(stages)
    else:
        stages = model.stages()
        outputs = sum(4 * latents.numel() for latents in run().latents)
    largest = max(kept_bytes(model, run, stage) for stage in stages)
    found = activation_bytes(model.config.replace(activation_checkpointing="blocks"), modalities, mask)
    assert found == pytest.approx(outside + largest + outputs, rel=ACTIVATION_TOLERANCE)


def test_recomputed_iterations_of_a_perceiver(mask: MaskConfig | None) -> None:
    model = build_model("perceiver_tiny", (IMAGE, AUDIO), num_iterations=6)

    def run() -> Any:
        return model(_inputs((IMAGE, AUDIO)), _selection(model, (IMAGE, AUDIO), mask))

    whole = kept_bytes(model, run)
    model.recompute_blocks = True
    outside = kept_bytes(model, run)
    found = activation_bytes(model.config.replace(activation_checkpointing="blocks"), (IMAGE, AUDIO), mask)
    # Each iteration keeps the same: the tokens with their norm, and the self-attention layers.
    assert found == pytest.approx(outside + (whole - outside) / 6, rel=0.3)
    assert found < whole / 2


@pytest.mark.parametrize(
    ("name", "at_224", "at_64", "gflop_224", "gflop_64"),
    [
        ("hip_mini", 20_272_611, 18_798_051, 12.1, 7.2),
        ("hip_16", 100_787_939, 99_313_379, 56.1, 51.2),
        ("hip_16x3", 234_803_299, 233_328_739, 134.2, 129.3),
        ("hip_256", 96_367_155, 95_629_875, 49.4, 49.0),
        ("io_mini", 6_904_451, 1_006_211, 16.6, 1.5),
        ("io_c_50m", 56_169_475, 32_576_515, 443.8, 105.3),
        ("io_c_150m", 176_101_635, 134_813_955, 1153.8, 371.2),
    ],
)
def test_published_sizes_and_costs(name: str, at_224: int, at_64: int, gflop_224: float, gflop_64: float) -> None:
    config = model_config(name)
    for side, parameters, gflop in ((224, at_224, gflop_224), (64, at_64, gflop_64)):
        image = [Modality("image", side * side, 3)]
        assert count_parameters(config, image) == parameters
        assert forward_flops(config, image) / 1e9 == pytest.approx(gflop, abs=0.051)


def test_paper_size_of_hip_256() -> None:
    assert count_parameters(model_config("hip_256_paper"), [Modality("image", 224 * 224, 3)]) == 102_312_179


def test_cost_by_part_matches_the_published_split() -> None:
    """Architecture page, section 14: where HiP-16's 56.1 GFLOP go at 224 x 224."""
    cost = model_cost(model_config("hip_16"), [Modality("image", 224 * 224, 3)])
    published = {"block_0": 3.1, "block_1": 4.6, "block_2": 32.3, "block_3": 4.0, "reconstruction_head": 4.5}
    for part, gflop in published.items():
        assert cost.of(part).flops / 1e9 == pytest.approx(gflop, abs=0.06), part
    assert cost.of("block_1").flops + cost.of("block_10").flops == cost.of("block_1").flops


@pytest.mark.skipif(not COUNTS_FILE.exists(), reason="the golden parameter counts are not beside this checkout")
def test_golden_parameter_counts() -> None:
    golden = json.loads(COUNTS_FILE.read_text())
    inputs = {
        name: [Modality(entry["modality"], entry["tokens"], entry["channels"]) for entry in entries]
        for name, entries in golden["inputs"].items()
    }
    checked = 0
    for variant, counts in golden["counts"].items():
        name = variant.lower() if variant.startswith("io_") else f"hip_{variant.lower()}"
        for input_name, modalities in inputs.items():
            expected = counts[input_name]
            cost = model_cost(model_config(name), modalities)
            assert cost.parameters == expected["total"], (variant, input_name)
            for block, parts in expected["blocks"].items():
                for part, parameters in parts.items():
                    assert cost.parts[f"{block}.{part}"].parameters == parameters, (variant, input_name, block, part)
            checked += 1
    assert checked == 7 * 5


@pytest.mark.skipif(not COUNTS_FILE.exists(), reason="the golden parameter counts are not beside this checkout")
def test_golden_class_bottleneck_counts() -> None:
    golden = json.loads(COUNTS_FILE.read_text())["counts"]
    image, label = [Modality("image", 50176, 3)], [Modality("label", 1, 1000)]
    for variant, counts in golden.items():
        if "imagenet_224_class_bottleneck_label_1x1000" in counts:
            config = model_config(f"hip_{variant.lower()}")
            expected = counts["imagenet_224_class_bottleneck_label_1x1000"]
            assert count_parameters(config, image, labels=label) == expected, variant


def test_training_bytes_are_sharded_by_stage() -> None:
    assert optimizer_bytes(1000) == 16_000
    assert optimizer_bytes(1000, mixed_precision=True) == 16_000
    by_stage = [optimizer_bytes(1000, mixed_precision=True, shard_stage=stage, workers=4) for stage in range(4)]
    assert by_stage == [16_000, 2000 + 2000 + 3000, 2000 + 500 + 3000, 500 + 500 + 3000]
    with pytest.raises(ConfigError, match="shard_stage"):
        optimizer_bytes(10, shard_stage=4)


def test_labels_need_a_bottleneck() -> None:
    with pytest.raises(ConfigError, match="no class bottleneck"):
        count_parameters(model_config("io_mini"), [IMAGE], labels=[Modality("label", 1, 10)])
