"""Squared ReLU and the linear map after it as one step that keeps one tensor for its backward pass instead of three.

Naive twin: ``linear(naive_squared_relu(x), weight, bias)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hip_model.kernels.rows_linear import can_map_rows, column_sums

_BLOCK_VALUES = 2048


class _SquaredReLULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.on_device = can_map_rows(x, weight)
        if ctx.on_device:
            x = x.contiguous()
            ctx.save_for_backward(x, weight)
            return linear(_squares(x), weight, bias)
        positive = x.relu()
        ctx.save_for_backward(positive, weight)
        return linear(positive * positive, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        positive, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        if ctx.on_device:
            before, squares = _backward(positive, rows @ weight)
            to_weight = rows.t() @ squares if needs_weight else None
            return before, to_weight, column_sums(rows.contiguous()) if needs_bias else None
        # The squares are made again: cheaper than keeping them.
        to_weight = rows.t() @ (positive * positive).flatten(0, -2) if needs_weight else None
        to_x = (gradient @ weight).mul_(positive).mul_(2.0) if needs_x else None
        return to_x, to_weight, rows.sum(0) if needs_bias else None


def _squares(x: Tensor) -> Tensor:
    from hip_model.kernels.triton_rows import squared_relu_kernel

    result = torch.empty_like(x)
    squared_relu_kernel[(-(-x.numel() // _BLOCK_VALUES),)](x, result, x.numel(), block=_BLOCK_VALUES, num_warps=4)
    return result


def _backward(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``x`` from that of its squares ``[R, C]``, and the squares again."""
    from hip_model.kernels.triton_rows import squared_relu_backward_kernel

    to_x, squares = torch.empty_like(x), torch.empty_like(gradient)
    squared_relu_backward_kernel[(-(-x.numel() // _BLOCK_VALUES),)](
        x, gradient, to_x, squares, x.numel(), block=_BLOCK_VALUES, num_warps=4
    )
    return to_x, squares


def squared_relu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``max(x, 0)^2 weight' + bias`` for ``x [..., in]``, ``weight [out, in]``."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast or torch.compiler.is_compiling():
        # A compiler fuses the plain form itself, and autocast chooses the precision of each of its steps.
        return linear(x.relu().square(), weight, bias)
    result: Tensor = _SquaredReLULinear.apply(x, weight, bias)
    return result
