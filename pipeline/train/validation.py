"""Reconstruction of held-out examples while training: the same examples under the same masks each time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed

from hip_model.masking import mask_seeds
from pipeline.ingest.order import rank_slice
from pipeline.ingest.spread import spread
from pipeline.shards.reader import Batch, ShardReader
from pipeline.train.build import mask_config
from pipeline.train.decibels import decibels_of, error_of
from pipeline.train.hooks import Hook
from pipeline.train.options import MaskOptions

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)


class Validation(Hook):
    """Each worker takes its share of ``validation.examples`` held-out ones; the number of workers changes no result."""

    name = "validation"

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.latest: dict[str, float] = {}

    def on_step(self, trainer: Trainer) -> None:
        """Validate at the interval."""
        every, step = trainer.options.validation.every_steps, trainer.state.step
        if every and step % every == 0 and step < trainer.total_steps:
            self.run(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Validate the result."""
        self.run(trainer)

    def run(self, trainer: Trainer) -> None:
        """Sum over examples and workers, then over modalities as the training loss does; the pause is a metric too."""
        began = time.perf_counter()
        rows = spread(trainer.options.validation.examples, len(self.reader))
        start, mine = rank_slice(0, len(rows), trainer.rank, trainer.workers)
        size = max(1, -(-trainer.options.batch.global_size // trainer.workers // trainer.accumulation_steps))
        sums = torch.zeros(len(trainer.modalities), 3, dtype=torch.float64, device=trainer.engine.device)
        module = trainer.engine.whole_module()
        module.eval()
        with torch.no_grad(), _masked_by(module, trainer.options.validation.mask):
            for first in range(start, start + mine, size):
                sums += self._batch(trainer, module, self.reader.read(rows[first : min(first + size, start + mine)]))
        module.train()
        trainer.beat()
        if trainer.workers > 1:
            distributed.all_reduce(sums)
        self.latest = summarise(trainer.modalities, sums.tolist(), trainer.options.loss.weights)
        pause = time.perf_counter() - began
        if trainer.rank == 0:
            trainer.tracker.log_metrics({**self.latest, "validation/pause_seconds": pause}, trainer.state.step)
            logger.info(
                "step %d: validation loss %.4f on %d examples, in %.1f s",
                trainer.state.step,
                self.latest["validation/loss"],
                len(rows),
                pause,
            )

    def _batch(self, trainer: Trainer, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Per modality: loss and error behind PSNR, times scored tokens, and those tokens."""
        device = trainer.engine.device
        inputs = {name: torch.from_numpy(value).to(device) for name, value in batch.arrays.items()}
        whole = all(value.all() for value in batch.present.values())
        present = None if whole else {name: torch.from_numpy(value).to(device) for name, value in batch.present.items()}
        ids = torch.from_numpy(batch.example_ids)
        seeds = mask_seeds(trainer.options.seed, torch.zeros_like(ids), ids).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.options.engine.precision == "bf16"):
            output = module(inputs, seeds, present)
        rows = []
        for name in trainer.modalities:
            here = output.scored_tokens[name].double()
            pair = torch.stack([output.per_modality_loss[name].double(), error_of(output.psnr[name].double())])
            rows.append(torch.cat([torch.where(here > 0, pair * here, 0.0), here.reshape(1)]))
        return torch.stack(rows)


@contextmanager
def _masked_by(autoencoder: Any, mask: MaskOptions | None) -> Iterator[None]:
    """Validation's own mask, where it has one, for the time of the block."""
    before = autoencoder.mask
    autoencoder.mask = before if mask is None else mask_config(mask)
    try:
        yield
    finally:
        autoencoder.mask = before


def summarise(modalities: tuple[str, ...], sums: list[list[float]], weights: dict[str, float]) -> dict[str, float]:
    """Means per modality, and their weighted mean over the modalities that occur."""
    values, total, norm = {}, 0.0, 0.0
    for name, (loss, error, count) in zip(modalities, sums, strict=True):
        if count:
            values[f"validation/loss/{name}"] = loss / count
            values[f"validation/psnr_db/{name}"] = decibels_of(error / count)
            total += weights.get(name, 1.0) * loss / count
            norm += weights.get(name, 1.0)
    return {"validation/loss": total / norm if norm else math.nan, **values}
