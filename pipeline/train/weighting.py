"""Weights that make the losses of all micro-batches and workers sum to the loss of the whole global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from pipeline.ingest.loader import LoadedBatch


def count_present(batch: LoadedBatch, modalities: tuple[str, ...], workers: int, device: torch.device) -> Tensor:
    """Examples of the global batch that have each modality, float64 ``[modalities]``."""
    counts = torch.stack([batch.present[name].sum() for name in modalities]).double().to(device)
    if workers > 1:
        distributed.all_reduce(counts)
    return counts


def weighted_loss(
    output: Any, example_weight: float, seen: Mapping[str, Tensor], totals: Tensor | None, weights: Mapping[str, float]
) -> Tensor:
    """One micro-batch's part of the global loss.

    Where every example has every modality (``totals`` none) that is its share of the examples. Otherwise each modality
    is averaged over the examples of the global batch that have it, then over the modalities that occur in it.
    """
    if totals is None:
        return output.loss * example_weight
    parts, norm = [], torch.zeros((), dtype=torch.float64, device=totals.device)
    for index, (name, loss) in enumerate(output.per_modality_loss.items()):
        weight = weights.get(name, 1.0) * (totals[index] > 0)
        share = seen[name] / totals[index].clamp_min(1)
        parts.append(loss * (weight * share).float())
        norm = norm + weight
    return torch.stack(parts).sum() / norm.clamp_min(1e-12).float()
