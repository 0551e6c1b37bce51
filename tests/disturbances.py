"""What happens to a run while it trains, at a step that its checkpoints tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.train.checkpoint import latest_checkpoint, read_state


def once_at_step(run_folder: Path, step: int, act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a checkpoint of ``step`` or later is there."""

    def wait() -> None:
        for _ in range(8000):
            newest = latest_checkpoint(str(run_folder))
            if newest is not None and read_state(newest).step >= step:
                act()
                return
            time.sleep(0.025)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def two_ray_workers() -> list[psutil.Process]:
    """The training processes below this one."""
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    return workers
