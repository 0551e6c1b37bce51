"""Layer norm as this package's layers use it: with the residual sum before it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from hip_model.kernels.row_norm import can_norm_rows, norm_rows, sum_rows

NORM_EPSILON = 1e-5


class Residual(NamedTuple):
    """``x + branch + bias``, not added yet: the norm that reads the sum makes it in the same pass.

    ``x`` and ``branch`` are ``[..., C]`` (batch axes of 1 broadcast), ``bias [C]``; None: nothing to add. Only where
    the device kernels run is a ``bias`` left to add.
    """

    x: Tensor
    branch: Tensor | None = None
    bias: Tensor | None = None

    def total(self) -> Tensor:
        """The sum ``[..., C]``."""
        if self.branch is None:
            return self.x
        return self.x + self.branch if self.bias is None else sum_rows(self.x, self.branch, self.bias)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPSILON)

    def forward(  # type: ignore[override]
        self, x: Tensor, plus: Tensor | None = None, plus_bias: Tensor | None = None, *, keep_sum: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The sum of a ``Residual``'s parts normed, ``[..., C]``; with ``keep_sum`` that sum and its norm.

        Parts and not the residual itself: sharded training looks for tensors in what a module is given.
        """
        if can_norm_rows(x, self.weight, self.bias):
            total, normed = norm_rows(x, plus, plus_bias, self.weight, self.bias, self.eps)
        else:
            total = Residual(x, plus, plus_bias).total()
            normed = super().forward(total)
        return (total, normed) if keep_sum else normed
