"""Some of many examples: from all over a dataset, whose neighbours are often windows of one long recording."""

from __future__ import annotations

import numpy as np

_RUNS = 16  # at least, where there are as many examples
_RUN_EXAMPLES = 16  # at most: about one record batch, which a remote store gives as a whole


def spread(count: int, available: int) -> np.ndarray:
    """``count`` of the examples ``range(available)`` (all, if there are fewer), ascending: int64 ``[count]``.

    Runs of neighbours, evenly spaced from the first example to the last, because neighbours are cheap to read.
    """
    count = min(count, available)
    if count <= 0:
        return np.empty(0, np.int64)
    run_examples = min(_RUN_EXAMPLES, -(-count // _RUNS))
    chosen = np.arange(count, dtype=np.int64)
    runs = chosen // run_examples
    return chosen + (available - count) * runs // max(1, int(runs[-1]))
