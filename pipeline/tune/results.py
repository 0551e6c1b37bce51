"""What a search found: one result a trial, the best one, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.tune.candidates import Candidate

FINISHED, STOPPED, FAILED, OUT_OF_MEMORY, DIVERGED, REJECTED, UNFINISHED = (
    "finished", "stopped_early", "failed", "out_of_memory", "diverged", "rejected", "unfinished",
)  # fmt: skip
STATUSES = (FINISHED, STOPPED, FAILED, OUT_OF_MEMORY, DIVERGED, REJECTED, UNFINISHED)


@dataclass(frozen=True)
class TrialResult:
    """A candidate and what became of it."""

    candidate: Candidate
    status: str
    value: float = math.nan  # the search's metric, last reported
    step: int = 0  # last reported
    seconds: float = 0.0  # of training
    reason: str = ""  # of a status that is not finished
    run_folder: str | None = None
    curve: tuple[tuple[int, float], ...] = ()  # (step, metric)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether it has a value to be ranked by."""
        return math.isfinite(self.value)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.status != UNFINISHED


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    name: str
    folder: str
    metric: str
    mode: str
    trials: tuple[TrialResult, ...]
    report: str | None = None  # the HTML page
    command: str | None = None  # pretrains the winner
    tracking_run_id: str | None = None
    left: int = 0  # planned trials that were not drawn when the search was stopped

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the search is left to do."""
        return not self.left and all(trial.has_ended for trial in self.trials)

    @property
    def best(self) -> TrialResult | None:
        """The trial with the best value; none where none was measured."""
        return best_trial(self.trials, self.mode)

    def count(self, status: str) -> int:
        """Trials that ended so."""
        return sum(trial.status == status for trial in self.trials)

    def summary(self) -> str:
        """One line."""
        parts = [f"{self.count(status)} {status.replace('_', ' ')}" for status in STATUSES if self.count(status)]
        left = [f"{self.left} not begun"] if self.left else []
        return f"{len(self.trials)} candidates: {', '.join([*parts, *left])}"


def comparable(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """The measured trials that trained to the end; all measured ones where none did."""
    measured = [trial for trial in trials if trial.is_measured]
    return [trial for trial in measured if trial.status == FINISHED] or measured


def best_trial(trials: Sequence[TrialResult], mode: str) -> TrialResult | None:
    """The best of the comparable trials."""
    complete = comparable(trials)
    if not complete:
        return None
    return (min if mode == "min" else max)(complete, key=lambda trial: trial.value)


def pareto_front(trials: Sequence[TrialResult], mode: str) -> list[TrialResult]:
    """Comparable trials that no other beats in both cost (training FLOPs) and metric, cheapest first."""
    sign = 1 if mode == "min" else -1
    priced = [trial for trial in comparable(trials) if trial.candidate.costs is not None]
    front: list[TrialResult] = []
    for trial in sorted(priced, key=lambda found: (cost_of(found), sign * found.value)):
        if not front or sign * trial.value < sign * front[-1].value:
            front.append(trial)
    return front


def cost_of(trial: TrialResult) -> float:
    """Training FLOPs a sample."""
    assert trial.candidate.costs is not None
    return float(trial.candidate.costs.training_flops)


def table_rows(trials: Sequence[TrialResult]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table of all candidates, for CSV and HTML."""
    keys = sorted({key for trial in trials for key in trial.candidate.settings})
    columns = [
        "trial",
        "status",
        "value",
        "step",
        "seconds",
        "parameters",
        "training_flops",
        "memory_bytes",
        *keys,
        "reason",
    ]
    rows = []
    for trial in trials:
        costs = trial.candidate.costs
        rows.append(
            {
                "trial": trial.candidate.name,
                "status": trial.status,
                "value": trial.value if trial.is_measured else "",
                "step": trial.step,
                "seconds": round(trial.seconds, 3),
                "parameters": costs.parameters if costs else "",
                "training_flops": costs.training_flops if costs else "",
                "memory_bytes": costs.memory_bytes if costs else "",
                **{key: trial.candidate.settings.get(key, "") for key in keys},
                "reason": trial.reason,
            }
        )
    return columns, rows
