"""Numbers with intervals: every metric is resampled over the files that were scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.options import IntervalOptions

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Estimate:
    """A metric and its bootstrap percentile interval; ``count`` is the number of units that were resampled."""

    value: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Units:
    """What is resampled: source files, each with all of its examples.

    Windows of one clip resemble each other; as if independent, they would give an interval that is too narrow. Where
    all examples come from one file there is nothing else to resample.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        numbers = {source: number for number, source in enumerate(dict.fromkeys(sources))}
        of_row = np.array([numbers[source] for source in sources], np.int64)
        if len(numbers) == 1:
            of_row = np.arange(len(sources))
        self._rows = np.argsort(of_row, kind="stable")
        self._sizes = np.bincount(of_row)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_rows(self) -> int:
        """Examples in all."""
        return len(self._rows)

    def draw(self, random: np.random.Generator) -> IntArray:
        """Rows of as many units as there are, drawn with replacement."""
        drawn = random.integers(0, len(self), len(self))
        sizes = self._sizes[drawn]
        first = self._starts[drawn] - (np.cumsum(sizes) - sizes)
        return self._rows[np.repeat(first, sizes) + np.arange(sizes.sum())]


def bootstrap(
    metric: Callable[[IntArray], float],
    units: Units,
    options: IntervalOptions,
    seed: int,
    resamples: int | None = None,
) -> Estimate:
    """Evaluate ``metric`` on all rows and on those of resampled units."""
    random = np.random.default_rng(seed)
    drawn = [metric(units.draw(random)) for _ in range(resamples or options.resamples)]
    return percentile_interval(metric(np.arange(units.num_rows)), np.array(drawn), len(units), options)


def bootstrap_mean(values: FloatArray, units: Units, options: IntervalOptions, seed: int) -> Estimate:
    """Interval of the mean of one value per example [N]."""
    return bootstrap(lambda rows: float(values[rows].mean()), units, options, seed)


def percentile_interval(value: float, drawn: FloatArray, count: int, options: IntervalOptions) -> Estimate:
    """An estimate from a metric's values on resamples [R].

    Resamples where the metric is undefined (NaN: a class that was not drawn) are left out of the interval.
    """
    tail = (1 - options.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if not np.isnan(drawn).all() else (value, value)
    return Estimate(float(value), float(low), float(high), count)
