"""What the loop calls between steps. A hook is one concern in one small file, with a memory that checkpoints carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.train.steps import StepFacts

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer


class Hook:
    """Called by all workers at the same steps. ``name`` is its key in checkpoints."""

    name = "hook"

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process, after a checkpoint was loaded."""

    def on_facts(self, trainer: Trainer, facts: Sequence[StepFacts]) -> None:
        """New steps are known on the host: each step on CPU, each metric interval on GPUs."""

    def on_step(self, trainer: Trainer) -> None:
        """After every step and its facts, if they were gathered."""

    def on_roll_back(self, trainer: Trainer, checkpoint: str) -> None:
        """Weights went back to those of ``checkpoint``."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step."""

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back ``state``."""
