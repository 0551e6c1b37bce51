"""Numbers with intervals: every metric is resampled over the files that were scored."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.options import IntervalOptions

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

_ABOUT = "about"


@dataclass(frozen=True)
class Resamples:
    """A metric's values on resamples [R]; those with equal ``drawn`` are of the same units, one resample by one."""

    drawn: str  # digest of the units' names and the seed
    confidence: float
    values: FloatArray


@dataclass(frozen=True)
class Estimate:
    """A metric and its bootstrap percentile interval; ``count`` is the number of units that were resampled."""

    value: float
    low: float
    high: float
    count: int
    resamples: Resamples | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        """For JSON; without the resamples."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}

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
        self._names = list(numbers)
        self._rows = np.argsort(of_row, kind="stable")
        self._sizes = np.bincount(of_row)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_rows(self) -> int:
        """Examples in all."""
        return len(self._rows)

    def digest(self, seed: int) -> str:
        """Equal where the same units are drawn, one resample after another."""
        text = "\n".join([str(seed), str(len(self)), *self._names])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
    return percentile_interval(metric(np.arange(units.num_rows)), np.array(drawn), units, options, seed)


def bootstrap_mean(values: FloatArray, units: Units, options: IntervalOptions, seed: int) -> Estimate:
    """Interval of the mean of one value per example [N]."""
    return bootstrap(lambda rows: float(values[rows].mean()), units, options, seed)


def percentile_interval(value: float, drawn: FloatArray, units: Units, options: IntervalOptions, seed: int) -> Estimate:
    """An estimate from a metric's values on resamples [R] of ``units``, which were drawn by ``seed``.

    Resamples where the metric is undefined (NaN: a class that was not drawn) are left out of the interval.
    """
    tail = (1 - options.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if not np.isnan(drawn).all() else (value, value)
    resamples = Resamples(units.digest(seed), options.confidence, drawn)
    return Estimate(float(value), float(low), float(high), len(units), resamples)


def resamples_to_bytes(metrics: Mapping[str, Estimate]) -> bytes:
    """The resamples of a report's metrics as an npz file, with the values that they belong to."""
    known = {name: (entry.value, entry.resamples) for name, entry in metrics.items() if entry.resamples is not None}
    about = {name: [value, of.drawn, of.confidence] for name, (value, of) in known.items()}
    arrays: dict[str, Any] = {name: of.values for name, (_, of) in known.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **{_ABOUT: np.array(json.dumps(about)), **arrays})
    return content.getvalue()


def with_resamples(metrics: Mapping[str, Estimate], content: bytes) -> dict[str, Estimate]:
    """Metrics with the resamples that ``resamples_to_bytes`` kept of them; one of another value stays without."""
    found = dict(metrics)
    with np.load(io.BytesIO(content)) as arrays:
        for name, (value, drawn, confidence) in json.loads(str(arrays[_ABOUT])).items():
            if name in found and found[name].value == value:
                found[name] = replace(found[name], resamples=Resamples(drawn, confidence, arrays[name]))
    return found


def difference_margin(one: Estimate, other: Estimate) -> tuple[float, bool]:
    """Half the interval of ``one - other``, and whether the two were scored on the same resamples.

    Then it is that of the differences, in which what makes a file easy or hard for both cancels. Else both are taken as
    independent, which makes it as wide as can be: the root of the summed squares of both half intervals.
    """
    mine, theirs = one.resamples, other.resamples
    if mine is not None and theirs is not None and _drawn_alike(mine, theirs):
        known = mine.values - theirs.values
        tail = (1 - mine.confidence) / 2
        if not np.isnan(known).all():
            low, high = np.nanquantile(known, [tail, 1 - tail])
            return float(high - low) / 2, True
    return math.hypot((one.high - one.low) / 2, (other.high - other.low) / 2), False


def _drawn_alike(mine: Resamples, theirs: Resamples) -> bool:
    return (mine.drawn, mine.confidence, len(mine.values)) == (theirs.drawn, theirs.confidence, len(theirs.values))
