"""Counter-based randomness in int64 tensors: the splitmix64 generator, reproducible on every device.

Public-domain algorithm by Sebastiano Vigna; sums and products wrap around at 64 bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Bits = TypeVar("Bits", Tensor, np.ndarray[Any, Any])

_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def as_int64(value: int) -> int:
    """A Python integer wrapped into the signed 64-bit range."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def random_bits(seeds: Tensor, count: int) -> Tensor:
    """``[B, count]`` int64: the first ``count`` outputs of the generator for each of the seeds ``[B]``."""
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _INCREMENT
    return _finalise(seeds[:, None] + steps)


def mix(value: Bits) -> Bits:
    """A hash of each int64 in ``value``, same shape."""
    return _finalise(value + _INCREMENT)


def unit_interval(bits: Tensor) -> Tensor:
    """Random bits to float64 strictly between 0 and 1."""
    return ((bits >> 12 & (1 << 52) - 1).double() + 0.5) / (1 << 52)


def _finalise(value: Bits) -> Bits:
    # ``>>`` copies the sign bit on int64; the masks cut the copies off.
    for shift, multiplier in _MULTIPLIERS:
        value = (value ^ (value >> shift & (1 << 64 - shift) - 1)) * multiplier
    return value ^ (value >> 31 & (1 << 33) - 1)
