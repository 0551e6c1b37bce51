"""Finds steps that went wrong, and decides when to go back."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrainingDiverged
from pipeline.train.hooks import Hook
from pipeline.train.options import GuardOptions
from pipeline.train.steps import StepFacts

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)

_SMALLEST_WINDOW = 8
_KEPT_EVENTS = 200


class Guard(Hook):
    """Counts bad steps; after too many in a row returns to the last good checkpoint and goes on past their examples.

    A step is bad when its loss or gradient is not finite, when the engine skipped it, or when its loss lies more than
    ``spike_deviations`` median absolute deviations above the median of the last good ones.
    """

    name = "guards"

    def __init__(self, options: GuardOptions) -> None:
        self.options = options
        self.losses: deque[float] = deque(maxlen=options.spike_window)
        self.consecutive = 0
        self.rollbacks = 0
        self.counts = {"non_finite_loss": 0, "skipped_steps": 0, "loss_spikes": 0}
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)

    @property
    def is_healthy(self) -> bool:
        """Whether the last step was good, so that its weights may become a checkpoint."""
        return self.consecutive == 0

    def judge(self, facts: StepFacts) -> str | None:
        """What is wrong with a step: a key of ``counts``, or none."""
        if not math.isfinite(facts.loss):
            return "non_finite_loss"
        if not facts.applied or not math.isfinite(facts.gradient_norm):
            return "skipped_steps"
        return "loss_spikes" if facts.loss > self.spike_threshold() else None

    def spike_threshold(self) -> float:
        """The loss above which a step is a spike; infinite until enough good steps were seen."""
        if len(self.losses) < _SMALLEST_WINDOW:
            return math.inf
        median = statistics.median(self.losses)
        deviation = statistics.median(abs(loss - median) for loss in self.losses)
        return median + self.options.spike_deviations * max(deviation, 1e-3 * abs(median))

    def on_facts(self, trainer: Trainer, facts: Sequence[StepFacts]) -> None:
        """Judge each new step.

        Raises:
            TrainingDiverged: the roll-backs are used up.
        """
        for fact in facts:
            reason = self.judge(fact)
            if reason is None:
                self.consecutive = 0
                self.losses.append(fact.loss)
                continue
            self.consecutive += 1
            self.counts[reason] += 1
            ids = trainer.example_ids_of(fact.step)
            self.events.append({"step": fact.step, "reason": reason, "loss": str(fact.loss), "example_ids": ids})
            if trainer.rank == 0:
                logger.warning(
                    "step %d: %s (loss %.4g, gradient norm %.4g); examples %s",
                    fact.step, reason.replace("_", " "), fact.loss, fact.gradient_norm, ids[:16],
                )  # fmt: skip
            if self.consecutive >= self.options.consecutive_bad_steps:
                self._go_back(trainer, fact)
                return

    def _go_back(self, trainer: Trainer, fact: StepFacts) -> None:
        if self.rollbacks >= self.options.max_rollbacks:
            raise TrainingDiverged(self.diagnosis(fact))
        self.rollbacks += 1
        self.consecutive = 0
        self.losses.clear()
        self.events.append({"step": fact.step, "reason": "roll-back", "number": self.rollbacks})
        trainer.roll_back()

    def diagnosis(self, fact: StepFacts) -> str:
        """What a person needs to decide what to change."""
        recent = [event for event in self.events if event["reason"] != "roll-back"][
            -self.options.consecutive_bad_steps :
        ]
        steps = ", ".join(f"{event['step']} ({event['reason'].replace('_', ' ')})" for event in recent)
        return (
            f"training diverged at step {fact.step}: {self.options.consecutive_bad_steps} bad steps in a row, after "
            f"{self.rollbacks} roll-backs; last bad steps: {steps}; loss {fact.loss:.4g}, learning rate "
            f"{fact.learning_rate:.3g}. Lower optim.learning_rate (or optim.base_learning_rate), clip harder "
            "(engine.gradient_clip), use engine.precision=fp32, or look at the examples named in trainer_state.json "
            "(hooks.guards.events)"
        )

    def state(self) -> dict[str, Any]:
        """All counts and the events."""
        return {
            "losses": list(self.losses),
            "consecutive": self.consecutive,
            "rollbacks": self.rollbacks,
            "counts": dict(self.counts),
            "events": list(self.events),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back ``state``."""
        self.losses.extend(state["losses"])
        self.consecutive, self.rollbacks = state["consecutive"], state["rollbacks"]
        self.counts |= state["counts"]
        self.events.extend(state["events"])
