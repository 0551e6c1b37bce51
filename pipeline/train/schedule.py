"""Learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from pipeline.train.options import ScheduleOptions


def learning_rate_scale(options: ScheduleOptions, step: int, total_steps: int) -> float:
    """The factor on the peak learning rate for the update from ``step`` to ``step + 1``.

    Warm-up rises linearly and never starts at zero. ``warmup_cosine``: Loshchilov & Hutter 2017 after the warm-up;
    ``constant_cosine``: flat until ``constant_share``, then cosine (Perceiver IO, appendix H); ``step``: dropped at
    milestones (Perceiver, section 4); ``constant``: flat.
    """
    warmup_steps = round(options.warmup_share * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if options.kind == "constant":
        return 1.0
    if options.kind == "step":
        passed = sum(step >= share * total_steps for share in options.milestone_shares)
        return float(options.milestone_factor**passed)
    start = warmup_steps
    if options.kind == "constant_cosine":
        start = max(start, round(options.constant_share * total_steps))
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, total_steps - start))
    return options.final_scale + (1 - options.final_scale) * 0.5 * (1 + math.cos(math.pi * progress))
