"""Numbers with intervals: every metric is resampled over the units that were scored."""

from __future__ import annotations

from collections.abc import Callable
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


def bootstrap(
    metric: Callable[[IntArray], float], count: int, options: IntervalOptions, seed: int, resamples: int | None = None
) -> Estimate:
    """Evaluate ``metric`` on all of ``range(count)`` and on resamples of it with replacement.

    Resamples where the metric is undefined (NaN: a class that was not drawn) are left out of the interval.
    """
    random = np.random.default_rng(seed)
    value = metric(np.arange(count))
    drawn = [metric(random.integers(0, count, count)) for _ in range(resamples or options.resamples)]
    tail = (1 - options.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if not np.isnan(drawn).all() else (value, value)
    return Estimate(float(value), float(low), float(high), count)


def bootstrap_mean(values: FloatArray, options: IntervalOptions, seed: int) -> Estimate:
    """Interval of the mean of one value per example [N]."""
    return bootstrap(lambda rows: float(values[rows].mean()), len(values), options, seed)


def top_k_hits(scores: FloatArray, labels: IntArray, k: int) -> FloatArray:
    """1 where the label is among the k highest scores: scores [N, classes], labels [N] -> [N]."""
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return (best == labels[:, None]).any(axis=1).astype(np.float64)


def classification_metrics(
    scores: FloatArray, labels: IntArray, options: IntervalOptions, seed: int
) -> dict[str, Estimate]:
    """Top-1, top-5 (with more than five classes) and the mean of per-class accuracies."""
    found = {"top1": bootstrap_mean(top_k_hits(scores, labels, 1), options, seed)}
    if scores.shape[1] > 5:
        found["top5"] = bootstrap_mean(top_k_hits(scores, labels, 5), options, seed)
    hits = top_k_hits(scores, labels, 1)
    found["mean_class_accuracy"] = bootstrap(
        lambda rows: _mean_by_class(hits[rows], labels[rows]), len(labels), options, seed
    )
    return found


def per_class_accuracy(scores: FloatArray, labels: IntArray) -> FloatArray:
    """Accuracy of each class [classes]; NaN for a class without examples."""
    hits = top_k_hits(scores, labels, 1)
    return np.array(
        [hits[labels == index].mean() if (labels == index).any() else np.nan for index in range(scores.shape[1])]
    )


def _mean_by_class(hits: FloatArray, labels: IntArray) -> float:
    sums, counts = np.bincount(labels, weights=hits), np.bincount(labels)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def confusion(predicted: IntArray, labels: IntArray, num_classes: int) -> IntArray:
    """Counts [true class, predicted class]."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(labels, predicted, labels=np.arange(num_classes)))


def d_prime(area: float) -> float:
    """Separation of two unit normals whose ROC area is ``area``: sqrt(2) * inverse normal (AudioSet, ICASSP 2017).

    The area is held a millionth away from 0 and 1, so that a perfect score is 6.7 and not infinite.
    """
    from scipy.stats import norm

    return float(np.sqrt(2) * norm.ppf(np.clip(area, 1e-6, 1 - 1e-6)))


def per_class_average_precision(scores: FloatArray, targets: IntArray) -> FloatArray:
    """Average precision of each class [classes]; NaN where no example has it. Scores and targets [N, classes]."""
    from sklearn.metrics import average_precision_score

    return np.array(
        [
            average_precision_score(targets[:, index], scores[:, index]) if targets[:, index].any() else np.nan
            for index in range(targets.shape[1])
        ]
    )


def per_class_roc_area(scores: FloatArray, targets: IntArray) -> FloatArray:
    """Area under the ROC curve of each class [classes]; NaN where all or none of the examples have it."""
    from sklearn.metrics import roc_auc_score

    defined = np.logical_and(targets.any(axis=0), ~targets.all(axis=0))
    return np.array(
        [
            roc_auc_score(targets[:, index], scores[:, index]) if defined[index] else np.nan
            for index in range(targets.shape[1])
        ]
    )


def multilabel_metrics(
    scores: FloatArray, targets: IntArray, options: IntervalOptions, seed: int
) -> dict[str, Estimate]:
    """AudioSet's three numbers over clips: mean average precision, mean ROC area and the d' of that area.

    Scores and targets [clips, classes]. At most 200 resamples: each one sorts every class.
    """
    resamples = min(options.resamples, 200)

    def estimate(metric: Callable[[FloatArray, IntArray], float]) -> Estimate:
        return bootstrap(lambda rows: metric(scores[rows], targets[rows]), len(scores), options, seed, resamples)

    return {
        "mean_average_precision": estimate(lambda s, t: _nan_mean(per_class_average_precision(s, t))),
        "roc_area": estimate(lambda s, t: _nan_mean(per_class_roc_area(s, t))),
        "d_prime": estimate(lambda s, t: d_prime(_nan_mean(per_class_roc_area(s, t)))),
    }


def _nan_mean(values: FloatArray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def average_by_clip(
    scores: FloatArray, targets: IntArray, sources: list[str]
) -> tuple[FloatArray, IntArray, list[str]]:
    """AudioSet protocol: a clip's score is the mean over its windows, its labels their union.

    Returns:
        scores [clips, classes], targets [clips, classes], the clips in order of first appearance.
    """
    clips = list(dict.fromkeys(sources))
    position = {clip: index for index, clip in enumerate(clips)}
    rows = np.array([position[source] for source in sources])
    counts = np.bincount(rows, minlength=len(clips))[:, None]
    summed = np.zeros((len(clips), scores.shape[1]))
    np.add.at(summed, rows, scores)
    joined = np.zeros((len(clips), targets.shape[1]), dtype=targets.dtype)
    np.maximum.at(joined, rows, targets)
    return summed / counts, joined, clips


def recall_at(ranks_found: IntArray, ks: tuple[int, ...], options: IntervalOptions, seed: int) -> dict[str, Estimate]:
    """Recall@k from the rank (0 = first) at which each query's own target was found [N]."""
    found = {f"recall_at_{k}": bootstrap_mean((ranks_found < k).astype(np.float64), options, seed) for k in ks}
    found["median_rank"] = bootstrap(
        lambda rows: float(np.median(ranks_found[rows]) + 1), len(ranks_found), options, seed
    )
    return found


def decibel(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; the error is floored at 1e-12 of the squared peak."""
    return float(10 * np.log10(peak**2 / max(mean_squared_error, 1e-12 * peak**2)))
