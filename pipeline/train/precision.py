"""Whether bfloat16 helps on this device: most processors have no instructions for it and emulate its products."""

from __future__ import annotations

import time

import torch

_SIDE = 128
_WORTH_A_WARNING = 2.0


def slow_bfloat16(device: torch.device, precision: str) -> str | None:
    """What to say about ``engine.precision=bf16`` on this processor; none where it is not used or is no slower.

    Measured in some milliseconds, because the instructions differ by vendor and torch's use of them by version.
    """
    if device.type != "cpu" or precision != "bf16":
        return None
    ratio = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
    if ratio < _WORTH_A_WARNING:
        return None
    return (
        f"engine.precision=bf16: this processor emulates bfloat16, its matrix products take {ratio:.0f} times as "
        "long as float32's; engine.precision=fp32 (or auto) is faster here"
    )


def _product_seconds(dtype: torch.dtype) -> float:
    """The least of several square products."""
    factor = torch.ones(_SIDE, _SIDE, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - start)
    return min(seconds)
