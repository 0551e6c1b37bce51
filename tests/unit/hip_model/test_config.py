"""Configs that fit nothing are refused with the level, the value and what would fit."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hip_model import ConfigError, HiP, HiPConfig, Modality, PerceiverIOConfig, build_model
from hip_model.variants import HIP_VARIANTS, PERCEIVER_IO_VARIANTS

NANO = HIP_VARIANTS["hip_nano"]


@pytest.mark.parametrize("config", [*HIP_VARIANTS.values(), *PERCEIVER_IO_VARIANTS.values()])
def test_a_config_survives_json(config: HiPConfig | PerceiverIOConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NANO.dropout = 0.5  # type: ignore[misc]


def test_variants_by_short_and_long_names() -> None:
    assert HiPConfig.variant("256") == HiPConfig.variant("hip_256") == HIP_VARIANTS["hip_256"]
    assert HiPConfig.variant("256-paper").num_channels[6:] == (512, 256, 128, 96, 64)
    assert PerceiverIOConfig.variant("io_mini").num_latents == 128
    with pytest.raises(ConfigError, match="did you mean hip_mini"):
        HiPConfig.variant("minni")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": (4, 1)}, "num_groups: 2, num_latents: 3"),
        (dict.fromkeys((name for name, value in NANO.to_dict().items() if isinstance(value, list)), (4, 4)),
         "2 blocks; a HiP needs an odd number"),
        ({"num_groups": (4, 2, 4)}, "the processor, block 1 of .* has 2 groups; it must have 1"),
        ({"num_groups": (4, 1, 8)}, r"num_groups\[2\]=8 differs from num_groups\[0\]=4.*set num_groups\[2\]=4"),
        ({"num_latents": (16, 16, 8)}, r"num_latents\[2\]=8 differs from num_latents\[0\]=16"),
        ({"num_latents": (16, 15, 16)}, 
         "block 2: 1 groups of 15 latents are 15 items, which 4 groups cannot share; .* 12 or 16"),
        ({"processor_latents_eval": 17}, "17 items, which 4 groups cannot share"),
        ({"processor_latents_eval": 8}, "16 in training and 8 in evaluation"),
        ({"processor_latents_train": 8, "processor_latents_eval": 16}, "both given"),
        ({"num_self_attention_heads": (2, 5, 2)},
         r"num_self_attention_heads\[1\]=5 does not divide num_channels\[1\]=64; heads that do: \[1, 2, 4, 8, "),
        ({"num_cross_attention_heads": (32, 1, 1)},
         r"num_cross_attention_heads\[0\]=32 does not divide embedding_channels=16"),
        ({"num_channels": (32, 0, 32)}, r"num_channels\[1\]=0 must be a whole number of at least 1"),
        ({"num_channels": (32, 64.0, 32)}, r"num_channels\[1\]=64.0 must be a whole number"),
        ({"num_latents": 16}, "num_latents=16 needs one whole number a block"),
        ({"regroup": "shuffle"}, "regroup='shuffle' is not known; use one of reshape, transpose_reshape"),
        ({"position": "sine"}, "position='sine' is not known"),
        ({"position": {"image": "sine"}}, "position='sine' is not known"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"embedding_channels": 0}, "embedding_channels=0"),
        ({"activation_checkpointing": "all"}, "activation_checkpointing='all' is not known"),
        ({"widening": 2}, "HiPConfig has no field 'widening'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NANO.replace(**changes)


def test_from_dict_names_fields_that_are_unknown_or_missing() -> None:
    with pytest.raises(ConfigError, match="no field 'depth'"):
        HiPConfig.from_dict(NANO.to_dict() | {"depth": 3})
    values = NANO.to_dict()
    del values["num_groups"]
    with pytest.raises(ConfigError, match="num_groups"):
        HiPConfig.from_dict(values)


def test_perceiver_io_checks_its_heads_and_latents() -> None:
    config = PERCEIVER_IO_VARIANTS["io_mini"]
    with pytest.raises(ConfigError, match="num_self_attention_heads=3 does not divide num_channels=128"):
        config.replace(num_self_attention_heads=3)
    with pytest.raises(ConfigError, match="latents: 128 in training and 64 in evaluation"):
        config.replace(latents_eval=64)
    with pytest.raises(ConfigError, match="num_latents=0"):
        config.replace(num_latents=0)


def test_a_modality_without_a_position_kind_is_named() -> None:
    config = NANO.replace(position={"image": "learned"})
    with pytest.raises(ConfigError, match="no kind for modality 'audio'"):
        HiP(config, [Modality("image", 16, 3), Modality("audio", 16, 1)])


def test_modalities_need_different_names() -> None:
    with pytest.raises(ConfigError, match="different names"):
        HiP(NANO, [Modality("image", 16, 3), Modality("image", 16, 1)])


@pytest.mark.parametrize(
    ("name", "fitting"), [("keys", "keys_0"), ("training", "training_0"), ("left.eye", "left_eye"), ("", "image")]
)
def test_names_that_no_module_can_carry_are_refused_with_one_that_fits(name: str, fitting: str) -> None:
    for build in (
        lambda m: HiP(NANO, m),
        lambda m: build_model("perceiver_tiny", m),
        lambda m: build_model("io_mini", m),
    ):
        with pytest.raises(ConfigError, match=f"modality name '{name}'.*use a name like '{fitting}'"):
            build([Modality(name, 16, 3)])
