"""Self-attention inside groups from one projection to queries, keys and values; naive twin: ``naive_self_attend``.

Groups are small (256 latents at most), so one program holds all keys of a head, needs no running softmax, and its
backward pass computes every score once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hip_model.kernels.attention import grouped_attention
from hip_model.kernels.row_sums import finish_sums
from hip_model.kernels.rows_linear import can_map_rows

MOST_LATENTS = 256
_NARROWEST_HEAD, _WIDEST_HEAD = 16, 64
# By the (padded) number of latents: queries of a block, warps of a program, its loop's stages, and forward the blocks
# of a program: the fastest on an H200 (bench/results/gpu_kernels_h200_settings.json).
_FORWARD = {16: (16, 1, 1, 1), 32: (32, 2, 1, 1), 64: (64, 4, 1, 1), 128: (64, 4, 3, 2), 256: (64, 4, 3, 4)}
_BACKWARD = {16: (16, 1, 1), 32: (32, 1, 1), 64: (64, 4, 1), 128: (64, 4, 3), 256: (64, 8, 3)}


def can_self_attend(x: Tensor, weights: Sequence[Tensor], heads: int) -> bool:
    """Whether the kernel takes the groups ``x [B, G, N, C]``."""
    head_width = x.shape[-1] // heads
    fits = x.shape[2] <= MOST_LATENTS and _NARROWEST_HEAD <= head_width <= _WIDEST_HEAD
    return fits and all(can_map_rows(x, weight) for weight in weights)


def self_attend(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], heads: int) -> Tensor:
    """What each latent of ``x [B, G, N, C]`` attends to in its group: ``[B, G, N, C]``.

    ``weights`` and ``biases`` of the maps to queries, keys and values.
    """
    result: Tensor = _SelfAttend.apply(x, *weights, *biases, heads)
    return result


def naive_self_attend(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], heads: int) -> Tensor:
    """What ``self_attend`` returns, by three maps and PyTorch's attention."""
    query, key, value = (linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return grouped_attention(query, key, value, heads)


class _SelfAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:  # three weights, three biases, the number of heads
        from hip_model.kernels.triton_self_attend import self_attend_kernel

        weight, bias, heads = torch.cat(rest[:3]), torch.cat(rest[3:6]), rest[6]
        projected = linear(x, weight, bias)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        programs, latents = x.shape[0] * x.shape[1] * heads, x.shape[2]
        log_sums = torch.empty(programs, latents, dtype=torch.float32, device=x.device)
        constants = _constants(x, heads)
        block_queries, warps, stages, blocks = _FORWARD[constants["wide_latents"]]
        self_attend_kernel[(programs, -(-latents // (block_queries * blocks)))](
            projected, result, log_sums, **constants, block_queries=block_queries, stages=stages, num_warps=warps
        )
        ctx.save_for_backward(x, weight, projected, result, log_sums)
        ctx.heads = heads
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from hip_model.kernels.triton_self_attend import self_attend_backward_kernel

        x, weight, projected, result, log_sums = ctx.saved_tensors
        width, examples = x.shape[-1], x.shape[0] * x.shape[1]
        to_projected = torch.empty_like(projected)
        partial = torch.empty(examples, 3 * width, dtype=torch.float32, device=x.device)
        constants = _constants(x, ctx.heads)
        block_queries, warps, stages = _BACKWARD[constants["wide_latents"]]
        self_attend_backward_kernel[(examples * ctx.heads,)](
            projected, result, log_sums, gradient.contiguous(), to_projected, partial, **constants,
            block_queries=block_queries, stages=stages, num_warps=warps,
        )  # fmt: skip
        rows = to_projected.flatten(0, -2)
        to_x = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weights = (rows.t() @ x.flatten(0, -2)).split(width)
        return to_x, *to_weights, *finish_sums(partial, weight.dtype).split(width), None


def _constants(x: Tensor, heads: int) -> dict[str, Any]:
    latents, head_width = x.shape[2], x.shape[-1] // heads
    return {
        "heads": heads,
        "latents": latents,
        "wide_latents": _power_of_two(latents),
        "head_width": head_width,
        "wide_head": _power_of_two(head_width),
    }


def _power_of_two(size: int) -> int:
    return max(16, int(2 ** math.ceil(math.log2(size))))
