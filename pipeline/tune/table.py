"""The outcome of a search as text: one line a trial, best first."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tune.results import FINISHED, REJECTED, SearchResult, TrialResult

_HEAD = ("trial", "status", "", "step", "seconds", "M params", "GFLOP", "settings")


def trial_table(result: SearchResult) -> str:
    """Trials that were started, those that trained to the end before the rest, the best first; costs are a sample's."""
    sign = 1 if result.mode == "min" else -1
    started = [trial for trial in result.trials if trial.status != REJECTED]
    ordered = sorted(started, key=lambda trial: (trial.status != FINISHED, not trial.is_measured, sign * trial.value))
    rows = [(*_HEAD[:2], result.metric, *_HEAD[3:]), *[_row(trial) for trial in ordered]]
    return "\n".join(_aligned(rows))


def _row(trial: TrialResult) -> tuple[str, ...]:
    costs = trial.candidate.costs
    return (
        trial.candidate.name,
        trial.status.replace("_", " "),
        f"{trial.value:.5g}" if trial.is_measured else "-",
        str(trial.step),
        f"{trial.seconds:.1f}",
        f"{costs.parameters / 1e6:.3f}" if costs else "-",
        f"{costs.training_flops / 1e9:.4g}" if costs else "-",
        trial.candidate.label or trial.candidate.model_name,
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    numbers = range(2, len(rows[0]) - 1)
    return [
        "  ".join(
            [text.rjust(width) if place in numbers else text.ljust(width) for place, (text, width) in cells] + [row[-1]]
        )
        for row in rows
        for cells in [list(enumerate(zip(row, widths, strict=False)))]
    ]
