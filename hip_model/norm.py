"""Layer norm as this package's layers use it: with the residual sum before it."""

from __future__ import annotations

from torch import Tensor, nn

from hip_model.kernels.row_norm import can_norm_rows, norm_rows

NORM_EPSILON = 1e-5


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPSILON)

    def forward(  # type: ignore[override]
        self, x: Tensor, plus: Tensor | None = None, *, keep_sum: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``x + plus [..., C]`` normed; with ``keep_sum`` that sum and its norm."""
        if can_norm_rows(x, self.weight, self.bias):
            total, normed = norm_rows(x, plus, self.weight, self.bias, self.eps)
        else:
            total = x if plus is None else x + plus
            normed = super().forward(total)
        return (total, normed) if keep_sum else normed
