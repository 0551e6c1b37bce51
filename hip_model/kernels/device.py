"""When the device kernels (Triton) stand in for the plain forms."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_is_allowed = os.environ.get("HIP_PLAIN_KERNELS") != "1"
_launches_are_recorded = False
_PROGRAMS_PER_PROCESSOR = 4


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Within the block only the plain forms run, on any device: what the device kernels are compared with."""
    global _is_allowed
    before, _is_allowed = _is_allowed, False
    try:
        yield
    finally:
        _is_allowed = before


def has_device_kernels(like: Tensor) -> bool:
    """Whether Triton runs for tensors such as this one: on CUDA, or anywhere under ``TRITON_INTERPRET=1``.

    Graphs that are compiled or exported take the plain forms: those run without this package. ``HIP_PLAIN_KERNELS=1``
    is the way out for a device on which a kernel fails.
    """
    if not (like.is_cuda or _IS_INTERPRETED) or not _is_allowed:  # asked thousands of times a step: cheapest first
        return False
    return not (torch.compiler.is_compiling() or torch.compiler.is_exporting()) and _has_triton()


@contextlib.contextmanager
def recorded_launches() -> Iterator[None]:
    """Around the recording of a CUDA graph, and the steps before it: the kernels of single layers are used too."""
    global _launches_are_recorded
    before, _launches_are_recorded = _launches_are_recorded, True
    try:
        yield
    finally:
        _launches_are_recorded = before


def has_layer_kernels(like: Tensor) -> bool:
    """Whether the device kernels of single layers (norms, activations, bias sums) run for tensors such as this one.

    There are hundreds in a step, and a launch of Triton's costs the host more than such a kernel saves the device, at
    any batch that was measured (docs/performance.md, "On a GPU"): only where launches are recorded, or interpreted.
    """
    return has_device_kernels(like) and (_launches_are_recorded or not like.is_cuda)


def is_whole(*parameters: Tensor | None) -> bool:
    """Whether these parameters are here: ZeRO-3 leaves size 0 of a weight outside its own module's forward."""
    return all(parameter is not None and parameter.numel() > 0 for parameter in parameters)


def compute_dtype(like: Tensor) -> torch.dtype:
    """The dtype that matrix products of ``like`` run in, autocast considered."""
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return like.dtype


def shares(programs: int, blocks: int, device: torch.device) -> int:
    """Into how many shares a group's blocks are cut so that all processors of the device have work."""
    wanted = 4 * _processors(device)
    return max(1, min(blocks, -(-wanted // programs)))


def programs_for(blocks: int, device: torch.device) -> int:
    """How many programs to start for that many blocks of rows, each taking several."""
    return max(1, min(blocks, _PROGRAMS_PER_PROCESSOR * _processors(device)))


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=16)
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
