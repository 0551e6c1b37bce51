"""Squared errors of answers at slots against the tokens there, in one pass; naive twin: ``naive_squared_errors``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hip_model.kernels.device import shares
from hip_model.kernels.token_slots import WIDE_CHANNELS, TokenSlots

_BLOCK_VALUES = 1024


def can_score(values: Tensor) -> bool:
    """Whether the kernel takes tokens ``values [B, T, C]``."""
    return values.shape[-1] <= WIDE_CHANNELS


def squared_errors(answers: Tensor, values: Tensor, where: TokenSlots) -> Tensor:
    """``(answers [B, G * s, C] - values [B, T, C] at the slots)^2`` summed over all filled slots, float32 ``[C]``."""
    result: Tensor = _SquaredErrors.apply(answers, values, where)
    return result


def naive_squared_errors(answers: Tensor, values: Tensor, where: TokenSlots) -> Tensor:
    """What ``squared_errors`` returns, every target gathered."""
    slots = where.slots
    if slots is None:
        slots = torch.arange(where.group_tokens, device=values.device).expand(1, 1, -1)
    slots = slots.expand(where.batch, where.groups, -1)
    rows = slots + torch.arange(where.groups, device=values.device).view(1, -1, 1) * where.group_tokens
    empty = ((slots < 0) | (slots >= where.group_tokens) | (rows >= where.num_tokens)).flatten(1)
    rows = rows.flatten(1).masked_fill(empty, 0)
    target = values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
    squared = (answers.float() - target.float()).square().masked_fill(empty[..., None], 0.0)
    return squared.sum(dim=(0, 1))


class _SquaredErrors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answers: Tensor, values: Tensor, where: TokenSlots) -> Tensor:
        from hip_model.kernels.triton_pixel_scores import score_kernel

        answers, values = answers.contiguous(), values.contiguous()
        grid, constants = _launch(where, values)
        sums = torch.empty(grid[0] * grid[1], values.shape[-1], dtype=torch.float32, device=values.device)
        score_kernel[grid](values, answers, where.argument(values), sums, where.batch, *_sizes(where), **constants)
        ctx.save_for_backward(answers, values)
        ctx.where = where
        return sums.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from hip_model.kernels.triton_pixel_scores import score_backward_kernel

        answers, values = ctx.saved_tensors
        where, to_answers = ctx.where, torch.empty_like(answers)
        grid, constants = _launch(where, values)
        slots, sizes = where.argument(values), _sizes(where)
        score_backward_kernel[grid](values, answers, slots, gradient.contiguous(), to_answers, *sizes, **constants)
        return to_answers, None, None


def _launch(where: TokenSlots, values: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, groups of examples by shares of their slots, and the kernels' constants."""
    channels = values.shape[-1]
    wide_channels = int(2 ** math.ceil(math.log2(channels)))
    block_tokens = _BLOCK_VALUES // wide_channels
    programs = where.batch * where.groups
    grid = (programs, shares(programs, -(-where.per_group // block_tokens), values.device))
    return grid, {
        "has_slots": where.slots is not None,
        "channels": channels,
        "wide_channels": wide_channels,
        "block_tokens": block_tokens,
        "num_warps": 4,
    }


def _sizes(where: TokenSlots) -> tuple[int, ...]:
    """The kernels' run-time sizes after the batch, in their order."""
    return (where.groups, where.per_group, where.group_tokens, where.num_tokens, *where.strides)
