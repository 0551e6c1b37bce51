"""Decibels are averaged as the errors that they stand for, so that how a batch was cut does not show."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def error_of(decibels: Number) -> Number:
    """Mean squared error relative to the squared peak."""
    return 10 ** (decibels / -10)


def decibels_of(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error relative to the squared peak."""
    return -10 * math.log10(error)
