"""Training steps a second against picture size, the paper's table 7 beside ours (its hardware: TPUv3, batch 8)."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from hip_model.autoencoder import MaskedAutoencoder
from hip_model.masking import MaskConfig, mask_seeds
from hip_model.modality import Modality
from hip_model.normalisation import Normalisation
from hip_model.variants import build_model

# Steps a second at sides of 224, 384, 512, 1024 and 2048 pixels; None: out of memory there.
PAPER: dict[str, dict[int, float | None]] = {
    "hip_16": {224: 10.8, 384: 8.9, 512: 7.0, 1024: 2.9, 2048: None},
    "hip_256": {224: 8.9, 384: 8.1, 512: 7.7, 1024: 4.7, 2048: 0.9},
}


@dataclass(frozen=True)
class Throughput:
    """One model at one size."""

    model: str
    side: int
    batch: int
    steps_per_second: float | None  # median over the timed steps; None: out of memory
    slowest: float  # of the timed steps, in steps a second
    paper: float | None


def measure_throughput(
    models: tuple[str, ...], sides: tuple[int, ...], batch: int = 1, steps: int = 3, device: str = "cpu"
) -> list[Throughput]:
    """Forward and backward of the masked autoencoder on random pictures, one warm-up step, then ``steps`` timed."""
    return [_measure(model, side, batch, steps, device) for side in sides for model in models]


def _measure(name: str, side: int, batch: int, steps: int, device: str) -> Throughput:
    paper = PAPER.get(name, {}).get(side)
    try:
        seconds = _time_steps(name, side, batch, steps, device)
    except (torch.OutOfMemoryError, MemoryError):
        return Throughput(name, side, batch, None, 0.0, paper)
    finally:
        gc.collect()
    return Throughput(name, side, batch, 1 / float(np.median(seconds)), 1 / max(seconds), paper)


def _time_steps(name: str, side: int, batch: int, steps: int, device: str) -> list[float]:
    torch.manual_seed(0)
    model = build_model(name, [Modality("image", side * side, 3, (side, side))])
    statistics = Normalisation((120.0,) * 3, (60.0,) * 3, raw_dtype="uint8")
    autoencoder = MaskedAutoencoder(model, MaskConfig(ratio=0.85), normalisation={"image": statistics}).to(device)
    seconds = []
    for step in range(steps + 1):
        image = torch.randint(0, 256, (batch, side * side, 3), dtype=torch.uint8, device=device)
        ids = torch.arange(batch, device=device)
        began = time.perf_counter()
        loss = autoencoder({"image": image}, mask_seeds(step, torch.zeros_like(ids), ids)).loss
        loss.backward()
        autoencoder.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        if step > 0:
            seconds.append(time.perf_counter() - began)
    return seconds


def render_throughput(found: list[Throughput], device: str) -> str:
    """Markdown table."""
    lines = [
        "### Training steps a second against picture size",
        "",
        f"Masked autoencoder, forward and backward, ratio 0.85, on {device}; the paper's are on TPUv3 with batch 8, so "
        "compare how a column falls, not its height.",
        "",
        "| side | tokens | model | batch | ours, steps/s (slowest) | paper, steps/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in found:
        paper = "–" if entry.paper is None else f"{entry.paper:g}"
        ours = "out of memory"
        if entry.steps_per_second is not None:
            ours = f"{entry.steps_per_second:.3g} ({entry.slowest:.3g})"
        lines.append(f"| {entry.side} | {entry.side**2:,} | {entry.model} | {entry.batch} | {ours} | {paper} |")
    return "\n".join([*lines, ""])
