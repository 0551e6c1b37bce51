"""What latents look at: cross-attention weights of every encoder level, multiplied down to single tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hip_model.grouping import regroup
from hip_model.hip import HiP
from hip_model.perceiver import Perceiver
from pipeline.evaluate.figures import Picture, attention_maps
from pipeline.evaluate.session import Session
from pipeline.shards.reader import Batch
from pipeline.train.figures import in_shape


@dataclass(frozen=True)
class LevelAttention:
    """Cross-attention of one block for one example, averaged over heads: [groups, latents, keys] by run of groups."""

    parts: list[Tensor]


@torch.no_grad()
def encoder_attention(model: Any, inputs: dict[str, Tensor], selection: Any = None) -> list[LevelAttention]:
    """Run the encoder on a batch of one and collect its cross-attentions in their order: one a block, or one a look of
    a Perceiver at its inputs."""
    found: list[LevelAttention] = []

    def keep(module: Any, arguments: tuple[Any, ...]) -> None:
        queries, keys, skip = (*arguments, None)[:3]
        found.append(LevelAttention(_weights(module, queries, keys, skip)))

    handles = [layer.register_forward_pre_hook(keep) for layer in _cross_attentions(model)]
    try:
        model.encode(inputs, selection)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _cross_attentions(model: Any) -> list[Any]:
    if isinstance(model, Perceiver):
        layers = (model.first_cross_attention, model.shared_cross_attention)
        return [layer for layer in layers if layer is not None]
    return [block.cross_attention for block in model.stages()]


def token_attention(
    model: Any, levels: list[LevelAttention], level: int, latents: np.ndarray, modality: str
) -> np.ndarray:
    """Attention [len(latents), T] of some latents (numbered over all groups) of one level over a modality's tokens.

    Self-attention inside a level is left out, so this is where information enters, not all that it meets on the way.
    """
    weights = torch.eye(_latent_count(levels[level]))[torch.from_numpy(latents)]
    plan = model.group_plan()[modality]
    if not isinstance(model, HiP):  # every look is one at the tokens themselves
        return _of_all_tokens(weights, levels[level], model, plan)
    for index in range(level, 0, -1):
        weights = _through_level(weights, levels[index], levels[index - 1], model.config.regroup)
    return _to_tokens(weights, levels[0], model, plan)


def attention_pictures(session: Session, batch: Batch, count: int) -> list[Picture]:
    """Maps of up to ``count`` examples on the model's first modality that is a picture; none where there is no such."""
    loaded = session.loaded
    spatial = [m for m in loaded.model.modalities if m.shape is not None and len(m.shape) in (2, 3)]
    if not spatial or spatial[0].token_order == "kd":
        return []
    modality = spatial[0]
    rows = [row for row in range(len(batch.sources)) if batch.present[modality.name][row]][:count]
    pictures = []
    for index, row in enumerate(rows):
        arrays = {name: array[row : row + 1] for name, array in batch.arrays.items()}
        present = {name: flags[row : row + 1] for name, flags in batch.present.items()}
        inputs, selection = loaded.normalise(arrays), loaded.presence(present)
        levels = encoder_attention(loaded.model, inputs, selection)
        shown = []
        for level, attention in enumerate(levels):
            total = _latent_count(attention)
            latents = np.unique(np.linspace(0, total - 1, min(6, total)).round().astype(np.int64))
            maps = token_attention(loaded.model, levels, level, latents, modality.name)
            shown.append(
                (f"level {level}", np.stack([on_picture(row_map[:, None], modality)[..., 0] for row_map in maps]))
            )
        image = on_picture(arrays[modality.name][0], modality)
        pictures.append(attention_maps(_as_rgb(image), shown, index))
    return pictures


def on_picture(tokens: np.ndarray, modality: Any) -> np.ndarray:
    """Tokens [T, C] as a picture [H, W, C]; of a video the middle frame."""
    grid = in_shape(tokens, modality)
    return np.asarray(grid if grid.ndim == 3 else grid[len(grid) // 2])


def _weights(layer: Any, queries: Tensor, keys: Any, skip: Tensor | None) -> list[Tensor]:
    """Softmax weights [groups, latents, keys] by run of groups, averaged over heads."""
    if skip is not None:
        queries = queries + (skip if layer.skip is None else layer.skip(skip))
    projected = layer.query(layer.query_norm(queries))
    found, first = [], 0
    for given in keys:
        part = given.build() if hasattr(given, "build") else given
        groups = part.values.shape[1]
        query, key = projected[:, first : first + groups], layer.key(layer.key_norm(part.values))
        first += groups
        width = key.shape[-1] // layer.heads
        heads = []
        for q, k in zip(query.split(width, dim=-1), key.split(width, dim=-1), strict=True):
            logits = (q @ k.transpose(-1, -2)).float() / width**0.5
            heads.append((logits if part.bias is None else logits + part.bias).softmax(-1))
        found.append(torch.stack(heads).mean(0)[0].cpu())
    return found


def _latent_count(level: LevelAttention) -> int:
    return sum(part.shape[0] * part.shape[1] for part in level.parts)


def _through_level(weights: Tensor, level: LevelAttention, below: LevelAttention, kind: str) -> Tensor:
    """Attention over one level's latents [k, latents] turned into attention over the latents of the level below."""
    (cross,) = level.parts
    groups, latents, items = cross.shape
    spread = torch.einsum("kgn,gni->kgi", weights.reshape(-1, groups, latents), cross)
    groups_below = sum(part.shape[0] for part in below.parts)
    # Where each item of a group came from: the same reshaping applied to the numbers of the latents below.
    numbers = torch.arange(groups * items, dtype=torch.float64).view(1, groups_below, -1, 1)
    origin = regroup(numbers, groups, kind).flatten().long()
    result = torch.zeros(len(weights), groups * items)
    result[:, origin] = spread.flatten(1)
    return result


def _of_all_tokens(weights: Tensor, level: LevelAttention, model: Any, plan: Any) -> np.ndarray:
    """The same of a level whose one group holds all modalities' tokens, in order."""
    before = itertools.takewhile(lambda modality: modality.name != plan.name, model.modalities)
    offset = sum(modality.num_tokens for modality in before)
    spread = weights @ level.parts[0][0]
    return np.asarray(spread[:, offset : offset + plan.num_tokens].numpy())


def _to_tokens(weights: Tensor, level: LevelAttention, model: Any, plan: Any) -> np.ndarray:
    """Attention over the first level's latents [k, latents] as attention over one modality's tokens [k, T]."""
    per_group = level.parts[0].shape[1]
    index = [entry.name for entry in model.group_plan().modalities].index(plan.name)
    cross = level.parts[index][:, :, : plan.group_tokens]
    mine = weights.view(len(weights), -1, per_group)[:, plan.offset : plan.offset + plan.groups]
    spread = torch.einsum("kgn,gnl->kgl", mine, cross).flatten(1)
    return np.asarray(spread[:, : plan.num_tokens].numpy())


def _as_rgb(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    values = image if image.dtype == np.uint8 else (image - low) / max(high - low, 1e-9) * 255
    return np.asarray(np.repeat(values, 3, -1) if values.shape[-1] == 1 else values).astype(np.uint8)
