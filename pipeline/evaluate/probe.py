"""Classifiers on frozen latents: logistic regression with a penalty chosen on held-out examples, and neighbours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluate.areas import per_class_average_precision
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.head import Head, feature_scale
from pipeline.evaluate.options import ProbeOptions

_CROSS_VALIDATED_EXAMPLES = 5000

HOW_TO_LABEL = (
    "preprocess media with labels (a folder for each class, or a table with a column labels). "
    "hip evaluate task=reconstruction needs none"
)


@dataclass(frozen=True)
class FittedProbe:
    """A head and how it was found."""

    head: Head
    strength: float
    held_out_score: float  # accuracy (one label) or mean average precision (several) of the chosen penalty
    folds: int  # held-out parts that chose it; 0: too few files


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
        raise UserError(f"split {split!r} has no labels; {HOW_TO_LABEL}")
    highest = max(max(classes) for classes in labels if classes)
    if highest >= len(label_names):
        raise UserError(f"split {split!r} has label number {highest}, the dataset names only {len(label_names)} labels")


def fit_linear(
    fit: Embeddings, label_names: list[str], levels: tuple[int, ...], options: ProbeOptions, seed: int
) -> FittedProbe:
    """L-BFGS logistic regression on standardised pooled latents; the penalty is the best on held-out parts.

    Classes that the fit split never shows keep a score that no other class falls below.
    """
    features = fit.features(levels, options.pool)
    mean, std = feature_scale(features)
    scaled = (features - mean) / std
    multilabel = is_multilabel(fit.labels)
    targets = label_matrix(fit.labels, len(label_names))
    folds = held_out_parts(targets, fit.sources, options.folds, seed)
    strength, score = _choose_strength(scaled, targets, multilabel, options, folds)
    weight, bias = _solve(scaled, targets, multilabel, strength, options.iterations)
    head = Head(
        weight=torch.from_numpy(weight.astype(np.float32)),
        bias=torch.from_numpy(bias.astype(np.float32)),
        mean=torch.from_numpy(mean),
        std=torch.from_numpy(std),
        levels=levels,
        task="multilabel" if multilabel else "classification",
        label_names=tuple(label_names),
        pool=options.pool,
    )
    return FittedProbe(head, strength, score, len(folds))


def held_out_parts(targets: np.ndarray, sources: list[str], folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each held-out part: the classes in their shares, and all windows of a file in one part.

    Fewer parts than ``folds`` where a class has fewer files; one alone above 5,000 examples, where it is precise
    enough; none where no class has two files.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    kinds, files = targets.argmax(1), np.array(sources)
    most = min(folds, max(len(set(files[kinds == kind])) for kind in np.unique(kinds)))
    if most < 2:
        return []
    splitter = StratifiedGroupKFold(most, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer files than parts is missing in some
        parts = [held for rest, held in splitter.split(kinds, kinds, files) if len(held) and len(rest)]
    return parts[:1] if len(kinds) > _CROSS_VALIDATED_EXAMPLES else parts


def _choose_strength(
    scaled: np.ndarray, targets: np.ndarray, multilabel: bool, options: ProbeOptions, folds: list[np.ndarray]
) -> tuple[float, float]:
    """The inverse penalty with the best mean score over the parts (the strictest of equals), and that score."""
    strengths = sorted(options.strengths)
    if not folds:
        return strengths[len(strengths) // 2], float("nan")
    scores = np.zeros((len(strengths), len(folds)))
    for column, held in enumerate(folds):
        rest = np.setdiff1d(np.arange(len(scaled)), held)
        for row, strength in enumerate(strengths):
            weight, bias = _solve(scaled[rest], targets[rest], multilabel, strength, options.iterations)
            scores[row, column] = _score(scaled[held] @ weight.T + bias, targets[held], multilabel)
    means = scores.mean(1)
    best = int(np.argmax(means))
    return strengths[best], float(means[best])


def _score(scores: np.ndarray, targets: np.ndarray, multilabel: bool) -> float:
    if not multilabel:
        return float((scores.argmax(1) == targets.argmax(1)).mean())
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
    return np.asarray(np.einsum("nk,nkc->nc", weights, fit_targets[rows]) / weights.sum(1, keepdims=True))
