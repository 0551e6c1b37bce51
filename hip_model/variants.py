"""Named geometries: the papers' and our own small ones, and the one way to build a model from a name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError
from hip_model.hip import HiP
from hip_model.modality import Modality
from hip_model.perceiver import PERCEIVER_VARIANTS, Perceiver, PerceiverConfig
from hip_model.perceiver_io import PerceiverIO

ModelConfig = HiPConfig | PerceiverIOConfig | PerceiverConfig


def _hip(
    embedding_channels: int,
    groups: tuple[int, ...],
    latents: tuple[int, ...],
    channels: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> HiPConfig:
    blocks = len(groups)
    return HiPConfig(
        embedding_channels=embedding_channels,
        num_groups=groups,
        num_latents=latents,
        num_channels=channels,
        num_self_attention_layers=layers,
        num_self_attention_heads=heads,
        num_cross_attention_heads=(1,) * blocks,
        cross_attention_widening=(1,) * blocks,
        self_attention_widening=(4,) * blocks,
    )


def _perceiver_io(
    latents: int, channels: int, layers: int, cross_heads: int, self_heads: int, cross_widening: int, self_widening: int
) -> PerceiverIOConfig:
    return PerceiverIOConfig(
        embedding_channels=channels,
        num_latents=latents,
        num_channels=channels,
        num_self_attention_layers=layers,
        num_cross_attention_heads=cross_heads,
        num_self_attention_heads=self_heads,
        cross_attention_widening=cross_widening,
        self_attention_widening=self_widening,
    )


_HIP_256 = _hip(
    16,
    groups=(256, 64, 16, 4, 1, 1, 1, 4, 16, 64, 256),
    latents=(32, 64, 128, 256, 256, 64, 256, 256, 128, 64, 32),
    channels=(64, 96, 128, 256, 512, 1024, 256, 128, 64, 32, 16),
    layers=(1, 1, 2, 2, 18, 2, 1, 1, 1, 1, 1),
    heads=(1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1),
)

HIP_VARIANTS: dict[str, HiPConfig] = {
    "hip_mini": _hip(
        32, groups=(16, 1, 16), latents=(128, 64, 128), channels=(128, 1024, 128), layers=(2, 1, 1), heads=(4, 32, 4)
    ),
    "hip_16": _hip(
        32,
        groups=(16, 4, 1, 1, 1, 4, 16),
        latents=(128, 256, 256, 64, 256, 256, 128),
        channels=(128, 256, 512, 1024, 512, 256, 128),
        layers=(2, 2, 18, 2, 1, 1, 1),
        heads=(4, 8, 16, 32, 16, 8, 4),
    ),
    "hip_16x3": _hip(
        32, groups=(16, 1, 16), latents=(128, 256, 128), channels=(128, 1024, 128), layers=(2, 18, 2), heads=(4, 32, 4)
    ),
    "hip_256": _HIP_256,
    # The released decoder is narrower than the paper's; mirrored, it has the paper's 102.3 M parameters at 224 x 224.
    "hip_256_paper": _HIP_256.replace(num_channels=(64, 96, 128, 256, 512, 1024, 512, 256, 128, 96, 64)),
    # Ours: trains in milliseconds on one core.
    "hip_nano": _hip(
        16, groups=(4, 1, 4), latents=(16, 16, 16), channels=(32, 64, 32), layers=(1, 1, 1), heads=(2, 4, 2)
    ),
    # Ours: HiP-256's hierarchy at a size that learns on a laptop.
    "hip_micro": _hip(
        16,
        groups=(16, 4, 1, 1, 1, 4, 16),
        latents=(16, 32, 64, 32, 64, 32, 16),
        channels=(32, 64, 96, 128, 96, 64, 32),
        layers=(1, 1, 2, 1, 1, 1, 1),
        heads=(2, 4, 4, 4, 4, 4, 2),
    ),
}

PERCEIVER_IO_VARIANTS: dict[str, PerceiverIOConfig] = {
    "io_mini": _perceiver_io(128, 128, 2, 1, 2, 1, 2),
    "io_c_50m": _perceiver_io(1024, 512, 8, 8, 8, 4, 4),
    "io_c_150m": _perceiver_io(1024, 896, 12, 16, 16, 4, 4),
}


def available_models() -> list[str]:
    """The names ``build_model`` knows."""
    return [*HIP_VARIANTS, *PERCEIVER_IO_VARIANTS, *PERCEIVER_VARIANTS]


def build_model(name: str, modalities: Sequence[Modality], **overrides: Any) -> nn.Module:
    """The named model for these modalities; ``overrides`` replace config fields.

    Raises:
        ConfigError: an unknown name (with the nearest ones), an unknown field, or a config that does not fit.
    """
    config = model_config(name)
    if overrides:
        config = config.replace(**overrides)
    if isinstance(config, HiPConfig):
        return HiP(config, modalities)
    if isinstance(config, PerceiverConfig):
        return Perceiver(config, modalities)
    return PerceiverIO(config, modalities)


def model_config(name: str) -> ModelConfig:
    """The named model's config. Raises ConfigError for an unknown name, with the nearest ones."""
    if name in HIP_VARIANTS:
        return HIP_VARIANTS[name]
    if name in PERCEIVER_IO_VARIANTS:
        return PERCEIVER_IO_VARIANTS[name]
    if name in PERCEIVER_VARIANTS:
        return PERCEIVER_VARIANTS[name]
    raise _unknown(name, available_models())


def hip_variant(name: str) -> HiPConfig:
    """A HiP geometry by its name with or without ``hip_``, ``256-paper`` and the like included."""
    full = name.lower().replace("-", "_")
    full = full if full.startswith("hip_") else f"hip_{full}"
    if full not in HIP_VARIANTS:
        raise _unknown(name, list(HIP_VARIANTS))
    return HIP_VARIANTS[full]


def perceiver_io_variant(name: str) -> PerceiverIOConfig:
    """A Perceiver IO geometry by its name."""
    if name not in PERCEIVER_IO_VARIANTS:
        raise _unknown(name, list(PERCEIVER_IO_VARIANTS))
    return PERCEIVER_IO_VARIANTS[name]


def _unknown(name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(f"no model named {name!r}; {hint}known: {', '.join(known)}")
