"""One log line for every trial that ends."""

from __future__ import annotations

import logging
from typing import Any

from ray.tune import Callback

from pipeline.tune.candidates import Candidate

logger = logging.getLogger(__name__)


class Progress(Callback):
    """Says which trial ended how, and how many are left."""

    def __init__(self, trials: int, metric: str) -> None:
        self._trials = trials
        self._metric = metric
        self._ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end or was stopped."""
        self._ended += 1
        candidate = Candidate.from_dict(trial.config["candidate"])
        result = trial.last_result or {}
        logger.info(
            "%s (%d of %d): %s %.5g at step %s | %s",
            trial,
            self._ended,
            self._trials,
            self._metric,
            result.get(self._metric, float("nan")),
            result.get("step", "?"),
            candidate.label,
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed more often than allowed."""
        self._ended += 1
        logger.warning("%s failed; the report says why", trial)
