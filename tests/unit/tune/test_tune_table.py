"""The table of trials that a search ends with."""

from __future__ import annotations

import math

from pipeline.tune.candidates import Candidate, Costs
from pipeline.tune.results import FAILED, FINISHED, REJECTED, STOPPED, SearchResult, TrialResult
from pipeline.tune.table import trial_table


def trial(index: int, status: str, value: float = math.nan) -> TrialResult:
    candidate = Candidate(index, {}, {"dials.depth": index}, "hip_16", costs=Costs(1_500_000, 2 * 10**9, 1))
    return TrialResult(candidate, status, value, step=40, seconds=1.25)


def table(*trials: TrialResult, mode: str = "min") -> list[str]:
    return trial_table(SearchResult("groups", "runs/groups", "loss", mode, trials)).splitlines()


def test_complete_trials_come_first_the_best_on_top() -> None:
    trials = [trial(0, FINISHED, 0.5), trial(1, STOPPED, 0.1), trial(2, FINISHED, 0.25), trial(3, FAILED)]
    head, *rows = table(*trials, trial(4, REJECTED))
    assert head.split() == ["trial", "status", "loss", "step", "seconds", "M", "params", "GFLOP", "settings"]
    assert [row.split()[0] for row in rows] == ["trial_002", "trial_000", "trial_001", "trial_003"]
    assert rows[0].split() == ["trial_002", "finished", "0.25", "40", "1.2", "1.500", "2", "depth=2"]
    assert [row.split()[0] for row in table(*trials, mode="max")[1:3]] == ["trial_000", "trial_002"]


def test_columns_are_aligned() -> None:
    lines = table(trial(0, FINISHED, 0.123456), trial(1, STOPPED, 1234.5))
    assert len({line.rindex("depth") for line in lines[1:]}) == 1
