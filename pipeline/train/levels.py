"""Norms by level of the model: where activations or gradients grow or die."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import Tensor

from pipeline.train.engine import ParameterState

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def level_of(name: str) -> str:
    """The part of the model that a parameter belongs to: ``block_03``, or the module at the top (``positions``)."""
    found = _BLOCK.search(name)
    return f"block_{int(found[1]):02d}" if found else name.removeprefix("model.").split(".")[0]


def latent_norms(latents: Sequence[Tensor]) -> dict[str, float]:
    """Root mean square of each block's output."""
    return {
        f"latents/block_{index:02d}": float(value.float().square().mean().sqrt()) for index, value in enumerate(latents)
    }


def gradient_norms(states: Iterable[tuple[str, ParameterState]], beta2: float, steps: int) -> dict[str, float]:
    """Gradient norm of each level, as Adam remembers it: the root of its bias-corrected mean of squared gradients.

    That is a running mean over about ``1 / (1 - beta2)`` steps, after clipping, and there is one for every engine and
    ZeRO stage, where the gradients themselves are in pieces and gone after a step.
    """
    sums: dict[str, float] = defaultdict(float)
    for name, state in states:
        sums[level_of(name)] += float(state.moments["exp_avg_sq"].double().sum())
    correction = 1 - beta2 ** max(1, steps)
    return {f"gradients/{level}": math.sqrt(total / correction) for level, total in sorted(sums.items())}
