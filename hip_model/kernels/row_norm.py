"""Layer norm of rows, with the sum before it and the gradient past it in one pass; twin: ``layer_norm(x + plus)``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hip_model.kernels.device import compute_dtype, has_layer_kernels, is_whole, programs_for

_BLOCK_VALUES = 4096
WIDEST = 4096


def can_norm_rows(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel takes these rows."""
    if not has_layer_kernels(x) or x.shape[-1] > WIDEST:
        return False
    return x.dtype == weight.dtype == compute_dtype(x) and is_whole(weight, bias)


def norm_rows(x: Tensor, plus: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``x + plus`` (or ``x``) and its layer norm, both ``[..., C]``.

    Returning the sum as well lets the backward pass add its gradient without a pass of its own.
    """
    result: tuple[Tensor, Tensor] = _NormRows.apply(x, plus, weight, bias, epsilon)
    return result


class _NormRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plus: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        from hip_model.kernels.triton_rows import norm_kernel

        ctx.plus_shape = None if plus is None else plus.shape
        ctx.x_shape = x.shape
        if plus is not None and plus.shape != x.shape:
            x, plus = torch.broadcast_tensors(x, plus)
        x = x.contiguous()
        plus = None if plus is None else plus.contiguous()
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        total = x.view_as(x) if plus is None else torch.empty_like(x)
        result = torch.empty_like(x)
        means, inverses = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        wide, block_rows = _block(width)
        norm_kernel[(-(-rows // block_rows),)](
            x, x if plus is None else plus, weight, bias, total, result, means, inverses, rows, width=width, wide=wide,
            epsilon=epsilon, has_plus=plus is not None, block_rows=block_rows, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(total, weight, means, inverses)
        ctx.set_materialize_grads(False)
        return total, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        from hip_model.kernels.triton_rows import norm_backward_kernel

        total, weight, means, inverses = ctx.saved_tensors
        if gradient is None:
            return _reduced(through, ctx.x_shape), _reduced(through, ctx.plus_shape), None, None, None
        gradient = gradient.contiguous()
        through = None if through is None else through.contiguous()
        width, rows = total.shape[-1], total.numel() // total.shape[-1]
        wide, block_rows = _block(width)
        programs = programs_for(-(-rows // block_rows), total.device)
        partial = torch.empty(programs, 2, wide, dtype=torch.float32, device=total.device)
        to_x = torch.empty_like(total)
        norm_backward_kernel[(programs,)](
            total, weight, means, inverses, gradient, gradient if through is None else through, to_x, partial, rows,
            width=width, wide=wide, has_through=through is not None, block_rows=block_rows, num_warps=4,
        )  # fmt: skip
        to_weight, to_bias = partial.sum(0)[:, :width].to(weight.dtype)
        return _reduced(to_x, ctx.x_shape), _reduced(to_x, ctx.plus_shape), to_weight, to_bias, None


def _reduced(gradient: Tensor | None, shape: torch.Size | None) -> Tensor | None:
    """The gradient of what was broadcast from ``shape``; None for what was not there."""
    if gradient is None or shape is None or gradient.shape == shape:
        return None if shape is None else gradient
    return gradient.sum_to_size(shape)


def _block(width: int) -> tuple[int, int]:
    """The width as a power of two, and rows of a block."""
    wide = int(2 ** math.ceil(math.log2(max(16, width))))
    return wide, max(1, _BLOCK_VALUES // wide)
