"""Squared ReLU that keeps one tensor for its backward pass instead of two; naive twin: ``naive_squared_relu``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2.0)


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0)^2`` elementwise."""
    if torch.compiler.is_compiling():
        # A compiler fuses the plain form itself.
        return x.relu().square()
    result: Tensor = _SquaredReLU.apply(x)
    return result
