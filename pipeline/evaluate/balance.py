"""Rare classes as often as common ones: what an example weighs by the classes that it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def class_weights(labels: Sequence[tuple[int, ...]], exponent: float) -> np.ndarray:
    """What each example weighs [N]: the sum over its classes of ``count ** -exponent``; no class counts as one more."""
    of_rows = [classes or (-1,) for classes in labels]
    counts = Counter(name for classes in of_rows for name in classes)
    return np.array([sum(counts[name] ** -exponent for name in classes) for classes in of_rows])
