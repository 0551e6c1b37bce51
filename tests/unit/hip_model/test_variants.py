"""Parameter counts of the named models: the original's own, the paper's, and the published ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hip_model import ClassBottleneckHiP, ConfigError, HiP, HiPConfig, Modality, available_models, build_model

_SHARED = Path(os.environ.get("HIP_SHARED", Path(__file__).resolve().parents[4] / "shared"))
_COUNTS = _SHARED / "reference" / "goldens" / "param_counts.json"

IMAGE_224 = [Modality("image", 224 * 224, 3)]
IMAGE_64 = [Modality("image", 64 * 64, 3)]
# The two data sets the original's unit test runs through one model.
IMAGENET = [Modality("imagenet_image", 1024, 3), Modality("imagenet_label", 32, 1)]
AUDIOSET = [Modality("audioset_audio", 128, 16), Modality("audioset_label", 16, 16)]


def shapes_of(name: str, modalities: list[Modality], **overrides: object) -> dict[str, int]:
    """Parameter sizes without the memory."""
    with torch.device("meta"):
        model = build_model(name, modalities, **overrides)
    return _sizes(model)


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "at_224", "at_64"),
    [
        ("hip_mini", 20_272_611, 18_798_051),
        ("hip_16", 100_787_939, 99_313_379),
        ("hip_16x3", 234_803_299, 233_328_739),
        ("hip_256", 96_367_155, 95_629_875),
        ("io_mini", 6_904_451, 1_006_211),
        ("io_c_50m", 56_169_475, 32_576_515),
        ("io_c_150m", 176_101_635, 134_813_955),
    ],
)
def test_parameter_counts_on_images(name: str, at_224: int, at_64: int) -> None:
    assert sum(shapes_of(name, IMAGE_224).values()) == at_224
    assert sum(shapes_of(name, IMAGE_64).values()) == at_64


def test_the_papers_hip_256_has_the_papers_count() -> None:
    assert sum(shapes_of("hip_256_paper", IMAGE_224).values()) == 102_312_179


@pytest.mark.parametrize(("name", "count"), [("hip_16", 99_224_996), ("hip_256", 95_585_188), ("hip_mini", 18_709_668)])
def test_the_originals_unit_test_counts(name: str, count: int) -> None:
    # Two data sets, one model: what carries no modality's name is shared, projections by their place in the call.
    shared = shapes_of(name, IMAGENET, position_projection=True) | shapes_of(name, AUDIOSET, position_projection=True)
    assert sum(shared.values()) == count


def test_the_originals_unit_test_count_of_the_class_bottleneck() -> None:
    config = HiPConfig.variant("mini").replace(position_projection=True)
    with torch.device("meta"):
        models = [ClassBottleneckHiP(config, tokens, labels) for tokens, labels in
                  ((IMAGENET[:1], IMAGENET[1:]), (AUDIOSET[:1], AUDIOSET[1:]))]  # fmt: skip
    assert sum((_sizes(models[0]) | _sizes(models[1])).values()) == 21_114_788


def test_per_block_counts_of_hip_256() -> None:
    sizes = shapes_of("hip_256", IMAGE_224)
    blocks = [sum(size for name, size in sizes.items() if name.startswith(f"blocks.{index}.")) for index in range(11)]
    assert blocks == [
        585_552,
        544_960,
        735_840,
        2_073_472,
        57_796_352,
        28_937_728,
        3_746_048,
        593_792,
        247_744,
        161_760,
        139_248,
    ]
    assert sum(size for name, size in sizes.items() if name.startswith("head.")) == 1_728


@pytest.mark.skipif(not _COUNTS.is_file(), reason="the golden files are not at hand")
def test_every_count_of_the_golden_file() -> None:
    golden = json.loads(_COUNTS.read_text())
    for variant, counts in golden["counts"].items():
        name = variant if variant.startswith("io_") else f"hip_{variant.lower()}"
        for inputs, expected in counts.items():
            if isinstance(expected, dict):
                modalities = [Modality(m["modality"], m["tokens"], m["channels"]) for m in golden["inputs"][inputs]]
                _check_parts(shapes_of(name, modalities), expected)
        projected = shapes_of(name, IMAGE_224, position_projection=not name.startswith("io_c_50m"))
        assert sum(projected.values()) == counts["imagenet_224_with_num_position_encoding_channels_512"]
        if name.startswith("hip_"):
            _check_labels(name, counts)


def _check_parts(sizes: dict[str, int], expected: dict[str, object]) -> None:
    def total(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(parts))

    assert sum(sizes.values()) == expected["total"]
    assert total("positions.") == expected["position_tables"]
    assert total("embed.", "unembed.") == expected["embed_unembed"]
    assert total("head.") == expected["reconstruction_head"]
    blocks = expected["blocks"]
    assert isinstance(blocks, dict)
    for block, parts in blocks.items():
        prefix = "block." if len(blocks) == 1 else f"blocks.{block.removeprefix('block_')}."
        found = [total(prefix + part) for part in ("cross_attention.", "latents.", "self_attention.")]
        assert found == [parts["cross"], parts["latents"], parts["self"]], block


def _check_labels(name: str, counts: dict[str, int]) -> None:
    label = Modality("label", 1, 1000)
    with torch.device("meta"):
        bottleneck = ClassBottleneckHiP(HiPConfig.variant(name), IMAGE_224, [label])
        ordinary = HiP(HiPConfig.variant(name), [*IMAGE_224, label])
    assert sum(_sizes(bottleneck).values()) == counts["imagenet_224_class_bottleneck_label_1x1000"]
    assert sum(_sizes(ordinary).values()) == counts["imagenet_224_label_as_ordinary_modality_1x1000"]


def test_our_small_models_are_small() -> None:
    for name, most in (("hip_nano", 300_000), ("hip_micro", 1_000_000)):
        sizes = shapes_of(name, IMAGE_64)
        assert sum(size for part, size in sizes.items() if part.startswith(("blocks.", "head."))) <= most


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="no model named 'HiP-265'; did you mean hip_256"):
        build_model("HiP-265", IMAGE_64)
    with pytest.raises(ConfigError, match="HiPConfig has no field 'depth'"):
        build_model("hip_nano", IMAGE_64, depth=3)
    assert {"hip_mini", "hip_16", "hip_16x3", "hip_256", "hip_256_paper", "hip_nano", "hip_micro", "io_mini"} < set(
        available_models()
    )
