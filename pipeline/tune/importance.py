"""How much each searched key matters: permutation importance in a random forest over the measured trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.tune.results import TrialResult

# With fewer trials than this a forest explains noise.
FEWEST_TRIALS = 6


@dataclass(frozen=True)
class Importance:
    """Share of the metric's explained variance that is lost when a key is shuffled."""

    key: str
    mean: float
    deviation: float


def importances(trials: Sequence[TrialResult], seed: int) -> list[Importance]:
    """Keys by importance, most important first; empty with too few trials or nothing that varies.

    The forest is judged out of the bag's data it was fitted on, so the numbers rank keys; they are no effect sizes.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    measured = [trial for trial in trials if trial.is_measured]
    keys = varying_keys(measured)
    if len(measured) < FEWEST_TRIALS or not keys:
        return []
    features = np.stack([encode([trial.candidate.settings.get(key) for trial in measured]) for key in keys], axis=1)
    values = np.array([trial.value for trial in measured])
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, random_state=seed % 2**31, n_jobs=1)
    forest.fit(features, values)
    found = permutation_importance(forest, features, values, n_repeats=20, random_state=seed % 2**31, n_jobs=1)
    ranked = zip(keys, found.importances_mean, found.importances_std, strict=True)
    return sorted((Importance(key, float(m), float(s)) for key, m, s in ranked), key=lambda entry: -entry.mean)


def varying_keys(trials: Sequence[TrialResult]) -> list[str]:
    """Keys that differ between trials."""
    keys = sorted({key for trial in trials for key in trial.candidate.settings})
    return [key for key in keys if len({str(trial.candidate.settings.get(key)) for trial in trials}) > 1]


def encode(values: Sequence[Any]) -> np.ndarray:
    """Numbers as they are, everything else by its place in the sorted list of texts."""
    if all(isinstance(value, (int, float)) for value in values):
        return np.array(values, dtype=float)
    texts = sorted({str(value) for value in values})
    return np.array([texts.index(str(value)) for value in values], dtype=float)
