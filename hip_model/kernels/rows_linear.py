"""A linear map of rows whose bias gradient is one pass over the rows; naive twin: ``torch.nn.functional.linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hip_model.kernels.device import compute_dtype, has_layer_kernels
from hip_model.kernels.row_sums import column_sums


def can_map_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether ``rows_linear`` takes these: one dtype, no autocast, on a device that has the kernels."""
    return has_layer_kernels(x) and x.dtype == weight.dtype == compute_dtype(x) and x.dim() > 1


def rows_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [..., in] weight' + bias``."""
    result: Tensor = _RowsLinear.apply(x, weight, bias)
    return result


class _RowsLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_x = (rows @ weight).view(x.shape) if needs_x else None
        to_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None
        return to_x, to_weight, column_sums(rows.contiguous()) if needs_bias else None
