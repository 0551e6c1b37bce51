"""HiP computed the long way: every step as the paper states it, every padding slot and every masked token in place.

Nothing here is fast and nothing is used by the models. The fast paths are compared with it, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from hip_model.attention import CrossAttention, SelfAttention
from hip_model.grouping import GroupPlan, regroup
from hip_model.hip import HiP
from hip_model.selection import TokenSelection
from hip_model.tokens import ModelOutput, token_rows


def naive_forward(model: HiP, inputs: Mapping[str, Tensor], selection: TokenSelection | None = None) -> ModelOutput:
    """What ``model(inputs, selection)`` returns in evaluation mode, with masked tokens masked instead of dropped."""
    plan = model.group_plan()
    codes = {part.name: model.position_code(part.name) for part in plan.modalities}
    embedded = {part.name: model.embed[part.name](inputs[part.name]) + codes[part.name] for part in plan.modalities}
    batch = next(iter(inputs.values())).shape[0]
    may_look = _may_look(plan, selection, batch, model.config.mask_padding)
    outputs: list[Tensor] = []
    below = naive_group(embedded, plan)
    last = model.config.num_blocks - 1
    for index, block in enumerate(model.stages()):
        if index > 0:
            below = regroup(outputs[-1], model.config.num_groups[index], model.config.regroup)
        skip = outputs[last - index] if index > model.config.processor else None
        latents = block.latents.weight.unflatten(0, (block.num_groups, -1)).expand(batch, -1, -1, -1)
        latents = naive_cross_attention(block.cross_attention, latents, below, skip, may_look if index == 0 else None)
        for layer in block.layers():
            latents = naive_self_attention(layer, latents)
        outputs.append(latents)
    queries = naive_group({name: code.expand(batch, -1, -1) for name, code in codes.items()}, plan)
    answers = naive_ungroup(naive_cross_attention(model.head, queries, outputs[-1]), plan)
    reconstruction = {name: model.unembed[name](answer) for name, answer in answers.items()}
    if selection is not None:
        reconstruction = {name: _queried(plan, name, values, selection) for name, values in reconstruction.items()}
    return ModelOutput(reconstruction, outputs)


def naive_group(tokens: Mapping[str, Tensor], plan: GroupPlan) -> Tensor:
    """``[B, T, E]`` per modality to ``[B, G, L, E]``, with zero vectors in every padding slot."""
    grouped = []
    for part in plan.modalities:
        values = pad(tokens[part.name], (0, 0, 0, part.final_padding))
        values = values.unflatten(1, (part.groups, part.group_tokens))
        grouped.append(pad(values, (0, 0, 0, part.group_padding)))
    return torch.cat(grouped, dim=1)


def naive_ungroup(grouped: Tensor, plan: GroupPlan) -> dict[str, Tensor]:
    """The inverse of ``naive_group``."""
    result = {}
    for part in plan.modalities:
        values = grouped[:, part.offset : part.offset + part.groups, : part.group_tokens]
        result[part.name] = values.flatten(1, 2)[:, : part.num_tokens]
    return result


def naive_cross_attention(
    layer: CrossAttention, queries: Tensor, keys: Tensor, skip: Tensor | None = None, may_look: Tensor | None = None
) -> Tensor:
    """One layer, ``queries [B, G, N, D]`` over ``keys [B, G, M, C]``; ``may_look [B, G, N or 1, M]``."""
    if skip is not None:
        queries = queries + (skip if layer.skip is None else layer.skip(skip))
    attended = _naive_attention(layer, layer.query_norm(queries), layer.key_norm(keys), may_look)
    if layer.residual:
        attended = attended + queries
    return attended + _naive_mlp(layer, layer.mlp_norm(attended))


def naive_self_attention(layer: SelfAttention, x: Tensor) -> Tensor:
    """One self-attention layer in evaluation mode."""
    normed = layer.attention_norm(x)
    x = x + _naive_attention(layer, normed, normed, None)
    return x + _naive_mlp(layer, layer.mlp_norm(x))


def naive_squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0)^2``."""
    return torch.clamp(x, min=0.0) ** 2


def _naive_mlp(layer: CrossAttention | SelfAttention, x: Tensor) -> Tensor:
    return layer.mlp.output(naive_squared_relu(layer.mlp.hidden(x)))


def _naive_attention(
    layer: CrossAttention | SelfAttention, queries: Tensor, keys: Tensor, may_look: Tensor | None
) -> Tensor:
    query, key, value = (
        projection(x).unflatten(-1, (layer.heads, -1))
        for projection, x in ((layer.query, queries), (layer.key, keys), (layer.value, keys))
    )
    scores = torch.einsum("bgnhd,bgmhd->bghnm", query, key) / math.sqrt(query.shape[-1])
    if may_look is not None:
        scores = scores.masked_fill(~may_look.unsqueeze(2), -1e30)
    attended = torch.einsum("bghnm,bgmhd->bgnhd", scores.softmax(dim=-1), value).flatten(3)
    if may_look is not None:
        # A query that may look at nothing gets zeros before the output map.
        attended = attended * may_look.any(dim=-1).unsqueeze(-1)
    return layer.output(attended)


def _may_look(plan: GroupPlan, selection: TokenSelection | None, batch: int, mask_padding: bool) -> Tensor:
    """Slots that block 0 may look at, ``[B, G, 1, L]``; padding counts as visible unless it is masked."""
    visible = torch.zeros(batch, plan.num_groups, plan.group_length, dtype=torch.bool)
    for part in plan.modalities:
        shown = torch.zeros(batch, part.groups * part.group_tokens + 1, dtype=torch.bool)
        if selection is None:
            shown[:, : part.num_tokens] = True
        else:
            rows, empty = token_rows(part, selection.visible[part.name])
            shown.scatter_(1, rows.masked_fill(empty, shown.shape[1] - 1).expand(batch, -1, -1).flatten(1), True)
        if not mask_padding:
            shown[:, part.num_tokens :] = True
        owned = visible[:, part.offset : part.offset + part.groups]
        owned[..., : part.group_tokens] = shown[:, :-1].unflatten(1, (part.groups, part.group_tokens))
        owned[..., part.group_tokens :] = not mask_padding
    return visible.unsqueeze(2)


def _queried(plan: GroupPlan, name: str, values: Tensor, selection: TokenSelection) -> Tensor:
    rows, _ = token_rows(plan[name], selection.queries[name])
    flat = rows.expand(values.shape[0], -1, -1).flatten(1)
    return values.gather(1, flat.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
