"""How much a model's first cross-attention looks at each token: what attention-guided masking hides first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hip_model.attention import CrossAttention
from hip_model.hip import HiP
from hip_model.perceiver import Perceiver


@torch.no_grad()
def attention_scores(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention each token receives with nothing masked, summed over latents and heads, ``[B, groups, group_tokens]``.

    Softmax is over the tokens of one modality in one group, padding excluded from the model's view (SMA,
    arXiv 2402.14789, section 3). ``inputs[name]`` is ``[B, T, C]``, normalised.
    """
    attention, latents = _first_cross_attention(model)
    projected = attention.query(attention.query_norm(latents))
    tokens = model.full_tokens(
        inputs, {modality.name: model.position_code(modality.name) for modality in model.modalities}
    )
    scores = {}
    for groups in model.group_plan().modalities:
        grouped = pad(tokens[groups.name], (0, 0, 0, groups.final_padding)).unflatten(1, (groups.groups, -1))
        keys = attention.key(attention.key_norm(grouped))
        slots = torch.arange(groups.groups * groups.group_tokens, device=keys.device).view(groups.groups, 1, -1)
        queries = projected[:, groups.offset : groups.offset + groups.groups]
        scores[groups.name] = _received(queries, keys, attention.heads, slots >= groups.num_tokens)
    return scores


def _first_cross_attention(model: Any) -> tuple[CrossAttention, Tensor]:
    """The layer that looks at the tokens, and its latents ``[1, G, N, D]``."""
    if isinstance(model, Perceiver):
        return model.first_cross_attention, model.first_queries()
    block: Any = model.blocks[0] if isinstance(model, HiP) else model.block
    return block.cross_attention, block.latents().view(1, block.num_groups, block.num_latents, -1)


def _received(queries: Tensor, keys: Tensor, heads: int, padded: Tensor) -> Tensor:
    """``queries [1, g, N, A]``, ``keys [B, g, l, A]``: attention received by each key, ``[B, g, l]``."""
    width = keys.shape[-1] // heads
    received = keys.new_zeros(keys.shape[:-1])
    for query, key in zip(queries.split(width, dim=-1), keys.split(width, dim=-1), strict=True):
        logits = (query @ key.transpose(-1, -2)).float() / width**0.5
        received = received + logits.masked_fill(padded, -1e30).softmax(dim=-1).sum(dim=-2)
    return received
