"""A window of steps under torch's profiler, on request."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.train.hooks import Hook

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer


class Profile(Hook):
    """Records rank 0 from step ``first`` to ``last``; the trace (for chrome://tracing) goes to the tracked run."""

    name = "profile"

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self._profiler: Any = None

    def on_step(self, trainer: Trainer) -> None:
        """Start before the first step of the window, stop after its last."""
        step = trainer.state.step
        if trainer.rank == 0 and step == self.first - 1:
            self._start(trainer)
        if self._profiler is not None and (step >= self.last or step >= trainer.total_steps):
            self._stop(trainer)

    def on_start(self, trainer: Trainer) -> None:
        """A window may begin with the very first step."""
        if trainer.rank == 0 and trainer.state.step == self.first - 1:
            self._start(trainer)

    def _start(self, trainer: Trainer) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if trainer.engine.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def _stop(self, trainer: Trainer) -> None:
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / f"trace_steps_{self.first}_to_{trainer.state.step}.json"
            self._profiler.export_chrome_trace(str(trace))
            trainer.tracker.log_artifact(trace, "profile")
        self._profiler = None
