"""Draws the figures of a few fixed held-out examples at intervals, on rank 0."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hip_model.masking import mask_seeds
from pipeline.shards.reader import ShardReader
from pipeline.train.figures import has_places, position_maps, reconstruction_figure
from pipeline.train.hooks import Hook
from pipeline.train.levels import gradient_norms, latent_norms

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)

_CANDIDATES = 16  # rows looked at for each that is shown
_PEAKS = {"uint8": 255.0}


class Figures(Hook):
    """Reconstructions and position tables as PNG files of the tracked run; norms of latents and gradients by level."""

    name = "figures"

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self._rows: np.ndarray | None = None

    def on_step(self, trainer: Trainer) -> None:
        """Draw at the interval."""
        every, step = trainer.options.figures.every_steps, trainer.state.step
        if every and step % every == 0 and step < trainer.total_steps:
            self.draw(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Draw the result."""
        self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        """Never the end of a run: a picture that cannot be drawn is a warning."""
        module = trainer.engine.whole_module()
        beta2, steps = trainer.options.optim.betas[1], trainer.engine.optimizer_steps()
        trainer.tracker.log_metrics(gradient_norms(trainer.engine.named_state(), beta2, steps), trainer.state.step)
        if trainer.rank == 0:
            try:
                self._draw(trainer, module)
            except (ValueError, RuntimeError, OSError, ImportError) as error:
                logger.warning("figures of step %d: %s", trainer.state.step, error)
        trainer.beat()

    def _shown(self, count: int) -> np.ndarray:
        """Rows from all over the split, the same each time."""
        if self._rows is None:
            spread = np.unique(np.linspace(0, len(self.reader) - 1, _CANDIDATES * count).astype(np.int64))
            self._rows = spread[choose_rows(self.reader.read(spread).present, count)]
        return self._rows

    def _draw(self, trainer: Trainer, module: Any) -> None:
        device = trainer.engine.device
        batch = self.reader.read(self._shown(trainer.options.figures.examples))
        inputs = {name: torch.from_numpy(value).to(device) for name, value in batch.arrays.items()}
        present = {name: torch.from_numpy(value).to(device) for name, value in batch.present.items()}
        ids = torch.from_numpy(batch.example_ids)
        seeds = mask_seeds(trainer.options.seed, torch.zeros_like(ids), ids).to(device)
        was_training = module.training
        module.eval()
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=trainer.options.engine.precision == "bf16"),
        ):
            shown = module.reconstruct(inputs, seeds, present)
            latents = module.model.encode(
                {name: module.normalisation[name].normalise(value) for name, value in inputs.items()}
            )
        module.train(was_training)
        pictures: dict[str, Any] = {}
        for modality in module.model.modalities:
            name = modality.name
            peak = _PEAKS.get(str(batch.arrays[name].dtype)) or float(np.abs(batch.arrays[name]).max()) or 1.0
            here = batch.present[name]
            raw, seen, said = (_host(part[name])[here] for part in (shown.raw, shown.visible, shown.reconstruction))
            picture = reconstruction_figure(modality, raw, seen, said, peak) if here.any() else None
            if picture is not None:
                pictures[f"reconstruction_{name}"] = picture
            if has_places(modality):
                pictures[f"positions_{name}"] = position_maps(modality, _host(module.model.position_code(name)))
        trainer.tracker.log_metrics(latent_norms(latents), trainer.state.step)
        with tempfile.TemporaryDirectory() as folder:
            for name, figure in pictures.items():
                path = Path(folder) / f"{name}_step_{trainer.state.step:08d}.png"
                figure.savefig(path, dpi=110)
                trainer.tracker.log_artifact(path, "figures")


def choose_rows(present: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Of rows that may lack modalities, enough to show ``count`` of each; those that have most come first."""
    having = np.argsort(-sum(flags.astype(np.int64) for flags in present.values()), kind="stable")
    chosen = {int(row) for flags in present.values() for row in spaced(having[flags[having]], count)}
    return np.array(sorted(chosen), dtype=np.int64)


def spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """``count`` of ``rows``, evenly from first to last; all if there are fewer."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _host(values: torch.Tensor) -> np.ndarray:
    moved = values.detach().cpu()
    return np.asarray(moved if moved.dtype == torch.bool else moved.float())
