"""Sums over rows, as the gradients of biases need them: float32, the same bits on every run; twin: ``x.sum(0)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hip_model.kernels.device import programs_for

_BLOCK_VALUES = 8192
STAGES = 1
_FINISH = (256, 16)


def column_sums(rows: Tensor) -> Tensor:
    """``[R, C]`` summed over its rows in float32, then rounded: ``[C]``."""
    from hip_model.kernels.triton_rows import column_sums_kernel

    count, width = rows.shape
    columns, block_rows, grid = column_blocks(count, width, rows.device)
    partial = torch.empty(grid[1], width, dtype=torch.float32, device=rows.device)
    column_sums_kernel[grid](
        rows, partial, count, width, block_rows=block_rows, block_columns=columns, stages=STAGES, num_warps=4
    )
    return finish_sums(partial, rows.dtype)


def column_blocks(rows: int, width: int, device: torch.device) -> tuple[int, int, tuple[int, int]]:
    """Columns and rows of a block, and the grid: programs across the columns, shares of the rows."""
    columns = int(min(128, 2 ** math.ceil(math.log2(max(16, width)))))
    block_rows = _BLOCK_VALUES // columns
    across, blocks = -(-width // columns), -(-rows // block_rows)
    return columns, block_rows, (across, max(1, min(programs_for(blocks, device) // across, blocks)))


def finish_sums(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The shares' sums ``[S, C]`` added up and rounded: ``[C]``."""
    from hip_model.kernels.triton_rows import finish_sums_kernel

    shares, width = partial.shape
    result = torch.empty(width, dtype=dtype, device=partial.device)
    block_shares, columns = _FINISH
    finish_sums_kernel[(-(-width // columns),)](
        partial, result, shares, width, block_shares=block_shares, block_columns=columns, num_warps=4
    )
    return result
