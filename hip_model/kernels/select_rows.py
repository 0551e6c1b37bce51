"""Rows of a table by index, with a gradient that is gathered and never scattered; naive twin: ``table[rows]``.

Each example's indices name a row at most once, so the gradient of a row is one row of the result: a gather through the
inverse indices, summed over examples in order. No atomics: the same bits on every run and device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, empty)
        ctx.num_rows = table.shape[0]
        return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, empty = ctx.saved_tensors
        batch, count, channels = gradient.shape
        inverse = _inverse(rows, empty, ctx.num_rows)
        # Row `count` of each example is the gradient of a row it did not select.
        padded = torch.nn.functional.pad(gradient, (0, 0, 0, 1)).view(-1, channels)
        offsets = torch.arange(batch, device=rows.device).unsqueeze(1) * (count + 1)
        gathered = padded.index_select(0, (inverse + offsets).flatten())
        return gathered.view(batch, ctx.num_rows, channels).sum(0) if batch > 1 else gathered, None, None


def select_rows(table: Tensor, rows: Tensor, empty: Tensor | None = None) -> Tensor:
    """``table [R, C]``, ``rows [B, n]`` → ``[B, n, C]``.

    An example may repeat a row only where ``empty [B, n]`` is true; those slots send no gradient back.
    """
    result: Tensor = _SelectRows.apply(table, rows, empty)
    return result


def _inverse(rows: Tensor, empty: Tensor | None, num_rows: int) -> Tensor:
    """Which slot selected each row, or the number of slots where none did: ``[B, R]``."""
    batch, count = rows.shape
    slots = torch.arange(count, device=rows.device).expand(batch, -1)
    targets = rows if empty is None else rows.masked_fill(empty, num_rows)
    inverse = torch.full((batch, num_rows + 1), count, device=rows.device)
    return inverse.scatter_(1, targets, slots)[:, :num_rows]
