"""Keeps the moving average of the weights, on rank 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load

from pipeline.storage import join, read_bytes
from pipeline.train.checkpoint_files import AVERAGE
from pipeline.train.hooks import Hook
from pipeline.train.optim import WeightAverage

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer


class Average(Hook):
    """Moves the average after each applied step; checkpoints hold it as a model in their folder ``average``."""

    name = "average"

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: WeightAverage | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Start from the weights, or from the checkpoint's average."""
        if trainer.rank == 0:
            self.average = WeightAverage(dict(trainer.engine.module.named_parameters()), self.decay)
            if trainer.last_checkpoint is not None:
                self.on_roll_back(trainer, trainer.last_checkpoint)

    def on_roll_back(self, trainer: Trainer, checkpoint: str) -> None:
        """Take the average of a checkpoint."""
        if self.average is not None:
            saved = load(read_bytes(join(checkpoint, AVERAGE, "model.safetensors")))
            for name, value in self.average.weights.items():
                value.copy_(saved[name.removeprefix("model.")])

    def on_step(self, trainer: Trainer) -> None:
        """Follow the weights."""
        if self.average is not None and trainer.recent[-1].result.applied:
            self.average.update(dict(trainer.engine.module.named_parameters()))
