"""A keyed permutation of ``0 … n-1`` that is computed, not stored: no start-up cost, any position at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

_ROUNDS = 8
_WORD = np.uint64(0xFFFFFFFF)


class Permutation:
    """A bijection of ``0 … size-1`` that depends on ``key`` only.

    A Feistel network on a grid of about √size × √size cells, slightly more than ``size``; results outside are walked
    on until they fall inside (a handful of steps at most, below one on average).
    """

    def __init__(self, size: int, *key: object) -> None:
        if size < 1 or size > 1 << 62:
            raise ValueError(f"a permutation needs 1 to 2**62 items, got {size}")
        self.size = size
        self._height = max(1, math.isqrt(size - 1) + 1)
        self._width = -(-size // self._height)
        text = "\x1f".join(map(str, key)).encode()
        digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS, person=b"hip-order").digest()
        self._keys = np.frombuffer(digest, "<u8")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The items at ``positions`` (int64 ``[n]``, all in range), int64 ``[n]``."""
        items = self._step(positions.astype(np.uint64))
        outside = np.flatnonzero(items >= self.size)
        while outside.size:
            walked = self._step(items[outside])
            items[outside] = walked
            outside = outside[walked >= self.size]
        return items.astype(np.int64)

    def _step(self, items: np.ndarray) -> np.ndarray:
        """The network once: a bijection of the whole grid."""
        width = np.uint64(self._width)
        row, column = items // width, items % width
        for turn, key in enumerate(self._keys):
            if turn % 2 == 0:
                row = _shift(row, _scramble(column, key), self._height)
            else:
                column = _shift(column, _scramble(row, key), self._width)
        return row * width + column


def _scramble(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """32 well-mixed bits of each value (a multiply-xorshift finaliser)."""
    mixed = (values ^ key) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return mixed >> np.uint64(32)


def _shift(values: np.ndarray, noise: np.ndarray, modulus: int) -> np.ndarray:
    """``values`` moved round a ring of ``modulus`` places by ``noise`` scaled to it."""
    size = np.uint64(modulus)
    moved = values + ((noise * size) >> np.uint64(32))
    return np.where(moved >= size, moved - size, moved)


def by_segment(
    positions: np.ndarray, segments: np.ndarray, apply: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """``apply(segment, its positions)`` for each run of equal ``segments`` (both int64 ``[n]``), put back in order."""
    if not len(positions):
        return np.empty(0, np.int64)
    cuts = np.flatnonzero(np.diff(segments)) + 1
    parts = zip(np.split(segments, cuts), np.split(positions, cuts), strict=True)
    return np.concatenate([apply(int(segment[0]), part) for segment, part in parts])
