"""A search ends when its trials have: Ray Tune kills what is still closing five seconds after the last result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback

from pipeline.storage import join
from pipeline.train.resume import RUNNING, RunRecord

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
# How long a trial that is stopped may take to save its state and close its tracked run.
CLOSING_SECONDS = 120.0


class AwaitClosing(Callback):
    """Where nothing else is left to do, waits until every stopped trial has written how it ended.

    Only then are its workers gone, their processors free and its last checkpoint whole.
    """

    def __init__(
        self,
        trials_folder: str,
        name_of: Callable[[Any], str],
        more_to_come: Callable[[], bool],
        seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._trials_folder = trials_folder
        self._name_of = name_of
        self._more_to_come = more_to_come
        self._seconds = seconds
        self._stopped: set[str] = set()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The scheduler, or the trial itself, has ended it."""
        self._stopped.add(self._name_of(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Wait, but never while another trial could report, or start.

        Ray keeps a stopped trial's worker for the next one, which closes what it finds: it is waiting for us.
        """
        if not self._stopped or not all(trial.is_finished() for trial in trials) or self._more_to_come():
            return
        deadline = time.monotonic() + self._seconds
        closing = [name for name in self._stopped if self._is_closing(name)]
        while closing and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            closing = [name for name in closing if self._is_closing(name)]
        if closing:
            logger.warning("%s did not close within %.0f s", ", ".join(sorted(closing)), self._seconds)
        self._stopped.clear()

    def _is_closing(self, name: str) -> bool:
        record = RunRecord.read(join(self._trials_folder, name))
        return record is not None and record.status == RUNNING
