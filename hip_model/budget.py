"""Candidates of equal cost: scale a geometry until it costs what every other candidate costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hip_model.config import HiPConfig
from hip_model.errors import ConfigError
from hip_model.geometry import GeometryDials

# Widths from a hundredth to 64 times the dials' own; beyond that no level keeps a sensible shape.
SMALLEST_SCALE, LARGEST_SCALE = 0.01, 64.0
_BISECTIONS = 24
_CORE_LAYER_CHANGES = (0, 1, -1, 2, -2, 3, -3, 4, -4)


class BudgetError(ConfigError):
    """No scaling of the dials costs the target. ``nearest`` is the closest that was found."""

    def __init__(self, message: str, nearest: SolvedGeometry) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True)
class SolvedGeometry:
    """Dials scaled to a cost, with the geometry they build."""

    dials: GeometryDials
    config: HiPConfig
    cost: float

    def error(self, target: float) -> float:
        """Distance from the target as a share of it."""
        return abs(self.cost / target - 1.0)


def solve_budget(
    dials: GeometryDials,
    target: float,
    cost: Callable[[HiPConfig], float],
    tolerance: float = 0.03,
    unit: str = "",
) -> SolvedGeometry:
    """Scale the channels of ``dials``, then its core layers, until ``cost`` is within ``tolerance`` of ``target``.

    ``cost`` must grow with the widths: parameters, FLOPs or a measured time. It is called at most some 200 times, and
    only as often as needed, so that a measured cost stays affordable.

    Raises:
        ConfigError: a target or tolerance that is not positive.
        BudgetError: nothing within ``tolerance`` exists; the message names the nearest cost that can be had.
    """
    if target <= 0 or tolerance <= 0:
        raise ConfigError(f"a budget and its tolerance are positive, got {target} and {tolerance}")
    best: SolvedGeometry | None = None
    for core_layers in _core_layer_counts(dials):
        solved = _scale_width(dials.changed(core_layers=core_layers), target, cost, tolerance / 3)
        if best is None or solved.error(target) < best.error(target):
            best = solved
        if best.error(target) <= tolerance:
            return best
    assert best is not None  # the first change is 0, so there was at least one
    raise BudgetError(
        f"no geometry of these dials costs {target:,.6g} {unit}".rstrip()
        + f" within {tolerance:.1%}; the nearest costs {best.cost:,.6g} "
        f"(width_scale={best.dials.width_scale:.4g}, core_layers={best.dials.core_layers})",
        best,
    )


def _core_layer_counts(dials: GeometryDials) -> Iterator[int]:
    for change in _CORE_LAYER_CHANGES:
        layers = dials.core_layers + change
        if layers >= min(1, dials.core_layers):
            yield layers


def _scale_width(
    dials: GeometryDials, target: float, cost: Callable[[HiPConfig], float], close_enough: float
) -> SolvedGeometry:
    """Bisect the logarithm of the width; the nearest of everything tried."""

    def at(scale: float) -> SolvedGeometry:
        scaled = dials.changed(width_scale=scale)
        config = scaled.build()
        return SolvedGeometry(scaled, config, cost(config))

    best = at(min(max(dials.width_scale, SMALLEST_SCALE), LARGEST_SCALE))
    low, high = math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE)
    middle = math.log(best.dials.width_scale)
    solved = best
    for _ in range(_BISECTIONS):
        if best.error(target) <= close_enough:
            break
        low, high = (middle, high) if solved.cost < target else (low, middle)
        middle = (low + high) / 2
        solved = at(math.exp(middle))
        if solved.error(target) < best.error(target):
            best = solved
    return best
