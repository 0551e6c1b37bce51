"""Pictures of a search: loss against cost, importances, parallel coordinates, learning curves, scaling fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from pipeline.evaluate.figures import Picture, canvas, png
from pipeline.tune.importance import Importance, encode, varying_keys
from pipeline.tune.results import STOPPED, TrialResult, best_trial, cost_of, pareto_front

_INK, _ACCENT, _MUTED, _BEST = "#1f2933", "#2a6f97", "#9aa5b1", "#c8553d"
# Beyond this many lines or axes a picture is noise.
_MOST_CURVES, _MOST_AXES = 60, 10


def cost_picture(trials: Sequence[TrialResult], metric: str, mode: str) -> Picture:
    """Metric against training FLOPs a sample, with the Pareto front."""
    measured = [trial for trial in trials if trial.is_measured and trial.candidate.costs is not None]
    figure = canvas(6.4, 4.2)
    axes = figure.subplots()
    for status_is_stopped, marker, label in ((False, "o", "trained to the end"), (True, "x", "stopped early")):
        chosen = [trial for trial in measured if (trial.status == STOPPED) == status_is_stopped]
        if chosen:
            across = [cost_of(trial) / 1e9 for trial in chosen]
            up = [trial.value for trial in chosen]
            axes.scatter(across, up, marker=marker, color=_ACCENT, s=28, label=label)
    front = pareto_front(measured, mode)
    axes.step(
        [cost_of(trial) / 1e9 for trial in front], [trial.value for trial in front], where="post", color=_INK, lw=1,
        label="Pareto front",
    )  # fmt: skip
    best = best_trial(measured, mode)
    if best is not None:
        axes.scatter([cost_of(best) / 1e9], [best.value], color=_BEST, s=60, zorder=3, label=best.candidate.name)
    axes.set_xlabel("training GFLOP a sample")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=8)
    return Picture("cost", f"{metric} against cost", png(figure), "Stopped trials are shown where they were stopped.")


def importance_picture(found: Sequence[Importance]) -> Picture:
    """Bars with the deviation over shuffles."""
    figure = canvas(6.4, 0.9 + 0.3 * len(found))
    axes = figure.subplots()
    names = [entry.key.removeprefix("dials.") for entry in found]
    axes.barh(names, [entry.mean for entry in found], xerr=[entry.deviation for entry in found], color=_ACCENT)
    axes.invert_yaxis()
    axes.set_xlabel("loss of explained variance when shuffled")
    caption = (
        "Permutation importance in a random forest of the measured trials: a ranking, not an effect size. "
        "Trials that were stopped count with what they had reached."
    )
    return Picture("importance", "Importance of each dial", png(figure), caption)


def parallel_picture(trials: Sequence[TrialResult], metric: str, mode: str) -> Picture | None:
    """One line a trial through the keys that varied, coloured by the metric; none if nothing varied."""
    measured = [trial for trial in trials if trial.is_measured]
    keys = varying_keys(measured)[:_MOST_AXES]
    if len(measured) < 2 or not keys:
        return None
    columns = [encode([trial.candidate.settings.get(key) for trial in measured]) for key in keys]
    values = np.array([trial.value for trial in measured])
    spread = [_unit(column) for column in [*columns, values]]
    figure = canvas(1.6 + 1.3 * len(keys), 4.0)
    axes = figure.subplots()
    order = _unit(values if mode == "min" else -values)
    colours = matplotlib.colormaps["viridis"](0.88 * order)  # its yellow end cannot be seen on white
    for index in np.argsort(-order):
        axes.plot(range(len(spread)), [column[index] for column in spread], color=colours[index], lw=1.4, alpha=0.85)
    names = [key.removeprefix("dials.").split(".")[-1] for key in keys]
    axes.set_xticks(range(len(spread)), [*names, metric], rotation=30, ha="right", fontsize=8)
    shown: list[list[Any]] = [[trial.candidate.settings.get(key) for trial in measured] for key in keys]
    for place, settings in enumerate([*shown, [trial.value for trial in measured]]):
        labels = _ends(settings)
        axes.text(place, -0.04, labels[0], ha="center", va="top", fontsize=7, color=_INK)
        axes.text(place, 1.03, labels[1], ha="center", va="bottom", fontsize=7, color=_INK)
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    return Picture(
        "parallel", "Parallel coordinates", png(figure), "Dark lines are better. Numbers: ends of each axis."
    )


def curve_picture(trials: Sequence[TrialResult], metric: str, mode: str) -> Picture:
    """Metric over steps of every trial, the best in red."""
    figure = canvas(6.4, 4.0)
    axes = figure.subplots()
    best = best_trial(trials, mode)
    for trial in [*trials][:_MOST_CURVES]:
        if trial.curve:
            colour = _BEST if trial is best else _MUTED if trial.status == STOPPED else _ACCENT
            mark = "." if len(trial.curve) == 1 else None  # stopped at its first report
            across, up = zip(*trial.curve, strict=True)
            axes.plot(across, up, color=colour, marker=mark, lw=2 if trial is best else 1, alpha=0.9)
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    return Picture("curves", "Learning curves", png(figure), "Red: the best. Grey: stopped early.")


def _unit(values: np.ndarray) -> np.ndarray:
    width = float(values.max() - values.min())
    return (values - values.min()) / width if width > 0 else np.full(len(values), 0.5)


def _ends(values: Sequence[Any]) -> tuple[str, str]:
    is_numeric = all(isinstance(value, (int, float)) for value in values)
    ordered: list[Any] = sorted(values) if is_numeric else sorted(map(str, values))
    low, high = (f"{end:.3g}" if isinstance(end, float) else str(end)[:12] for end in (ordered[0], ordered[-1]))
    return low, high
