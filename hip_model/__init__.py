"""Hierarchical Perceiver and its relatives in PyTorch: models, masked autoencoding, task heads, export."""

from hip_model.class_bottleneck import ClassBottleneckHiP
from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError, InputError
from hip_model.hip import HiP
from hip_model.modality import Modality
from hip_model.perceiver_io import PerceiverIO
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput
from hip_model.variants import available_models, build_model

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
