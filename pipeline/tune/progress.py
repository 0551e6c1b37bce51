"""What a search says while it runs: a line for every trial's start, reports and end, and a bar on a terminal."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from ray.tune import Callback

from pipeline.tune.candidates import Candidate
from pipeline.tune.results import FINISHED, STOPPED, UNFINISHED, TrialResult, best_trial

logger = logging.getLogger(__name__)

# A trial says where it is at most so often; its start and its end are always told.
SECONDS_BETWEEN_REPORTS = 2.0
_BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


class Progress(Callback):
    """Says which trials run, how far they are, how they ended, and how many are left.

    Ray keeps a copy of its callbacks with the search, so what belongs to this process is made in ``setup``.
    """

    def __init__(self, trials: int, metric: str, mode: str, total_steps: int) -> None:
        self._trials = trials
        self._metric = metric
        self._mode = mode
        self._total_steps = total_steps

    def setup(self, *arguments: Any, **named: Any) -> None:
        """Called once, when trials are about to start."""
        self._began = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._told: dict[str, float] = {}
        self._ended_before: int | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its worker."""
        if str(trial) not in self._told:
            self._told[str(trial)] = -math.inf
            self._say(trials, f"{trial} starts: {_candidate(trial).label or _candidate(trial).model_name}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        """A trial reported."""
        now = time.monotonic()
        if not result.get("done") and now - self._told.get(str(trial), -math.inf) >= SECONDS_BETWEEN_REPORTS:
            self._told[str(trial)] = now
            self._say(trials, f"{trial} step {self._step(trial, result)}: {self._value(result)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end or was stopped."""
        result = trial.last_result or {}
        told = result.get("status", "training")
        if told == "training" and result.get("step") == self._steps_of(trial):
            told = FINISHED  # the scheduler stops it where it would have ended
        how = {"training": "is stopped early", FINISHED: "is done"}.get(told, f"ends as {told.replace('_', ' ')}")
        reason = f" ({result['reason']})" if result.get("reason") and told not in (FINISHED, STOPPED) else ""
        self._say(trials, f"{trial} {how} at step {self._step(trial, result)}: {self._value(result)}{reason}", ended=1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed more often than allowed."""
        self._say(trials, f"{trial} failed; the report says why", ended=1)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Leave the terminal at the start of a line."""
        if self._on_terminal:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _say(self, trials: list[Any], text: str, ended: int = 0) -> None:
        done = min(sum(trial.is_finished() for trial in trials) + ended, self._trials)
        if self._ended_before is None:  # what an earlier process of this search has done
            self._ended_before = done - ended
        best = best_trial([self._result(trial) for trial in trials if trial.last_result], self._mode)
        state = f"{done}/{self._trials} done" + (f", best {best.candidate.name} {best.value:.5g}" if best else "")
        if self._on_terminal:
            print(_CLEAR, end="", file=sys.stderr)
        logger.info("%s | %s%s", text, state, self._time_left(done))
        if self._on_terminal:
            filled = round(_BAR_WIDTH * done / self._trials)
            running = sum(trial.status == "RUNNING" for trial in trials) - ended
            bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
            print(f"{bar} {state}, {max(0, running)} running", end="", file=sys.stderr, flush=True)

    def _time_left(self, done: int) -> str:
        """Linear in the trials that ended since this process started."""
        fresh, left = done - (self._ended_before or 0), self._trials - done
        if not fresh or not left:
            return ""
        seconds = (time.monotonic() - self._began) / fresh * left
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"

    def _result(self, trial: Any) -> TrialResult:
        """The trial as it stands: its last reported value counts, not its luckiest."""
        last = trial.last_result or {}
        return TrialResult(_candidate(trial), last.get("status", UNFINISHED), last.get(self._metric, math.nan))

    def _step(self, trial: Any, result: dict[str, Any]) -> str:
        return f"{result.get('step', '?')}/{self._steps_of(trial)}"

    def _steps_of(self, trial: Any) -> int:
        return int(_candidate(trial).settings.get("duration.steps") or self._total_steps)

    def _value(self, result: dict[str, Any]) -> str:
        name = self._metric if self._metric in result else "loss"  # a metric of the end, until then
        return f"{name} {result[name]:.5g}" if name in result else f"no {self._metric}"


def _candidate(trial: Any) -> Candidate:
    return Candidate.from_dict(trial.config["candidate"])
