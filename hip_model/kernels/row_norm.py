"""Layer norm of rows, with the sum before it and the gradient past it in one pass.

Naive twin: ``layer_norm(x + plus + plus_bias)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hip_model.kernels.device import compute_dtype, has_layer_kernels, is_whole, programs_for
from hip_model.kernels.row_sums import column_sums, finish_sums

_FORWARD_VALUES, _BACKWARD_VALUES, _STAGES = 4096, 2048, 3
WIDEST = 4096


def can_norm_rows(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel takes these rows."""
    if not has_layer_kernels(x) or x.shape[-1] > WIDEST:
        return False
    return x.dtype == weight.dtype == compute_dtype(x) and is_whole(weight, bias)


def norm_rows(
    x: Tensor, plus: Tensor | None, plus_bias: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """``x + plus + plus_bias`` (what is not None of it) and its layer norm, both ``[..., C]``.

    Returning the sum as well lets the backward pass add its gradient without a pass of its own; and the gradient of a
    ``plus_bias [C]`` is a sum over rows that this pass reads anyway.
    """
    result: tuple[Tensor, Tensor] = _NormRows.apply(x, plus, plus_bias, weight, bias, epsilon)
    return result


def sum_rows(x: Tensor, plus: Tensor, plus_bias: Tensor) -> Tensor:
    """``x + plus + plus_bias``, ``[..., C]`` twice and ``[C]``, rounded once."""
    result: Tensor = _SumRows.apply(x, plus, plus_bias)
    return result


class _NormRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plus: Tensor | None,
        plus_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        from hip_model.kernels.triton_rows import norm_kernel

        ctx.x_shape, ctx.plus_shape = x.shape, None if plus is None else plus.shape
        ctx.has_plus_bias = plus_bias is not None
        x, plus = _alike(x, plus)
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        total = x.view_as(x) if plus is None else torch.empty_like(x)
        result = torch.empty_like(x)
        means, inverses = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        wide, block_rows = _block(width, _FORWARD_VALUES)
        norm_kernel[(-(-rows // block_rows),)](
            x, x if plus is None else plus, bias if plus_bias is None else plus_bias, weight, bias, total, result,
            means, inverses, rows, width=width, wide=wide, epsilon=epsilon, has_plus=plus is not None,
            has_plus_bias=plus_bias is not None, block_rows=block_rows, num_warps=4,
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
            to_plus_bias = column_sums(_rows(through)) if ctx.has_plus_bias and through is not None else None
            return _reduced(through, ctx.x_shape), _reduced(through, ctx.plus_shape), to_plus_bias, None, None, None
        gradient = gradient.contiguous()
        through = None if through is None else through.contiguous()
        width, rows = total.shape[-1], total.numel() // total.shape[-1]
        wide, block_rows = _block(width, _BACKWARD_VALUES)
        programs = programs_for(-(-rows // block_rows), total.device)
        sums = 3 if ctx.has_plus_bias else 2
        partial = torch.empty(programs, sums * width, dtype=torch.float32, device=total.device)
        to_x = torch.empty_like(total)
        norm_backward_kernel[(programs,)](
            total, weight, means, inverses, gradient, gradient if through is None else through, to_x, partial, rows,
            width=width, wide=wide, has_through=through is not None, has_plus_bias=ctx.has_plus_bias,
            block_rows=block_rows, stages=_STAGES, num_warps=4,
        )  # fmt: skip
        to_weight, to_bias, *to_plus_bias = finish_sums(partial, weight.dtype).split(width)
        return (
            _reduced(to_x, ctx.x_shape),
            _reduced(to_x, ctx.plus_shape),
            to_plus_bias[0] if to_plus_bias else None,
            to_weight,
            to_bias,
            None,
        )


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plus: Tensor, plus_bias: Tensor) -> Tensor:
        from hip_model.kernels.triton_rows import sum_kernel

        ctx.x_shape, ctx.plus_shape = x.shape, plus.shape
        x, added = _alike(x, plus)
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        total = torch.empty_like(x)
        wide, block_rows = _block(width, _FORWARD_VALUES)
        sum_kernel[(-(-rows // block_rows),)](
            x, added, plus_bias, total, rows, width=width, wide=wide, block_rows=block_rows, num_warps=4
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _reduced(gradient, ctx.x_shape), _reduced(gradient, ctx.plus_shape), column_sums(_rows(gradient))


def _alike(x: Tensor, plus: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in one shape, contiguous."""
    if plus is None:
        return x.contiguous(), None
    if plus.shape != x.shape:
        x, plus = torch.broadcast_tensors(x, plus)
    return x.contiguous(), plus.contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _reduced(gradient: Tensor | None, shape: torch.Size | None) -> Tensor | None:
    """The gradient of what was broadcast from ``shape``; None for what was not there."""
    if gradient is None or shape is None or gradient.shape == shape:
        return None if shape is None else gradient
    return gradient.sum_to_size(shape)


def _block(width: int, values: int) -> tuple[int, int]:
    """The width as a power of two, and rows of a block of about that many values."""
    wide = int(2 ** math.ceil(math.log2(max(16, width))))
    return wide, max(1, values // wide)
