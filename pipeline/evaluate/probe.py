"""Classifiers on frozen latents: logistic regression with a penalty chosen on held-out examples, and neighbours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluate.head import Head, feature_scale
from pipeline.evaluate.options import ProbeOptions


@dataclass(frozen=True)
class FittedProbe:
    """A head and how it was found."""

    head: Head
    strength: float
    held_out_score: float  # accuracy (one label) or mean average precision (several) of the chosen penalty


def label_matrix(labels: list[tuple[int, ...]], num_classes: int) -> np.ndarray:
    """Targets [N, classes] of 0 and 1."""
    targets = np.zeros((len(labels), num_classes), dtype=np.int64)
    for row, classes in enumerate(labels):
        targets[row, list(classes)] = 1
    return targets


def is_multilabel(labels: list[tuple[int, ...]]) -> bool:
    """Whether any example has more than one label."""
    return any(len(classes) > 1 for classes in labels)


def check_labels(labels: list[tuple[int, ...]], label_names: list[str], split: str) -> None:
    """Refuse data that cannot be scored.

    Raises:
        UserError: no labels, or one beyond the dataset's list of names.
    """
    if not any(labels):
        raise UserError(
            f"split {split!r} has no labels; preprocess media with labels (class folders), or use task=reconstruction"
        )
    highest = max(max(classes) for classes in labels if classes)
    if highest >= len(label_names):
        raise UserError(f"split {split!r} has label number {highest}, the dataset names only {len(label_names)} labels")


def fit_linear(
    features: np.ndarray,
    labels: list[tuple[int, ...]],
    label_names: list[str],
    level: int,
    options: ProbeOptions,
    seed: int,
) -> FittedProbe:
    """L-BFGS logistic regression on standardised features [N, D]; the penalty is the best on a held-out part.

    Classes that the fit split never shows keep a score that no other class falls below.
    """
    mean, std = feature_scale(features)
    scaled = (features - mean) / std
    multilabel = is_multilabel(labels)
    targets = label_matrix(labels, len(label_names))
    strength, score = _choose_strength(scaled, targets, multilabel, options, seed)
    weight, bias = _solve(scaled, targets, multilabel, strength, options.iterations)
    head = Head(
        weight=torch.from_numpy(weight.astype(np.float32)),
        bias=torch.from_numpy(bias.astype(np.float32)),
        mean=torch.from_numpy(mean),
        std=torch.from_numpy(std),
        level=level,
        task="multilabel" if multilabel else "classification",
        label_names=tuple(label_names),
    )
    return FittedProbe(head, strength, score)


def _choose_strength(
    scaled: np.ndarray, targets: np.ndarray, multilabel: bool, options: ProbeOptions, seed: int
) -> tuple[float, float]:
    order = np.random.default_rng(seed).permutation(len(scaled))
    held = order[: max(1, round(len(order) * options.held_out))]
    rest = order[len(held) :] if len(order) > len(held) else order
    scores = []
    for strength in options.strengths:
        weight, bias = _solve(scaled[rest], targets[rest], multilabel, strength, options.iterations)
        scores.append(_score(scaled[held] @ weight.T + bias, targets[held], multilabel))
    best = int(np.argmax(scores))
    return options.strengths[best], scores[best]


def _score(scores: np.ndarray, targets: np.ndarray, multilabel: bool) -> float:
    if not multilabel:
        return float((scores.argmax(1) == targets.argmax(1)).mean())
    from pipeline.evaluate.metrics import per_class_average_precision

    found = per_class_average_precision(scores, targets)
    return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


def _solve(
    scaled: np.ndarray, targets: np.ndarray, multilabel: bool, strength: float, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight [classes, D] and bias [classes]."""
    if multilabel:
        columns = [_solve_binary(scaled, targets[:, index], strength, iterations) for index in range(targets.shape[1])]
        return np.stack([weight for weight, _ in columns]), np.array([bias for _, bias in columns])
    classes = targets.argmax(1)
    weight, bias = np.zeros((targets.shape[1], scaled.shape[1])), np.full(targets.shape[1], -1e4)
    seen = np.unique(classes)
    if len(seen) == 1:
        bias[seen[0]] = 0.0
        return weight, bias
    model = _logistic(scaled, classes, strength, iterations)
    if len(seen) == 2:  # scikit-learn keeps one row for two classes: the second against the first
        weight[seen[1]], bias[seen[1]], bias[seen[0]] = model.coef_[0], model.intercept_[0], 0.0
    else:
        weight[seen], bias[seen] = model.coef_, model.intercept_
    return weight, bias


def _solve_binary(
    scaled: np.ndarray, present: np.ndarray, strength: float, iterations: int
) -> tuple[np.ndarray, float]:
    share = (present.sum() + 0.5) / (len(present) + 1)
    if present.all() or not present.any():
        return np.zeros(scaled.shape[1]), float(np.log(share / (1 - share)))
    model = _logistic(scaled, present, strength, iterations)
    return np.asarray(model.coef_[0]), float(model.intercept_[0])


def _logistic(scaled: np.ndarray, classes: np.ndarray, strength: float, iterations: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Stopping early is a choice here: the penalty is picked by held-out score, not by the optimum's depth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=iterations).fit(scaled, classes)


def neighbour_scores(
    fit_features: np.ndarray, fit_targets: np.ndarray, features: np.ndarray, neighbours: int
) -> np.ndarray:
    """Votes [N, classes] of the nearest fit examples by cosine distance, weighted by similarity.

    Features are centred with the fit split's mean first: mean-pooled latents share one large direction.
    """
    from sklearn.neighbors import NearestNeighbors

    mean, std = feature_scale(fit_features)
    count = min(neighbours, len(fit_features))
    search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit((fit_features - mean) / std)
    distances, rows = search.kneighbors((features - mean) / std)
    weights = np.clip(1 - distances, 1e-6, None)
    return np.einsum("nk,nkc->nc", weights, fit_targets[rows]) / weights.sum(1, keepdims=True)
