"""An MLP's two maps and the squared ReLU between them, keeping only the squares; no last bias, which a norm adds.

Naive twin: ``linear(naive_squared_relu(linear(x, hidden_weight, hidden_bias)), output_weight)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hip_model.kernels.row_sums import STAGES, column_blocks, finish_sums

_BLOCK_VALUES = 2048


def mlp_rows(x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor) -> Tensor:
    """``max(x hidden_weight' + hidden_bias, 0)^2 output_weight'`` for ``x [..., C]``: ``[..., out]``."""
    result: Tensor = _MLPRows.apply(x, hidden_weight, hidden_bias, output_weight)
    return result


class _MLPRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor) -> Tensor:
        from hip_model.kernels.triton_rows import squared_relu_kernel

        hidden = linear(x, hidden_weight, hidden_bias)
        count = hidden.numel()
        # In place: the slope, 2 max(x, 0), is twice the root of the square, so the square is all that has to stay.
        squared_relu_kernel[(-(-count // _BLOCK_VALUES),)](hidden, hidden, count, block=_BLOCK_VALUES, num_warps=4)
        ctx.save_for_backward(x, hidden_weight, hidden, output_weight)
        return linear(hidden, output_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from hip_model.kernels.triton_rows import squared_relu_backward_kernel

        x, hidden_weight, squares, output_weight = ctx.saved_tensors
        rows, squares = gradient.flatten(0, -2), squares.flatten(0, -2)
        before = rows @ output_weight
        count, width = before.shape
        columns, block_rows, grid = column_blocks(count, width, before.device)
        partial = torch.empty(grid[1], width, dtype=torch.float32, device=before.device)
        squared_relu_backward_kernel[grid](
            squares, before, before, partial, count, width, block_rows=block_rows, block_columns=columns,
            stages=STAGES, num_warps=4,
        )  # fmt: skip
        to_x = (before @ hidden_weight).view(x.shape) if ctx.needs_input_grad[0] else None
        to_hidden, to_output = before.t() @ x.flatten(0, -2), rows.t() @ squares
        return to_x, to_hidden, finish_sums(partial, hidden_weight.dtype), to_output
