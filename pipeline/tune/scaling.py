"""Scaling study: a power law in size and tokens through finished trials, with its uncertainty, and what it predicts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.figures import Picture, canvas, png
from pipeline.tune.results import FINISHED, TrialResult

# Fewer points than this fit anything.
FEWEST_POINTS = 6
_RESAMPLES = 200
# Smallest and largest power that a fit may choose.
_POWERS = (0.01, 2.0)


@dataclass(frozen=True)
class Point:
    """One trained model: its parameters, the tokens it saw, and its loss at the end."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class PowerLaw:
    """``loss = floor + size_factor * parameters^-size_power + token_factor * tokens^-token_power``.

    ``resamples`` ``[n, 5]`` are fits to bootstrapped points, for intervals.
    """

    coefficients: np.ndarray
    resamples: np.ndarray
    root_mean_square_error: float

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss expected at a size and length, with the ends of a 90 % interval."""
        spread = [_law(np.array([[parameters], [tokens]]), *fit)[0] for fit in self.resamples]
        low, high = np.quantile(spread, [0.05, 0.95])
        return float(_law(np.array([[parameters], [tokens]]), *self.coefficients)[0]), float(low), float(high)

    def interval(self, index: int) -> tuple[float, float]:
        """The 90 % interval of one coefficient."""
        low, high = np.quantile(self.resamples[:, index], [0.05, 0.95])
        return float(low), float(high)

    def sentence(self) -> str:
        """The law in words."""
        floor, _, size_power, _, token_power = self.coefficients
        sizes, lengths = self.interval(2), self.interval(4)
        return (
            f"Power law: loss = {floor:.3g} + A * parameters^-{size_power:.2f} "
            f"(90 %: {sizes[0]:.2f} to {sizes[1]:.2f}) "
            f"+ B * tokens^-{token_power:.2f} ({lengths[0]:.2f} to {lengths[1]:.2f}); "
            f"root mean square error {self.root_mean_square_error:.3g}.{self._warning()}"
        )

    def _warning(self) -> str:
        """A power at the end of what the fit may choose was not found in the points."""
        low, high = _POWERS
        names = {2: "parameters", 4: "tokens"}
        lost = [name for index, name in names.items() if not 1.01 * low < self.coefficients[index] < 0.99 * high]
        if not lost:
            return ""
        return f" The points do not determine the power of {' and '.join(lost)}: it is at the end of its allowed range."


def points_of(trials: Sequence[TrialResult], tokens_per_step: float) -> list[Point]:
    """The finished trials as points of a scaling law; ``tokens_per_step`` counts the whole global batch."""
    return [
        Point(float(trial.candidate.costs.parameters), trial.step * tokens_per_step, trial.value)
        for trial in trials
        if trial.status == FINISHED and trial.is_measured and trial.candidate.costs is not None
    ]


def fit_power_law(points: Sequence[Point], seed: int) -> PowerLaw | None:
    """Least squares in the relative error; none when sizes or lengths are too few to tell the terms apart."""
    sizes, lengths = {point.parameters for point in points}, {point.tokens for point in points}
    if len(points) < FEWEST_POINTS or len(sizes) < 2 or len(lengths) < 2:
        return None
    best = _fit(points)
    if best is None:
        return None
    predicted = _law(_inputs(points), *best)
    error = float(np.sqrt(np.mean((predicted - [point.loss for point in points]) ** 2)))
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        chosen = [points[index] for index in draw.integers(0, len(points), len(points))]
        resampled = _fit(chosen, start=best)
        if resampled is not None:
            found.append(resampled)
    return PowerLaw(best, np.array(found or [best]), error)


def scaling_picture(points: Sequence[Point], law: PowerLaw, metric: str) -> Picture:
    """Loss against parameters, one line per number of tokens, with the fitted law."""
    figure = canvas(6.4, 4.2)
    axes = figure.subplots()
    sizes = np.geomspace(min(p.parameters for p in points) / 1.5, max(p.parameters for p in points) * 4, 60)
    for tokens in sorted({point.tokens for point in points}):
        chosen = [point for point in points if point.tokens == tokens]
        [line] = axes.plot(sizes, _law(np.stack([sizes, np.full(60, tokens)]), *law.coefficients), lw=1)
        across, up = [point.parameters for point in chosen], [point.loss for point in chosen]
        axes.scatter(across, up, s=24, color=line.get_color(), label=f"{tokens:.2g} tokens")
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=8)
    return Picture("scaling", "Scaling law", png(figure), law.sentence())


def _inputs(points: Sequence[Point]) -> np.ndarray:
    return np.array([[point.parameters for point in points], [point.tokens for point in points]])


def _law(inputs: np.ndarray, floor: float, a: float, size_power: float, b: float, token_power: float) -> np.ndarray:
    # Scaled to a million, so that all coefficients are of order one.
    sizes, tokens = inputs[0] / 1e6, inputs[1] / 1e6
    result: np.ndarray = floor + a * sizes**-size_power + b * tokens**-token_power
    return result


def _fit(points: Sequence[Point], start: np.ndarray | None = None) -> np.ndarray | None:
    from scipy.optimize import OptimizeWarning, curve_fit

    losses = np.array([point.loss for point in points])
    guesses = [start] if start is not None else [
        np.array([0.5 * losses.min(), 0.2 * losses.min(), size_power, 0.2 * losses.min(), token_power])
        for size_power in (0.1, 0.4) for token_power in (0.1, 0.4)
    ]  # fmt: skip
    low, high = _POWERS
    bounds = ([0, 0, low, 0, low], [losses.max(), np.inf, high, np.inf, high])
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # the bootstrap tells the uncertainty, not the covariance
        for guess in guesses:
            try:
                found, _ = curve_fit(_law, _inputs(points), losses, guess, sigma=losses, bounds=bounds, maxfev=4000)
            except (RuntimeError, ValueError):
                continue
            fits.append((float(np.sum(((_law(_inputs(points), *found) - losses) / losses) ** 2)), found))
    return min(fits, key=lambda entry: entry[0])[1] if fits else None
