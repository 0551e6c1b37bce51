"""Lack of memory: told from other failures, and cleaned up after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# PyTorch's and Ray's words for it, on the processor and on a GPU.
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "OutOfMemory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the lack of memory on a device, in the process or in its workers."""
    import torch

    while error is not None:
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or tells_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def tells_of_memory(text: str) -> bool:
    """Whether a text is PyTorch's or Ray's word for a lack of memory, which is all that other processes tell."""
    return any(mark in text for mark in _OUT_OF_MEMORY_TEXTS)


def free_device_memory() -> None:
    """Give a failed trial's memory back before the next one starts in this process."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def kills_as_crashes() -> Iterator[None]:
    """Let a trial whose process Ray kills for memory fail alone.

    Ray Tune takes its ``OutOfMemoryError`` for nothing that a process can die of, and ends the whole search.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    as_it_was = RayActorManager._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        is_kill = isinstance(exception, OutOfMemoryError)
        as_it_was(manager, tracked_actor_task, RayActorError(error_msg=str(exception)) if is_kill else exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = as_it_was
