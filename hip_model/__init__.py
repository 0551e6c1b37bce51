"""Hierarchical Perceiver and its relatives in PyTorch: models, masked autoencoding, task heads, export.

Names are loaded on first use: what needs no tensors (modalities, token orders, errors) must not import torch,
since every media-decoding process uses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hip_model.autoencoder import LossConfig, MAEOutput, MaskedAutoencoder
    from hip_model.class_bottleneck import ClassBottleneckHiP
    from hip_model.config import HiPConfig, PerceiverIOConfig
    from hip_model.errors import ConfigError, InputError
    from hip_model.export import from_pretrained, load_metadata, save_pretrained
    from hip_model.hip import HiP
    from hip_model.masking import MaskConfig, mask_seeds
    from hip_model.modality import Modality
    from hip_model.normalisation import Normalisation
    from hip_model.perceiver import Perceiver, PerceiverConfig
    from hip_model.perceiver_io import PerceiverIO
    from hip_model.selection import TokenSelection
    from hip_model.tokens import ModelOutput
    from hip_model.variants import available_models, build_model

_HOMES = {
    "ClassBottleneckHiP": "class_bottleneck",
    "ConfigError": "errors",
    "HiP": "hip",
    "HiPConfig": "config",
    "InputError": "errors",
    "LossConfig": "autoencoder",
    "MAEOutput": "autoencoder",
    "MaskConfig": "masking",
    "MaskedAutoencoder": "autoencoder",
    "Modality": "modality",
    "ModelOutput": "tokens",
    "Normalisation": "normalisation",
    "Perceiver": "perceiver",
    "PerceiverConfig": "perceiver",
    "PerceiverIO": "perceiver_io",
    "PerceiverIOConfig": "config",
    "TokenSelection": "selection",
    "available_models": "variants",
    "build_model": "variants",
    "from_pretrained": "export",
    "load_metadata": "export",
    "mask_seeds": "masking",
    "save_pretrained": "export",
}

__all__ = [
    "ClassBottleneckHiP",
    "ConfigError",
    "HiP",
    "HiPConfig",
    "InputError",
    "LossConfig",
    "MAEOutput",
    "MaskConfig",
    "MaskedAutoencoder",
    "Modality",
    "ModelOutput",
    "Normalisation",
    "Perceiver",
    "PerceiverConfig",
    "PerceiverIO",
    "PerceiverIOConfig",
    "TokenSelection",
    "available_models",
    "build_model",
    "from_pretrained",
    "load_metadata",
    "mask_seeds",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
