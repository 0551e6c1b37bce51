"""Is a candidate better than what is in use? A decision from two sets of evaluations on the same data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.evaluate.resampling import Estimate, difference_margin
from pipeline.registry.evaluations import higher_is_better
from pipeline.registry.options import GateOptions


@dataclass(frozen=True)
class Comparison:
    """One metric of both versions; ``gain`` is signed so that more is better, ``margin`` what chance could make."""

    metric: str
    candidate: Estimate
    champion: Estimate
    gain: float
    margin: float
    paired: bool  # the margin is that of the differences file by file

    @property
    def shown(self) -> str:
        """As it is written on the version."""
        how = " over the same files" if self.paired else ""
        return f"{self.candidate} against {self.champion}: gain {self.gain:.4g}, margin {self.margin:.4g}{how}"


@dataclass(frozen=True)
class Decision:
    """Whether to promote, why, and all figures."""

    promote: bool
    reason: str
    comparisons: list[Comparison]

    def to_dict(self) -> dict[str, Any]:
        """For JSON (a tag of the candidate's version)."""
        return {
            "promote": self.promote,
            "reason": self.reason,
            "metrics": {
                entry.metric: {
                    "candidate": entry.candidate.to_dict(),
                    "champion": entry.champion.to_dict(),
                    "gain": entry.gain,
                    "margin": entry.margin,
                    "paired": entry.paired,
                }
                for entry in self.comparisons
            },
        }


def decide(candidate: Mapping[str, Estimate], champion: Mapping[str, Estimate], gate: GateOptions) -> Decision:
    """Promote if the leading metric gains more than its margin and no other falls by more than the allowed share.

    The margin is half the interval of the difference: see :func:`pipeline.evaluate.resampling.difference_margin`.

    Raises:
        UserError: the metric asked for was not measured, or nothing was measured on both.
    """
    shared = [name for name in candidate if name in champion]
    if not shared:
        raise UserError("the two versions share no metric, so they cannot be compared; evaluate both on the same data")
    leading = gate.metric or shared[0]
    if leading not in shared:
        raise UserError(f"gate.metric={leading!r} was not measured on both versions; {nearest(leading, shared)}")
    comparisons = {name: _compare(name, candidate[name], champion[name]) for name in shared}
    worse = [entry for name, entry in comparisons.items() if name != leading and _too_much_worse(entry, gate)]
    lead = comparisons[leading]
    if worse:
        reason = "; ".join(f"{entry.metric} is worse by more than allowed ({entry.shown})" for entry in worse)
    elif gate.require_improvement and not lead.gain > lead.margin:
        reason = f"{leading} is not better by more than its interval ({lead.shown})"
    elif not gate.require_improvement and not lead.gain >= -lead.margin:
        reason = f"{leading} is worse by more than its interval ({lead.shown})"
    else:
        return Decision(True, f"{leading} holds the gate ({lead.shown})", list(comparisons.values()))
    return Decision(False, reason, list(comparisons.values()))


def _compare(name: str, candidate: Estimate, champion: Estimate) -> Comparison:
    sign = 1.0 if higher_is_better(name) else -1.0
    gain = sign * (candidate.value - champion.value)
    return Comparison(name, candidate, champion, gain, *difference_margin(candidate, champion))


def _too_much_worse(entry: Comparison, gate: GateOptions) -> bool:
    """A NaN on the candidate's side counts as worse."""
    if math.isnan(entry.champion.value):
        return False
    return not entry.gain >= -gate.maximum_modality_loss * abs(entry.champion.value)
