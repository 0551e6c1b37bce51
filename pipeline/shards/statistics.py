"""Per-channel sums of raw token values, mergeable and exact for integers, taken while a shard is written."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import DataError

Number = int | float

_PLANE_TYPES = (np.uint8, np.int16)
_MOST_PLANES = 4  # what OpenCV sums at once
_PLANE_TOKENS = 1 << 17  # squares of so much sound stay below 2**47, where a root and its square err by 0.06 at most

_APART_BYTES = 16  # equally aligned planes are stored past the cache, and the sums wait for memory: twice the time

_BLOCK_ROWS = 128  # 128 * 255**2 < 2**24: sums of squared bytes stay exact in float32
_LOCAL = threading.local()
_BLOCK_TOKENS = 1024  # tokens folded side by side; the scratch block of 3 channels is then 1.5 MB


@dataclass(frozen=True)
class ChannelSums:
    """Sums over all tokens of all examples, one entry a channel; ``a + b`` merges.

    ``count`` is tokens per channel. Integer data give exact Python integers, so mean and std do not depend on how the
    examples were split over shards.
    """

    examples: int
    count: int
    total: tuple[Number, ...]
    squares: tuple[Number, ...]
    minimum: tuple[Number, ...]
    maximum: tuple[Number, ...]

    @classmethod
    def of(cls, tokens: np.ndarray, examples: int = 1) -> ChannelSums:
        """The sums of ``examples`` examples, all their tokens as ``[n, channels]``, without a wide copy of them."""
        num_tokens, num_channels = tokens.shape
        by_plane = tokens.dtype in _PLANE_TYPES and num_channels <= _MOST_PLANES
        folded = _by_plane(tokens) if by_plane else _by_column(tokens)
        total, squares, lowest, highest = (np.stack(column) for column in zip(*folded, strict=True))
        number = int if tokens.dtype.kind in "iu" else float
        return cls(
            examples,
            num_tokens,
            tuple(map(number, total.sum(axis=0))),
            tuple(map(number, squares.sum(axis=0))),
            tuple(map(number, lowest.min(axis=0))),
            tuple(map(number, highest.max(axis=0))),
        )

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(
            self.examples + other.examples,
            self.count + other.count,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            tuple(min(a, b) for a, b in zip(self.minimum, other.minimum, strict=True)),
            tuple(max(a, b) for a, b in zip(self.maximum, other.maximum, strict=True)),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, raw units."""
        return tuple(total / self.count for total in self.total)

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation of each channel, raw units."""
        spread = (self.count * square - total * total for total, square in zip(self.total, self.squares, strict=True))
        return tuple(math.sqrt(max(0.0, value)) / self.count for value in spread)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back exactly."""
        return {
            "examples": self.examples,
            "count": self.count,
            "sum": list(self.total),
            "sum_of_squares": list(self.squares),
            "min": list(self.minimum),
            "max": list(self.maximum),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ChannelSums:
        """Read what ``to_dict`` gave.

        Raises:
            DataError: a missing key or a list of the wrong kind.
        """
        try:
            return cls(
                int(values["examples"]),
                int(values["count"]),
                *(tuple(values[key]) for key in ("sum", "sum_of_squares", "min", "max")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"statistics are described wrongly: {values!r}") from error


def _by_plane(tokens: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Sum, sum of squares, minimum and maximum per channel of some tokens after others, by OpenCV's vector code."""
    import cv2

    num_channels = tokens.shape[1]
    total, squares = [0] * num_channels, [0] * num_channels
    lowest, highest = [math.inf] * num_channels, [-math.inf] * num_channels
    for start in range(0, len(tokens), _PLANE_TOKENS):
        for channel, plane in enumerate(_planes(tokens[start : start + _PLANE_TOKENS])):
            total[channel] += round(cv2.sumElems(plane)[0])
            # OpenCV takes a root on the way: rounding undoes it.
            squares[channel] += round(cv2.norm(plane, cv2.NORM_L2SQR))
            least, most, _, _ = cv2.minMaxLoc(plane)
            lowest[channel], highest[channel] = min(lowest[channel], least), max(highest[channel], most)
    return [(np.array(total), np.array(squares), np.array(lowest, np.int64), np.array(highest, np.int64))]


def _planes(tokens: np.ndarray) -> list[np.ndarray]:
    """Each channel of ``[n, channels]`` as ``[1, n]``, in memory that a thread keeps: fresh memory costs the most."""
    import cv2

    num_tokens, num_channels = tokens.shape
    if num_channels == 1:
        return [np.ascontiguousarray(tokens).reshape(1, -1)]
    kept: dict[tuple[int, str], np.ndarray] = _LOCAL.__dict__.setdefault("planes", {})
    shape = (num_channels, tokens.dtype.str)
    if shape not in kept:
        spacing = _PLANE_TOKENS + _APART_BYTES // tokens.itemsize
        kept[shape] = np.empty((num_channels, 1, spacing), tokens.dtype)
    planes = [plane[:, :num_tokens] for plane in kept[shape]]
    return list(cv2.split(np.ascontiguousarray(tokens).reshape(1, -1, num_channels), planes))


def _by_column(tokens: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The same for any type and number of channels, many tokens side by side."""
    num_tokens, num_channels = tokens.shape
    group = max(1, min(_BLOCK_TOKENS, num_tokens // _BLOCK_ROWS))
    whole = num_tokens // group * group
    parts = [tokens[:whole].reshape(-1, group * num_channels), tokens[whole:].reshape(-1, num_channels)]
    return [_fold(part, num_channels) for part in parts if part.size]


def _fold(part: np.ndarray, num_channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sum, sum of squares, minimum and maximum per channel of ``[rows, k * channels]``."""
    wide = np.float32 if part.dtype.itemsize == 1 else np.float64  # float32 is exact for bytes only, and twice as fast
    total = np.zeros(part.shape[1], np.float64)
    squares = np.zeros(part.shape[1], np.float64)
    scratch = _scratch(part.shape[1], wide)
    ones = np.ones(_BLOCK_ROWS, wide)  # summing by a matrix product takes two thirds of the time of add.reduce
    for start in range(0, len(part), _BLOCK_ROWS):
        rows = part[start : start + _BLOCK_ROWS]
        block = scratch[: len(rows)]
        np.copyto(block, rows)
        total += ones[: len(rows)] @ block
        np.multiply(block, block, out=block)
        squares += ones[: len(rows)] @ block
    return (
        _exact(total, part).reshape(-1, num_channels).sum(axis=0),
        _exact(squares, part).reshape(-1, num_channels).sum(axis=0),
        part.min(axis=0).reshape(-1, num_channels).min(axis=0),
        part.max(axis=0).reshape(-1, num_channels).max(axis=0),
    )


def _scratch(columns: int, wide: type[np.floating[Any]]) -> np.ndarray:
    """A block ``[_BLOCK_ROWS, columns]`` that each thread keeps: touching fresh memory costs as much as the sums."""
    held: np.ndarray | None = getattr(_LOCAL, "scratch", None)
    if held is None or held.dtype != wide or held.size < _BLOCK_ROWS * columns:
        held = _LOCAL.scratch = np.empty(_BLOCK_ROWS * columns, wide)
    return held[: _BLOCK_ROWS * columns].reshape(_BLOCK_ROWS, columns)


def _exact(sums: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Integer sums as integers: float64 holds them exactly below 2**53."""
    return sums.astype(np.int64) if part.dtype.kind in "iu" else sums
