"""Raw values to normalised ones and back, on the device the data is on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hip_model.errors import ConfigError, InputError

RAW_PEAKS = {"uint8": 255.0, "int8": 255.0, "int16": 65535.0, "float32": 1.0, "float16": 1.0, "float64": 1.0}
"""Peak-to-peak range taken as the signal's peak in PSNR, by raw dtype; for floats say it with ``peak``."""


@dataclass(frozen=True)
class Normalisation:
    """``normalised = (raw - mean) / std`` per channel, in the units the shards store.

    ``raw_dtype`` is how raw values are stored. With a float type, float inputs are raw and get normalised too;
    otherwise (None or an integer type) float inputs are taken as normalised already. ``peak`` is the raw peak-to-peak
    range that PSNR refers to (default by ``raw_dtype``, see ``RAW_PEAKS``; 1.0 where that is unknown).

    Raises:
        ConfigError: mean and std of different lengths, or a std or peak that is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    raw_dtype: str | None = None
    peak: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"normalisation needs one mean and one std per channel, got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"normalisation needs every std above 0, got {self.std}; use 1.0 for a constant channel")
        if self.peak is not None and not self.peak > 0:
            raise ConfigError(f"normalisation needs a peak above 0, got {self.peak}")

    @classmethod
    def identity(cls, num_channels: int) -> Normalisation:
        """Values are used as they are."""
        return cls((0.0,) * num_channels, (1.0,) * num_channels)

    def normalise(self, values: Tensor) -> Tensor:
        """``[..., C]`` raw (or, for floats, possibly already normalised) values to float32 normalised ones.

        Raises:
            InputError: the last axis is not the number of channels of this normalisation.
        """
        self._check(values)
        floats_are_raw = self.raw_dtype is not None and self.raw_dtype.startswith("float")
        if values.is_floating_point() and not floats_are_raw:
            return values
        scale, offset = _constants(self.mean, self.std, values.device)
        together = _tokens_together(values)
        if together == 1:
            return torch.addcmul(offset, values.float(), scale)
        result = values.to(torch.float32, copy=True).contiguous()
        rows = result.view(*values.shape[:-2], values.shape[-2] // together, together * values.shape[-1])
        torch.addcmul(offset.repeat(together), rows, scale.repeat(together), out=rows)
        return result

    def denormalise(self, values: Tensor) -> Tensor:
        """``[..., C]`` normalised values back to raw units, float32, neither rounded nor clipped."""
        self._check(values)
        return values.float() * _vector(self.std, values.device) + _vector(self.mean, values.device)

    def raw_squared_error(self, squared_error: Tensor) -> Tensor:
        """Mean over channels, in raw units squared, of a normalised squared error per channel ``[..., C]``."""
        return (squared_error.float() * _vector(self.std, squared_error.device).square()).mean(dim=-1)

    def psnr(self, squared_error: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Peak signal-to-noise ratio in dB of a normalised squared error per channel ``[..., C]``, in raw units.

        ``dtype`` is the input's own dtype, which states the peak where neither ``peak`` nor ``raw_dtype`` does.
        """
        peak = self.peak_value(dtype)
        return 10 * torch.log10(peak * peak / self.raw_squared_error(squared_error).clamp_min(1e-12 * peak * peak))

    def peak_value(self, dtype: torch.dtype | None = None) -> float:
        """The raw peak-to-peak range used in PSNR: ``peak``, else by ``raw_dtype``, else by the given dtype, else 1."""
        if self.peak is not None:
            return self.peak
        name = self.raw_dtype or str(dtype).removeprefix("torch.")
        return RAW_PEAKS.get(name, 1.0)

    def _check(self, values: Tensor) -> None:
        if values.shape[-1:] != (len(self.mean),):
            raise InputError(f"normalisation has {len(self.mean)} channels, got values of shape {tuple(values.shape)}")


def normalisations_from_card(card: Mapping[str, Any]) -> dict[str, Normalisation]:
    """The normalisations in a data card ``{"modalities": [{"name", "dtype"}], "normalisation": {name: {mean, std}}}``.

    Raises:
        InputError: a modality of the card has no statistics.
    """
    dtypes = {entry["name"]: entry.get("dtype") for entry in card["modalities"]}
    missing = sorted(set(dtypes) - set(card["normalisation"]))
    if missing:
        raise InputError(f"the data card has no normalisation for {', '.join(missing)}")
    return {
        name: Normalisation(tuple(entry["mean"]), tuple(entry["std"]), raw_dtype=dtypes.get(name))
        for name, entry in card["normalisation"].items()
    }


def _tokens_together(values: Tensor) -> int:
    """Tokens taken as one row, so that a CPU's vectors are longer than a few channels: 3 to 6 times as fast for RGB."""
    if values.device.type != "cpu" or values.ndim < 2 or values.requires_grad or torch.compiler.is_compiling():
        return 1
    return math.gcd(values.shape[-2], 64)


def _vector(values: tuple[float, ...], device: torch.device) -> Tensor:
    # A compiled graph keeps its own constants; tracing through a cache only warns.
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.float32, device=device)
    return _cached_vector(values, device)


# Plain cached tensors, not buffers: a cast of the model to bfloat16 would round a buffer's statistics.
@lru_cache(maxsize=256)
def _cached_vector(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = [1 / deviation for deviation in std]
    offset = [-centre / deviation for centre, deviation in zip(mean, std, strict=True)]
    return _vector(tuple(scale), device), _vector(tuple(offset), device)
