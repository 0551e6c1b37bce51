"""In which order the cells of a grid, or the points of a cloud, become a sequence of tokens.

HiP's groups are runs of consecutive tokens, so the order decides what a group sees. Raster is the paper's order; the
space-filling ones keep a group compact. Every order here is a permutation ``order`` with ``order[i]`` the raster index
of token ``i``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hip_model.errors import ConfigError, InputError

Indices = NDArray[np.int64]

TOKEN_ORDERS = ("raster", "morton", "hilbert", "frame_major", "time_major", "shuffled", "kd")
"""``kd`` depends on each example's coordinates (see :func:`kd_order`); the others depend on the shape alone."""


def token_order(name: str, shape: tuple[int, ...], seed: int = 0) -> Indices:
    """The permutation with which ``name`` flattens an array of ``shape``: raster index of each token, ``[T]`` int64.

    ``raster`` and ``frame_major`` are row-major, ``time_major`` lets the first axis run fastest, ``morton`` and
    ``hilbert`` follow the curve through the enclosing power-of-two grid, ``shuffled`` is one fixed permutation per
    (shape, seed). The array is cached and read-only.

    Raises:
        ConfigError: an unknown name, an empty or non-positive shape, or ``kd``, which no shape can decide.
    """
    if name not in TOKEN_ORDERS:
        raise ConfigError(f"token order {name!r} is unknown; choose one of {', '.join(TOKEN_ORDERS)}")
    if name == "kd":
        raise ConfigError("token order 'kd' depends on each example's coordinates; call kd_order(points) instead")
    if not shape or min(shape) < 1:
        raise ConfigError(f"token order {name!r} needs a shape with axes of at least 1, got {tuple(shape)}")
    return _cached_order(name, tuple(int(size) for size in shape), seed)


def inverse(order: Indices) -> Indices:
    """The permutation that undoes ``order``: token index of each raster index, ``[tokens]``."""
    undone = np.empty_like(order)
    undone[order] = np.arange(order.size, dtype=np.int64)
    return undone


def flatten(array: NDArray[Any], order: Indices) -> NDArray[Any]:
    """``[*shape, C]`` to tokens ``[T, C]`` in the given order.

    Raises:
        InputError: the array has another number of cells than the order.
    """
    cells = math.prod(array.shape[:-1])
    if cells != order.size:
        raise InputError(
            f"an array of shape {array.shape} has {cells} cells before its channels, the order {order.size}"
        )
    return array.reshape(cells, array.shape[-1])[order]


def unflatten(tokens: NDArray[Any], order: Indices, shape: tuple[int, ...]) -> NDArray[Any]:
    """Tokens ``[T, C]`` in the given order back to ``[*shape, C]``.

    Raises:
        InputError: tokens, order and shape disagree about the number of cells.
    """
    if not tokens.shape[0] == order.size == math.prod(shape):
        raise InputError(f"{tokens.shape[0]} tokens, an order of {order.size} and shape {shape} do not fit together")
    return tokens[inverse(order)].reshape(*shape, tokens.shape[-1])


def kd_order(points: NDArray[Any]) -> Indices:
    """Order of a point cloud ``[P, D]`` by a balanced k-d tree: halve along the widest axis until single points remain.

    A pure function of the coordinates but for exact duplicates, which keep their given order.

    Raises:
        InputError: not a two-axis array, no points, or coordinates that are not finite.
    """
    if points.ndim != 2 or points.shape[0] < 1 or points.shape[1] < 1:
        raise InputError(f"k-d order needs points [P, D] with at least one point and axis, got shape {points.shape}")
    if not np.isfinite(points).all():
        raise InputError("k-d order needs finite coordinates; drop points with NaN or infinity first")
    order = np.lexsort(points.T[::-1]).astype(np.int64)
    starts = np.zeros(1, dtype=np.int64)
    while starts.size < order.size:
        order = order[_sort_segments(points[order], starts)]
        starts = _halve(starts, order.size)
    return order


def _sort_segments(points: NDArray[Any], starts: Indices) -> Indices:
    """Permutation that sorts every segment of ``points`` along the segment's widest axis, segments staying in place."""
    sizes = np.diff(starts, append=len(points))
    spans = np.maximum.reduceat(points, starts, axis=0) - np.minimum.reduceat(points, starts, axis=0)
    widest = np.repeat(spans.argmax(axis=1), sizes)
    segment = np.repeat(np.arange(starts.size), sizes)
    return np.lexsort((points[np.arange(len(points)), widest], segment))


def _halve(starts: Indices, total: int) -> Indices:
    """Segment starts after cutting every segment of at least two items into halves, the first one the larger."""
    sizes = np.diff(starts, append=total)
    middles = (starts + (sizes + 1) // 2)[sizes > 1]
    return np.sort(np.concatenate([starts, middles]))


@lru_cache(maxsize=32)
def _cached_order(name: str, shape: tuple[int, ...], seed: int) -> Indices:
    cells = math.prod(shape)
    if name in ("raster", "frame_major"):
        order = np.arange(cells, dtype=np.int64)
    elif name == "time_major":
        order = np.moveaxis(np.arange(cells, dtype=np.int64).reshape(shape), 0, -1).reshape(-1)
    elif name == "shuffled":
        order = np.random.Generator(np.random.PCG64(seed)).permutation(cells).astype(np.int64)
    else:
        coordinates = np.stack(np.unravel_index(np.arange(cells), shape)).astype(np.int64)
        bits = [(size - 1).bit_length() for size in shape]
        key = _morton_key(coordinates, bits) if name == "morton" else _hilbert_key(coordinates, max(bits))
        order = np.argsort(key, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _morton_key(coordinates: Indices, bits: list[int]) -> Indices:
    """Interleaved bits of the coordinates ``[axes, cells]``, highest first; an axis without a bit there is skipped."""
    key = np.zeros(coordinates.shape[1], dtype=np.int64)
    for level in reversed(range(max(bits))):
        for axis, axis_bits in enumerate(bits):
            if level < axis_bits:
                key = key << 1 | coordinates[axis] >> level & 1
    return key


def _hilbert_key(coordinates: Indices, bits: int) -> Indices:
    """Position on the Hilbert curve of ``[axes, cells]`` coordinates below ``2**bits`` (Skilling 2004, vectorised)."""
    axes = len(coordinates)
    state = coordinates.copy()
    for level in reversed(range(1, bits)):
        lower = (1 << level) - 1
        for axis in range(axes):
            is_set = (state[axis] >> level & 1).astype(bool)
            exchanged = np.where(is_set, 0, (state[0] ^ state[axis]) & lower)
            state[0] ^= np.where(is_set, lower, exchanged)
            state[axis] ^= exchanged
    for axis in range(1, axes):
        state[axis] ^= state[axis - 1]
    flips = np.zeros_like(state[0])
    for level in reversed(range(1, bits)):
        flips ^= np.where(state[-1] >> level & 1, (1 << level) - 1, 0)
    return _morton_key(state ^ flips, [bits] * axes)
