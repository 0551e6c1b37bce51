"""Attentive probe: one learned query over all latents of a frozen level, where a mean would blur what it needs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hip_model.heads import AttentiveProbe
from pipeline.errors import UserError
from pipeline.evaluate.classify import score_classes
from pipeline.evaluate.embed import latents_of
from pipeline.evaluate.probe import check_labels, is_multilabel, label_matrix
from pipeline.evaluate.reading import batches
from pipeline.evaluate.report import Findings
from pipeline.evaluate.session import Session
from pipeline.seeding import derive_seed

_BATCH = 64
_MOST_BYTES = 2 << 30


def attentive_probe(session: Session) -> Findings:
    """Train ``hip_model.heads.AttentiveProbe`` on the fit split's latents and score it on the other.

    The latents of one level of all examples are held in memory.

    Raises:
        UserError: no labels, or latents above 2 GiB (limit.fit_examples bounds them).
    """
    options = session.options
    level = session.one_level()
    fit_latents, fit_labels = _latents(session, options.fit_split, level)
    check_labels(fit_labels, session.label_names, options.fit_split)
    mean, std = fit_latents.mean((0, 1)), fit_latents.std((0, 1)).clamp_min(1e-6)
    probe = _train(session, (fit_latents - mean) / std, fit_labels)
    scored_latents, _ = _latents(session, options.split, level)
    scored = session.embeddings(options.split, max(level + 1, session.loaded.num_encoder_levels))
    scores = _scores(probe, (scored_latents - mean) / std, is_multilabel(fit_labels))
    kept = np.array([bool(labels) for labels in scored.labels]) | is_multilabel(scored.labels)
    findings = score_classes(session, scores[kept], scored.labelled(), session.label_names, False)
    _, latents, channels = fit_latents.shape
    note = f"Attentive probe on level {level}: {latents} latents of {channels} channels an example."
    return Findings(findings.metrics, findings.tables, findings.pictures, [note, *findings.notes])


def _train(session: Session, latents: Tensor, labels: list[tuple[int, ...]]) -> AttentiveProbe:
    """AdamW with a cosine schedule over ``probe.iterations`` batches, the same for the same seed."""
    options = session.options
    several = is_multilabel(labels)
    rows = [row for row, classes in enumerate(labels) if classes or several]
    targets = torch.from_numpy(label_matrix(labels, len(session.label_names))).float()
    torch.manual_seed(derive_seed(options.seed, "attentive"))
    probe = AttentiveProbe(latents.shape[2], len(session.label_names))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=options.probe.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.probe.iterations)
    random = np.random.default_rng(derive_seed(options.seed, "attentive order"))
    for _ in range(options.probe.iterations):
        chosen = torch.from_numpy(random.choice(rows, min(_BATCH, len(rows)), replace=False))
        scores = probe(latents[chosen].unsqueeze(1))
        if several:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets[chosen])
        else:
            loss = torch.nn.functional.cross_entropy(scores, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.inference_mode()
def _scores(probe: AttentiveProbe, latents: Tensor, multilabel: bool) -> np.ndarray:
    scores = torch.cat([probe(part.unsqueeze(1)) for part in latents.split(_BATCH)])
    return np.asarray((scores.sigmoid() if multilabel else scores.softmax(-1)).numpy())


def _latents(session: Session, split: str, level: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """All latents of a level [N, groups * latents, D] and the labels."""
    count = session.count(split)
    parts: list[Tensor] = []
    labels: list[tuple[int, ...]] = []
    what = f"embedding split {split!r}"
    for batch in batches(session.reader(split), count, session.options.embed.batch_size, what):
        inputs = session.loaded.normalise(batch.arrays)
        level_count = max(level + 1, session.loaded.num_encoder_levels)
        found = latents_of(session.loaded, inputs, batch.present, level_count)[level]
        needed = found[0].numel() * 4 * count
        if needed > _MOST_BYTES:
            raise UserError(
                f"probe.kind=attentive at level {level} needs {needed / 2**30:.1f} GiB for {count} examples; "
                f"use limit.fit_examples={_MOST_BYTES // (found[0].numel() * 4)} or fewer, or a higher level"
            )
        parts.append(found.flatten(1, 2).float().cpu().clone())
        labels += batch.labels
    return torch.cat(parts), labels
