"""Attention inside groups: the two layers a HiP block is made of (specification: HiP paper, section 3; Perceiver IO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hip_model.init import Linear

NORM_EPSILON = 1e-5
# The score of a key nobody may look at: finite, so that a group with no key at all gives zeros and not NaN.
HIDDEN_SCORE = -1e30


@dataclass(frozen=True)
class Keys:
    """What some consecutive groups look at: ``values [B, g, l, C]`` and what is added to their scores.

    ``bias`` broadcasts to ``[B, g, queries, l]``: 0 for an ordinary key, ``log n`` for one that stands for ``n`` equal ones,
    ``HIDDEN_SCORE`` for a key that is not there. Queries that see no key at all get zeros from attention.
    """

    values: Tensor
    bias: Tensor | None = None


class MLP(nn.Module):
    """``C -> widening * C``, squared ReLU, back to ``C``."""

    def __init__(self, channels: int, widening: int) -> None:
        super().__init__()
        self.hidden = Linear(channels, widening * channels)
        self.output = Linear(widening * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x).relu().square())


class CrossAttention(nn.Module):
    """Queries look at keys, group by group, then an MLP. The inner width is the keys' width.

    Only queries and keys are per group; every weight is shared by all groups.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        heads: int,
        widening: int,
        *,
        skip_channels: int | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.residual = residual
        self.query_norm = nn.LayerNorm(query_channels, eps=NORM_EPSILON)
        self.key_norm = nn.LayerNorm(key_channels, eps=NORM_EPSILON)
        self.mlp_norm = nn.LayerNorm(query_channels, eps=NORM_EPSILON)
        self.query = Linear(query_channels, key_channels)
        self.key = Linear(key_channels, key_channels)
        self.value = Linear(key_channels, key_channels)
        self.output = Linear(key_channels, query_channels)
        self.mlp = MLP(query_channels, widening)
        needs_map = skip_channels is not None and skip_channels != query_channels
        self.skip = Linear(skip_channels, query_channels) if needs_map and skip_channels else None

    def forward(self, queries: Tensor, keys: Sequence[Keys], skip: Tensor | None = None) -> Tensor:
        """``queries [B or 1, G, N, D]`` over ``keys``, which cover the groups in order; ``skip [B, G, N, D']`` joins the queries.

        Returns ``[B, G, N, D]``.
        """
        if skip is not None:
            queries = queries + (skip if self.skip is None else self.skip(skip))
        projected = self.query(self.query_norm(queries))
        attended, first = [], 0
        for part in keys:
            groups = part.values.shape[1]
            attended.append(self._attend(projected[:, first : first + groups], part))
            first += groups
        result = self.output(attended[0] if len(attended) == 1 else torch.cat(attended, dim=1))
        if self.residual:
            result = result + queries
        return result + self.mlp(self.mlp_norm(result))

    def _attend(self, projected: Tensor, keys: Keys) -> Tensor:
        values = self.key_norm(keys.values)
        return grouped_attention(projected, self.key(values), self.value(values), self.heads, keys.bias)


class SelfAttention(nn.Module):
    """Latents of a group look at each other, then an MLP; dropout and stochastic depth act on both branches."""

    def __init__(self, channels: int, heads: int, widening: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop_path = drop_path
        self.attention_norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.mlp_norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.output = Linear(channels, channels)
        self.mlp = MLP(channels, widening)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, G, N, D] -> [B, G, N, D]``."""
        normed = self.attention_norm(x)
        attended = grouped_attention(self.query(normed), self.key(normed), self.value(normed), self.heads)
        x = x + self._drop(self.output(attended))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        branch = self.dropout(branch)
        if not self.training or self.drop_path == 0.0:
            return branch
        # One draw per example; kept branches are not rescaled (as in the original).
        kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) >= self.drop_path
        return branch * kept.to(branch.dtype)


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention within each group, scores over ``sqrt`` of the head width.

    ``query [B or 1, G, N, A]``, ``key [B, G, M, A]``, ``value [B, G, M, V]``, ``bias`` as in ``Keys``; returns ``[B, G, N, V]``.
    """
    batch, groups = max(query.shape[0], key.shape[0]), query.shape[1]
    query = query.expand(batch, -1, -1, -1)
    mask = None if bias is None else bias.to(query.dtype)
    if heads == 1:
        # Groups stand in the head axis: no transposes.
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:
        query, key, value = (_split_heads(part, heads) for part in (query, key, value))
        if mask is not None:
            mask = mask.expand(batch, groups, -1, -1).flatten(0, 1).unsqueeze(1)
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result = result.transpose(1, 2).reshape(batch, groups, query.shape[2], -1)
    return result if bias is None else result * any_key(bias).to(result.dtype)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2], heads, -1).transpose(1, 2)


def any_key(bias: Tensor) -> Tensor:
    """Whether a query has any key to look at: bool, ``bias``'s shape with a last axis of 1."""
    return (bias > HIDDEN_SCORE / 2).any(dim=-1, keepdim=True)
