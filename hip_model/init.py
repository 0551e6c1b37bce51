"""Initial values: truncated normals scaled by fan-in, as in the original release."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hip_model.kernels.rows_linear import can_map_rows, rows_linear
from hip_model.kernels.squared_relu import linear_then_bias, squared_relu_linear

# Standard deviation of a standard normal restricted to [-2, 2].
TRUNCATED_STD = 0.87962566103423978


def init_by_fan_in(weight: Tensor, fan_in: int) -> None:
    """Fill with a normal cut at two deviations, rescaled to standard deviation ``sqrt(1 / fan_in)``."""
    scale = math.sqrt(1.0 / fan_in) / TRUNCATED_STD
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=scale, a=-2 * scale, b=2 * scale)


class Linear(nn.Linear):
    """``nn.Linear`` with this package's initial values, and the way back through its weight."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, zero: bool = False) -> None:
        self._zero = zero
        super().__init__(in_channels, out_channels, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weight anew by fan-in, or zeros where so asked; the bias starts at zero."""
        if self._zero:
            nn.init.zeros_(self.weight)
        else:
            init_by_fan_in(self.weight, self.in_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(  # type: ignore[override]
        self, x: Tensor, *, transposed: bool = False, after_squared_relu: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``[..., in] -> [..., out]``; ``after_squared_relu``: of ``max(x, 0)^2``.

        ``transposed``: the two parts of a score in which ``x [..., out]`` meets this layer's output,
        ``x . (W y + b) = (x W) . y + x . b``: ``x W [..., in]`` and ``x . b [...]``. It lives here because sharded
        training gathers a weight only for the forward of its own module.
        """
        if after_squared_relu:
            return squared_relu_linear(x, self.weight, self.bias)
        if not transposed:
            if self.bias is not None and can_map_rows(x, self.weight):
                return rows_linear(x, self.weight, self.bias)
            if self.bias is not None and torch.compiler.is_compiling():
                return linear_then_bias(x, self.weight, self.bias)
            return super().forward(x)
        return x @ self.weight.to(x.dtype), x @ self.bias.to(x.dtype)


class Table(nn.Module):
    """Learned rows ``[rows, channels]``; the deviation of the initial values falls with the number of rows."""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, channels))
        init_by_fan_in(self.weight, rows)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The whole table, or ``rows`` (integers of any shape): ``[*rows.shape, channels]``."""
        if rows is None:
            return self.weight.view_as(self.weight)
        # embedding sorts its indices in the backward pass: the same sum in the same order, on any device.
        return nn.functional.embedding(rows, self.weight)
