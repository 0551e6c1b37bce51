"""Attention of latents over raw tokens in one pass; naive twin: ``naive_attend_pixels``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear

from hip_model.kernels.attention import HIDDEN_SCORE
from hip_model.kernels.device import shares
from hip_model.kernels.token_slots import WIDE_CHANNELS, TokenSlots

WIDTHS = (16, 32)
MOST_QUERIES = 128
# By width, tokens of a block, warps of a program and its loop's stages: the fastest on an H200
# (bench/results/gpu_kernels_h200_settings.json).
_FORWARD = {16: (64, 4, 1), 32: (128, 4, 3)}
_BACKWARD = {16: (32, 1, 1), 32: (64, 4, 1)}


@dataclass(frozen=True)
class PixelWeights:
    """What makes a key of a raw token: the embedding ``[E, C]``, ``[E]`` and the affine part of the norm, ``[E]``."""

    embed_weight: Tensor
    embed_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


def attend_pixels(
    queries: Tensor, raw: Tensor, code: Tensor, where: TokenSlots, weights: PixelWeights, scale: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """``queries [B or 1, G, N, E]`` over the normed sums of embedded ``raw [B, T, C]`` and ``code [G * l, E]``.

    Keys are values. Returns the answers ``[B, G, N, E]`` and the logarithm of each query's summed scores, float32
    ``[B, G, N]`` (``HIDDEN_SCORE`` and answers of 0 for a group without tokens), to merge with other keys' answers.
    """
    parts = (weights.embed_weight, weights.embed_bias, weights.norm_weight, weights.norm_bias)
    result: tuple[Tensor, Tensor] = _AttendPixels.apply(queries, raw, code, *parts, where, scale, epsilon)
    return result


def naive_attend_pixels(
    queries: Tensor, raw: Tensor, code: Tensor, where: TokenSlots, weights: PixelWeights, scale: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """What ``attend_pixels`` returns, every token and score written out."""
    slots = where.slots
    if slots is None:
        slots = torch.arange(where.group_tokens, device=raw.device).expand(1, 1, -1)
    slots = slots.expand(where.batch, where.groups, -1)
    rows = slots + torch.arange(where.groups, device=raw.device).view(1, -1, 1) * where.group_tokens
    valid = (slots >= 0) & (rows < where.num_tokens)
    rows = rows.masked_fill(~valid, 0)
    flat = rows.flatten(1).unsqueeze(-1).expand(-1, -1, raw.shape[-1])
    values = raw.gather(1, flat).view(*rows.shape, -1).to(code.dtype)
    tokens = linear(values, weights.embed_weight, weights.embed_bias) + code[rows]
    tokens = layer_norm(tokens, tokens.shape[-1:], weights.norm_weight, weights.norm_bias, epsilon)
    scores = (queries @ tokens.transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(~valid.unsqueeze(2), -torch.inf)
    log_sums = scores.logsumexp(dim=-1)
    log_sums = torch.where(log_sums == -torch.inf, HIDDEN_SCORE, log_sums)
    return torch.exp(scores - log_sums.unsqueeze(-1)).to(tokens.dtype) @ tokens, log_sums


def with_padding(answers: Tensor, log_sums: Tensor, score: Tensor, value: Tensor) -> Tensor:
    """Answers with one more key of that ``score [B or 1, G, N]`` and ``value [E]`` merged in: ``[B, G, N, E]``."""
    total = torch.logaddexp(log_sums, score)
    own = torch.exp(log_sums - total).unsqueeze(-1) * answers.float()
    return (own + torch.exp(score - total).unsqueeze(-1) * value.float()).to(answers.dtype)


class _AttendPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, raw: Tensor, code: Tensor, embed_weight: Tensor, embed_bias: Tensor,
        norm_weight: Tensor, norm_bias: Tensor, where: TokenSlots, scale: float, epsilon: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from hip_model.kernels.triton_pixel_keys import attend_kernel

        queries, raw, code = queries.contiguous(), raw.contiguous(), code.contiguous()
        parts = (embed_weight.contiguous(), embed_bias, norm_weight, norm_bias)
        shape = (where.batch, where.groups, *queries.shape[2:])
        programs, (block_tokens, warps, stages) = where.batch * where.groups, _FORWARD[queries.shape[-1]]
        count = shares(programs, -(-where.per_group // block_tokens), raw.device)
        answers = torch.empty(count, *shape, dtype=torch.float32, device=raw.device)
        log_sums = torch.empty(count, *shape[:3], dtype=torch.float32, device=raw.device)
        attend_kernel[(programs, count)](
            raw, code, where.argument(raw), *parts, queries, answers, log_sums, scale, *_sizes(where, queries),
            **_constants(where, queries, raw, epsilon), block_tokens=block_tokens, stages=stages, num_warps=warps,
        )  # fmt: skip
        total = log_sums[0] if count == 1 else log_sums.logsumexp(dim=0)
        merged = answers[0] if count == 1 else (answers * torch.exp(log_sums - total).unsqueeze(-1)).sum(0)
        merged = merged.to(queries.dtype)
        ctx.save_for_backward(queries, raw, code, *parts, merged, total)
        ctx.constants = where, scale, epsilon
        return merged, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, to_log_sums: Tensor | None) -> tuple[Tensor | None, ...]:
        from hip_model.kernels.triton_pixel_keys import attend_backward_kernel

        queries, raw, code, *parts, answers, log_sums = ctx.saved_tensors
        where, scale, epsilon = ctx.constants
        along = (gradient.float() * answers.float()).sum(-1)
        along = along if to_log_sums is None else along - to_log_sums
        width, programs = queries.shape[-1], where.batch * where.groups
        block_tokens, warps, stages = _BACKWARD[width]
        count = shares(programs, -(-where.per_group // block_tokens), raw.device)
        constants = _constants(where, queries, raw, epsilon)
        rows = WIDE_CHANNELS + 1
        to_queries = torch.empty(count, *answers.shape, dtype=torch.float32, device=raw.device)
        to_tokens = code.new_empty(where.batch, where.groups, where.per_group, width)
        to_parameters = torch.empty(count * programs, rows, width, dtype=torch.float32, device=raw.device)
        attend_backward_kernel[(programs, count)](
            raw, code, where.argument(raw), *parts, queries, log_sums, gradient.contiguous(), along, to_queries,
            to_tokens, to_parameters, scale, *_sizes(where, queries), **constants, block_tokens=block_tokens,
            stages=stages, num_warps=warps,
        )  # fmt: skip
        summed = to_parameters.sum(0)
        channels = raw.shape[-1]
        to_beta = _to_norm_bias(gradient, to_log_sums, log_sums, queries, scale)
        found = summed[:channels].t(), summed[channels], summed[WIDE_CHANNELS], to_beta
        of_queries = to_queries.sum(0) if count > 1 else to_queries[0]
        of_queries = of_queries.sum(0, keepdim=True) if queries.shape[0] == 1 else of_queries
        of_parts = (value.to(part.dtype) for value, part in zip(found, parts, strict=True))
        return of_queries.to(queries.dtype), None, where.sum_over_examples(to_tokens), *of_parts, None, None, None


def _to_norm_bias(
    gradient: Tensor, to_log_sums: Tensor | None, log_sums: Tensor, queries: Tensor, scale: float
) -> Tensor:
    """The gradient of what is added to every key and value alike: a query's weights sum to 1, its scores all move."""
    has_tokens = (log_sums > HIDDEN_SCORE / 2).unsqueeze(-1)
    through_values = (gradient * has_tokens).sum(dim=(0, 1, 2), dtype=torch.float32)
    if to_log_sums is None:
        return through_values
    return through_values + scale * (to_log_sums.unsqueeze(-1) * queries.float()).sum(dim=(0, 1, 2))


def _sizes(where: TokenSlots, queries: Tensor) -> tuple[int, ...]:
    """The kernels' run-time sizes, in their order."""
    by_example = queries.shape[1] * queries.shape[2] * queries.shape[3] if queries.shape[0] > 1 else 0
    sizes = (where.batch, where.groups, where.per_group, where.group_tokens, where.num_tokens)
    return (*sizes, *where.strides, by_example, queries.shape[2])


def _constants(where: TokenSlots, queries: Tensor, raw: Tensor, epsilon: float) -> dict[str, Any]:
    return {
        "epsilon": epsilon,
        "has_slots": where.slots is not None,
        "channels": raw.shape[-1],
        "wide_channels": WIDE_CHANNELS,
        "width": queries.shape[-1],
        "wide_queries": max(16, 2 ** math.ceil(math.log2(queries.shape[2]))),
    }
