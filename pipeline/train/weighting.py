"""Weights that make the losses of all micro-batches and workers sum to the loss of the whole global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from hip_model.masking import mask_seeds
from pipeline.ingest.loader import LoadedBatch


def count_scored(
    autoencoder: Any, batch: LoadedBatch, seed: int, workers: int, device: torch.device
) -> dict[str, Tensor]:
    """Tokens of each modality that are scored in the whole global batch; float64 scalars."""
    counts = autoencoder.count_scored(mask_seeds(seed, batch.epochs, batch.example_ids), batch.present)
    totals = torch.stack([count.sum() for count in counts.values()]).double().to(device)
    if workers > 1:
        distributed.all_reduce(totals)
    return dict(zip(counts, totals, strict=True))


def weighted_loss(
    output: Any, example_weight: float, totals: Mapping[str, Tensor] | None, weights: Mapping[str, float]
) -> Tensor:
    """One micro-batch's part of the global loss.

    Where every example has as many scored tokens (``totals`` none) that is its share of the examples. Otherwise each
    modality is averaged over its scored tokens in the global batch, then over the modalities that have any.
    """
    if totals is None:
        return output.loss * example_weight
    parts, present_weights = [], []
    for name, loss in output.per_modality_loss.items():
        weight = weights.get(name, 1.0) * (totals[name] > 0)
        share = output.scored_tokens[name] * (example_weight > 0) / totals[name].clamp_min(1)
        parts.append(loss * (weight * share).float())
        present_weights.append(weight)
    return torch.stack(parts).sum() / torch.stack(present_weights).sum().clamp_min(1e-12)
