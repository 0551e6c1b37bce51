"""Tasks that end in scores by class: linear probe, neighbours, and a model's own head."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluate.areas import per_class_average_precision
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.figures import Picture, bars, confusion_matrix, curves, projection
from pipeline.evaluate.head import Head, load_head
from pipeline.evaluate.metrics import (
    average_by_clip,
    classification_metrics,
    clip_metrics,
    confusion,
    multilabel_metrics,
    per_class_accuracy,
)
from pipeline.evaluate.probe import (
    FittedProbe,
    check_labels,
    fit_linear,
    is_multilabel,
    label_matrix,
    neighbour_scores,
)
from pipeline.evaluate.report import Findings, Table
from pipeline.evaluate.resampling import Estimate, Units
from pipeline.evaluate.session import Session
from pipeline.seeding import derive_seed


def linear_probe(session: Session) -> tuple[Findings, Head]:
    """Fit on the fit split's frozen latents, score on the other; with several levels the best held-out one is scored.

    Raises:
        UserError: a split without labels.
    """
    options = session.options
    choices = session.level_choices()
    level_count = max(*(max(levels) for levels in choices), session.loaded.num_encoder_levels - 1) + 1
    fit = session.embeddings(options.fit_split, level_count)
    check_labels(fit.labels, session.label_names, options.fit_split)
    fit = fit.labelled()
    probes = [fit_linear(fit, session.label_names, levels, options.probe, options.seed) for levels in choices]
    best = max(probes, key=lambda probe: probe.held_out_score)
    scored = session.embeddings(options.split, level_count).labelled()
    findings = _score_head(session, best.head, scored)
    tables = [_levels_table(session, probes, best), *findings.tables]
    pictures = [*_level_pictures(probes), *findings.pictures]
    return Findings(findings.metrics, tables, pictures, _probe_notes(fit, best)), best.head


def own_head(session: Session) -> Findings:
    """Score the head that fine-tuning (or an exported probe) left in the model folder.

    Raises:
        UserError: as :func:`fitting_head`, or a scored split without labels.
    """
    head = fitting_head(session)
    level_count = max(max(head.levels) + 1, session.loaded.num_encoder_levels)
    scored = session.embeddings(session.options.split, level_count)
    return _score_head(session, head, scored if head.task == "multilabel" else scored.labelled())


def fitting_head(session: Session) -> Head:
    """The head in the model folder.

    Raises:
        UserError: the model has no head, or one that was made for other labels than the data's.
    """
    folder = session.loaded.folder
    head = load_head(folder)
    if head is None:
        raise UserError(
            f"model={folder} has no head; run hip finetune, or hip evaluate task=linear_probe export=<folder> first"
        )
    missing = [name for name in session.label_names if name not in head.label_names]
    if missing:
        raise UserError(
            f"the data has labels that the model's training never saw: {', '.join(missing[:5])} "
            f"(the head knows {', '.join(head.label_names[:8])}{' …' if len(head.label_names) > 8 else ''})"
        )
    return head


def neighbours(session: Session) -> Findings:
    """k nearest neighbours by cosine distance; ``probe.level`` and ``probe.pool`` name the features."""
    options = session.options
    levels = session.level_choices()[-1]
    level_count = max(max(levels) + 1, session.loaded.num_encoder_levels)
    fit = session.embeddings(options.fit_split, level_count)
    check_labels(fit.labels, session.label_names, options.fit_split)
    fit, scored = fit.labelled(), session.embeddings(options.split, level_count).labelled()
    check_labels(scored.labels, session.label_names, options.split)
    targets = label_matrix(fit.labels, len(session.label_names))
    pooled = [part.features(levels, options.probe.pool) for part in (fit, scored)]
    scores = neighbour_scores(pooled[0], targets, pooled[1], options.knn.neighbours)
    findings = score_classes(session, scores, scored, session.label_names, options.task == "multilabel")
    pictures = [*findings.pictures, *_projection(session, scored, pooled[1])]
    note = (
        f"{options.knn.neighbours} neighbours among {len(fit)} examples of split {options.fit_split!r}; "
        f"{_levels_text(levels)}, pool {options.probe.pool}."
    )
    return Findings(findings.metrics, findings.tables, pictures, [note])


def score_classes(
    session: Session, scores: np.ndarray, scored: Embeddings, label_names: list[str], multilabel: bool
) -> Findings:
    """Metrics, tables and pictures of scores [N, classes] over ``label_names`` against the data's labels."""
    check_labels(scored.labels, session.label_names, session.options.split)
    position = {name: index for index, name in enumerate(label_names)}
    labels = [tuple(position[session.label_names[label]] for label in row) for row in scored.labels]
    if multilabel or is_multilabel(scored.labels):
        return _score_multilabel(session, scores, labels, scored.sources, label_names)
    return _score_single(session, scores, np.array([row[0] for row in labels]), scored.sources, label_names)


def _score_head(session: Session, head: Head, scored: Embeddings) -> Findings:
    with torch.inference_mode():
        pooled = scored.features(head.levels, head.pool)
        scores = head.probabilities(torch.from_numpy(pooled)).numpy()
    multilabel = head.task == "multilabel" or session.options.task == "multilabel"
    findings = score_classes(session, scores, scored, list(head.label_names), multilabel)
    pictures = [*findings.pictures, *_projection(session, scored, pooled)]
    return Findings(findings.metrics, findings.tables, pictures, findings.notes)


def _score_single(
    session: Session, scores: np.ndarray, labels: np.ndarray, sources: list[str], label_names: list[str]
) -> Findings:
    options, units = session.options, Units(sources)
    metrics = classification_metrics(scores, labels, units, options.interval, options.seed)
    metrics |= clip_metrics(scores, labels, sources, options.interval, options.seed)
    metrics["chance_top1"] = _chance(labels)
    accuracy = per_class_accuracy(scores, labels)
    counts = confusion(scores.argmax(1), labels, len(label_names))
    rows = [(name, int((labels == i).sum()), float(accuracy[i])) for i, name in enumerate(label_names)]
    pictures = []
    if options.figures.enabled:
        pictures = [
            confusion_matrix(counts, label_names),
            bars("per_class", "Accuracy by class", dict(zip(label_names, accuracy, strict=True)), "accuracy"),
        ]
    return Findings(metrics, [Table("By class", ("class", "examples", "accuracy"), rows)], pictures)


def _score_multilabel(
    session: Session, scores: np.ndarray, labels: list[tuple[int, ...]], sources: list[str], label_names: list[str]
) -> Findings:
    options = session.options
    targets = label_matrix(labels, len(label_names))
    clip_scores, clip_targets, clips = average_by_clip(scores, targets, sources)
    metrics = multilabel_metrics(clip_scores, clip_targets, Units(clips), options.interval, options.seed)
    precision = per_class_average_precision(clip_scores, clip_targets)
    rows = [(name, int(clip_targets[:, i].sum()), float(precision[i])) for i, name in enumerate(label_names)]
    by_class = dict(zip(label_names, precision, strict=True))
    pictures = []
    if options.figures.enabled:
        pictures = [bars("per_class", "Average precision by class", by_class, "average precision")]
    note = f"Scores are averaged over the windows of each clip: {len(sources)} windows, {len(clips)} clips."
    return Findings(metrics, [Table("By class", ("class", "clips", "average precision"), rows)], pictures, [note])


def _chance(labels: np.ndarray) -> Estimate:
    """What always naming the most frequent class would score."""
    share = float(np.bincount(labels).max() / len(labels))
    return Estimate(share, share, share, len(labels))


def _projection(session: Session, scored: Embeddings, pooled: np.ndarray) -> list[Picture]:
    if not session.options.figures.enabled or len(scored) < 4:
        return []
    kinds = np.array([row[0] if row else -1 for row in scored.labels])
    seed = derive_seed(session.options.seed, "projection") % 2**32  # the range that scikit-learn takes
    return [projection(pooled, kinds, session.label_names, seed)]


def _levels_table(session: Session, probes: list[FittedProbe], best: FittedProbe) -> Table:
    rows = []
    for probe in probes:
        levels = probe.head.levels
        processor = levels == (session.loaded.num_encoder_levels - 1,)
        mark = "scored" if probe is best else ""
        name = _levels_text(levels) + (" (processor)" if processor else "")
        rows.append((name, probe.head.weight.shape[1], probe.strength, probe.held_out_score, mark))
    return Table("Probes by level", ("latents", "features", "inverse penalty", "held-out score", ""), rows)


def _levels_text(levels: tuple[int, ...]) -> str:
    return f"level {levels[0]}" if len(levels) == 1 else f"levels {levels[0]} to {levels[-1]} side by side"


def _level_pictures(probes: list[FittedProbe]) -> list[Picture]:
    if len(probes) < 2:
        return []
    line = ([probe.head.levels[0] for probe in probes], [probe.held_out_score for probe in probes])
    return [curves("levels", "Held-out score by level", {"linear probe": line}, ("level", "score"))]


def _probe_notes(fit: Embeddings, best: FittedProbe) -> list[str]:
    kind = "mean average precision" if is_multilabel(fit.labels) else "accuracy"
    how = (
        f"the penalty was chosen by {kind} on {best.folds} held-out part{'s' * (best.folds > 1)} of them, never on "
        "the scored split"
        if best.folds
        else "too few files to hold any out, so the penalty is the middle one"
    )
    return [
        f"Logistic regression on the latents of {_levels_text(best.head.levels)}, pool {best.head.pool}, fitted on "
        f"{len(fit)} examples of {len(set(fit.sources))} files; {how}."
    ]
