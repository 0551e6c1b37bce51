"""A step that does not fit into memory, told as what to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.errors import UserError
from pipeline.train.options import BatchOptions


class OutOfMemory(UserError, MemoryError):
    """The batch of one worker does not fit into its device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the process had no memory left."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def explain_out_of_memory(
    error: BaseException, batch: BatchOptions, workers: int, what: str, other_ways: Sequence[str]
) -> OutOfMemory:
    """What did not fit, and the ways to make it smaller without changing what is learned."""
    size = batch.per_worker_size or -(-batch.global_size // max(1, workers))
    ways = [f"batch.per_worker_size={size // 2} (gradients are accumulated to the same global batch)"] * (size > 1)
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutOfMemory(
        f"{size} examples at once of {what} do not fit into a worker's memory ({said}); set "
        + (", or ".join([*ways, *other_ways]) or "a smaller model, such as model=hip_mini")
    )
