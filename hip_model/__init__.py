"""Hierarchical Perceiver and its relatives in PyTorch: models, masked autoencoding, task heads, export.

Names are loaded on first use: what needs no tensors (modalities, token orders, errors) must not import torch,
since every media-decoding process uses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hip_model.class_bottleneck import ClassBottleneckHiP
    from hip_model.config import HiPConfig, PerceiverIOConfig
    from hip_model.errors import ConfigError, InputError
    from hip_model.hip import HiP
    from hip_model.modality import Modality
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
    "Modality": "modality",
    "ModelOutput": "tokens",
    "PerceiverIO": "perceiver_io",
    "PerceiverIOConfig": "config",
    "TokenSelection": "selection",
    "available_models": "variants",
    "build_model": "variants",
}

__all__ = [
    "ClassBottleneckHiP",
    "ConfigError",
    "HiP",
    "HiPConfig",
    "InputError",
    "Modality",
    "ModelOutput",
    "PerceiverIO",
    "PerceiverIOConfig",
    "TokenSelection",
    "available_models",
    "build_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
