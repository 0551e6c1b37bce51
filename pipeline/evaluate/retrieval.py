"""Cross-modal retrieval: which sound belongs to this picture, asked of one model that sees one modality at a time."""

from __future__ import annotations

import numpy as np

from pipeline.errors import UserError, nearest
from pipeline.evaluate.head import feature_scale
from pipeline.evaluate.metrics import recall_at
from pipeline.evaluate.report import Findings, Table
from pipeline.evaluate.resampling import Estimate, Units
from pipeline.evaluate.session import Session

_RIDGE_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)


def retrieval(session: Session) -> Findings:
    """Recall@k in both directions over the scored split's examples that have both modalities.

    A masked autoencoder never saw a contrastive loss, so with ``retrieval.align`` a ridge map between the two spaces is
    fitted on the fit split first; without it the raw cosine is ranked.

    Raises:
        UserError: fewer than two modalities, an unknown one, or fewer than two examples of a split that have both.
    """
    options = session.options
    query, target = queried_modalities(session)
    level = session.one_level()
    metrics: dict[str, Estimate] = {}
    for asked, searched in ((query, target), (target, query)):
        scored, sources = _pairs(session, options.split, (asked, searched), level)
        if options.retrieval.align:
            fit, _ = _pairs(session, options.fit_split, (asked, searched), level)
            similarity = _aligned_similarity(fit, scored)
        else:
            similarity = _cosine(*scored)
        ranks = own_ranks(similarity)
        found = recall_at(ranks, options.retrieval.ranks, Units(sources), options.interval, options.seed)
        metrics |= {f"{asked}_to_{searched}/{name}": estimate for name, estimate in found.items()}
    count = len(scored[0])
    chance = [(f"recall@{k}", min(1.0, k / count)) for k in options.retrieval.ranks]
    how = "a ridge map fitted on the fit split" if options.retrieval.align else "no alignment"
    notes = [f"{count} candidates, latents of level {level} pooled, {how}."]
    return Findings(metrics, [Table("Chance", ("metric", "value"), chance)], [], notes)


def own_ranks(similarity: np.ndarray) -> np.ndarray:
    """Rank (0 = first) of each query's own target [N] from similarity [N queries, N targets]; ties count against."""
    own = np.diag(similarity)[:, None]
    return (similarity >= own).sum(axis=1) - 1


def queried_modalities(session: Session) -> tuple[str, str]:
    """The modality asked with and the one searched.

    Raises:
        UserError: fewer than two modalities, an unknown one, the same twice, or no dataset that has both.
    """
    names = session.loaded.modality_names
    if len(names) < 2:
        raise UserError(f"task=retrieval needs a model of two modalities, this one has only {names[0]!r}")
    query = session.options.retrieval.query or names[0]
    target = session.options.retrieval.target or next(name for name in names if name != query)
    for key, name in (("query", query), ("target", target)):
        if name not in names:
            raise UserError(f"retrieval.{key}={name!r}: {nearest(name, names)}")
    if query == target:
        raise UserError(f"retrieval.query and retrieval.target are both {query!r}; name two modalities")
    shards = session.options.shards
    datasets = [{spec.name for spec in manifest.modalities} for _, manifest in session.manifest.places(shards)]
    if not any({query, target} <= names for names in datasets):
        raise UserError(f"task=retrieval needs examples of both {query!r} and {target!r}, and {shards} can have none")
    return query, target


def _pairs(session: Session, split: str, names: tuple[str, str], level: int) -> tuple[list[np.ndarray], list[str]]:
    """Features [N, D] of each modality, computed with it alone visible, where an example has both; and its file."""
    level_count = max(level + 1, session.loaded.num_encoder_levels)
    found = [session.embeddings(split, level_count, (name,)) for name in names]
    both = np.flatnonzero(np.logical_and(*(found[0].present[name] for name in names)))
    if len(both) < 2:
        read = session.count(split)
        raise UserError(f"split {split!r}: of {read} examples, {len(both)} have both {names[0]!r} and {names[1]!r}")
    return [part.levels[level]["mean"][both] for part in found], [found[0].sources[row] for row in both]


def _aligned_similarity(fit: list[np.ndarray], scored: list[np.ndarray]) -> np.ndarray:
    from sklearn.linear_model import RidgeCV

    scales = [feature_scale(features) for features in fit]
    fit_asked, fit_searched = ((f - mean) / std for f, (mean, std) in zip(fit, scales, strict=True))
    asked, searched = ((f - mean) / std for f, (mean, std) in zip(scored, scales, strict=True))
    predicted = RidgeCV(alphas=_RIDGE_PENALTIES).fit(fit_asked, fit_searched).predict(asked)
    return _cosine(predicted, searched)


def _cosine(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    left, right = (
        values / np.clip(np.linalg.norm(values, axis=1, keepdims=True), 1e-9, None) for values in (queries, targets)
    )
    return np.asarray(left @ right.T)
