"""Shared by the fault tests of training: options, the undisturbed curve, and ways to disturb."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from test_pretrain_ray import STEPS, make_options, once_at_step

from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import PretrainOptions

__all__ = ["STEPS", "kill_at_steps", "losses_of", "newest_step", "once_at_step", "untracked", "workers_of_this_test"]


def untracked(folder: Path, name: str) -> PretrainOptions:
    return replace(make_options(folder, name), tracking=TrackingOptions(enabled=False))


def losses_of(folder: Path, name: str) -> dict[int, float]:
    newest = latest_checkpoint(str(folder / "runs" / name))
    assert newest is not None
    return dict(enumerate(read_state(newest).hooks["guards"]["losses"], start=1))


def newest_step(run_folder: Path) -> int:
    """The step of the newest checkpoint; -1 before the first."""
    newest = latest_checkpoint(str(run_folder))
    return -1 if newest is None else read_state(newest).step


def workers_of_this_test() -> list[psutil.Process]:
    """Ray's training workers below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_at_steps(run_folder: Path, steps: Sequence[int], pauses: Sequence[float]) -> threading.Thread:
    """Kill one worker once at each step (as checkpoints tell it) and after each pause: at any instant of the loop."""

    def act() -> None:
        before = -1
        for index, (step, pause) in enumerate(zip(steps, pauses, strict=True)):
            deadline = time.monotonic() + 240
            while newest_step(run_folder) < step or newest_step(run_folder) <= before:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)
            time.sleep(pause)
            workers = workers_of_this_test()
            before = newest_step(run_folder)
            if workers:
                workers[index % len(workers)].kill()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def wait_until(reached: Callable[[], bool], limit_seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.1)
    return False
