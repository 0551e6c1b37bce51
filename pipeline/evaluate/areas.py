"""Areas under precision-recall and ROC curves, class by class."""

from __future__ import annotations

import numpy as np

from pipeline.evaluate.resampling import FloatArray, IntArray


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


def resampled_areas(scores: FloatArray, targets: IntArray, times_drawn: IntArray) -> tuple[FloatArray, FloatArray]:
    """Both areas on resamples, ``[R, classes]`` each; example i was drawn ``times_drawn[i]`` (``[N, R]``) times.

    The numbers of the two functions above, but each class is sorted once instead of once a resample: for AudioSet's
    20,371 clips and 527 classes that is the difference between an hour and half a minute.
    """
    areas = [_areas(scores[:, index], targets[:, index], times_drawn) for index in range(scores.shape[1])]
    precision, roc = zip(*areas, strict=True)
    return np.stack(precision, axis=1), np.stack(roc, axis=1)


def _areas(scores: FloatArray, targets: IntArray, times_drawn: IntArray) -> tuple[FloatArray, FloatArray]:
    """Of one class: scores and targets [N] -> [R] twice. Examples of the same score share one threshold."""
    order = np.argsort(-scores, kind="stable")
    falling, positives = -scores[order], np.flatnonzero(targets[order])
    undefined = np.full(times_drawn.shape[1], np.nan)
    if not len(positives):
        return undefined, undefined
    # How many were drawn down to each place of the ranking, and positive ones among them; a row of zeros for "none".
    drawn = np.zeros((len(order) + 1, times_drawn.shape[1]), times_drawn.dtype)
    np.cumsum(times_drawn[order], axis=0, out=drawn[1:])
    weights = times_drawn[order[positives]]
    hits = np.concatenate([np.zeros_like(weights[:1]), np.cumsum(weights, axis=0)])
    starts = np.searchsorted(falling, falling[positives], side="left")
    ends = np.searchsorted(falling, falling[positives], side="right")
    hits_at_end = hits[np.searchsorted(positives, ends)]
    misses_at_end = drawn[ends] - hits_at_end
    misses_before = drawn[starts] - hits[np.searchsorted(positives, starts)]
    all_hits, all_misses = hits[-1], drawn[-1] - hits[-1]
    with np.errstate(invalid="ignore"):  # 0 / 0: a class that was not drawn
        precision = (weights * (hits_at_end / np.maximum(drawn[ends], 1))).sum(axis=0) / all_hits
        passed = (weights * (all_misses - (misses_at_end + misses_before) / 2)).sum(axis=0)
        return precision, passed / (all_hits.astype(np.float64) * all_misses)
