"""When checkpoints are written."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from pipeline.errors import InfrastructureError
from pipeline.train.guards import Guard
from pipeline.train.hooks import Hook

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)

_FAILURES_TO_STOP = 3


class Checkpoints(Hook):
    """Saves at the start (so that there is always something to go back to), at intervals, and at the end.

    A failed save does not stop training until it is the third in a row, or the last one.
    """

    name = "checkpoints"

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.failures = 0

    def on_start(self, trainer: Trainer) -> None:
        """Save step 0: shows a full disk or a missing share before the long wait."""
        if trainer.last_checkpoint is None:
            trainer.save()

    def on_step(self, trainer: Trainer) -> None:
        """Save at the interval or when one is due otherwise, or as soon after it as the run is healthy."""
        step = trainer.state.step
        trainer.save_is_due = trainer.save_is_due or step % trainer.options.checkpoint.every_steps == 0
        if not trainer.save_is_due or trainer.pending or not self.guard.is_healthy or step >= trainer.total_steps:
            return
        began = time.perf_counter()
        self._look_back(trainer)
        trainer.begin_save()
        trainer.save_is_due = False
        if trainer.rank == 0:
            trainer.tracker.log_metrics({"checkpoint_pause_seconds": time.perf_counter() - began}, step)

    def _look_back(self, trainer: Trainer) -> None:
        """How the save before went: the next one waits for it."""
        try:
            if trainer.end_save():
                self.failures = 0
        except InfrastructureError as error:
            self.failures += 1
            if trainer.rank == 0:
                logger.error("%s; training goes on (%d of %d failures)", error, self.failures, _FAILURES_TO_STOP)
            if self.failures >= _FAILURES_TO_STOP:
                raise

    def on_end(self, trainer: Trainer) -> None:
        """Save the result."""
        trainer.save()
