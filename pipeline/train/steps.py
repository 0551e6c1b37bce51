"""What one optimizer step leaves behind, and how workers put their parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as distributed
from torch import Tensor

from pipeline.train.decibels import decibels_of, error_of
from pipeline.train.engine import StepResult

END, INTERRUPT = 1, 2


@dataclass(frozen=True)
class StepFacts:
    """One step over the whole global batch, as plain numbers."""

    step: int
    examples_consumed: int
    loss: float
    per_modality_loss: dict[str, float]
    psnr: dict[str, float]
    gradient_norm: float
    applied: bool
    learning_rate: float
    seconds: float
    wait_seconds: float  # mean over workers, as seconds is
    stop_code: int  # what any worker knows: END, INTERRUPT, or 0


@dataclass
class StepRecord:
    """This worker's part of one step; tensors stay on the device until ``gather``."""

    step: int
    examples_consumed: int
    learning_rate: float
    example_ids: Tensor
    global_batch_size: int
    modalities: tuple[str, ...]
    wait_seconds: float
    seconds: float = 0.0
    result: StepResult = field(default_factory=lambda: StepResult(False, 0.0))
    parts: list[Tensor] = field(default_factory=list)
    """Of each micro-batch, float64: the loss, then loss, decibels and number of scored tokens of each modality."""

    def add(
        self, loss: Tensor, per_modality_loss: dict[str, Tensor], psnr: dict[str, Tensor], scored: dict[str, Tensor]
    ) -> None:
        """Count one micro-batch in. ``loss`` is weighted already, the others are means of ``scored[name]`` tokens."""
        values = [loss, *(of[name] for name in self.modalities for of in (per_modality_loss, psnr, scored))]
        self.parts.append(torch.stack([value.detach().double() for value in values]))

    def vector(self) -> Tensor:
        """All that the host reads, flat float64 on the device: the gradient norm, then the parts."""
        norm = torch.as_tensor(self.result.gradient_norm, dtype=torch.float64, device=self.parts[0].device)
        return torch.cat([norm.reshape(1), *self.parts])


def gather(records: Sequence[StepRecord], workers: int, stop_code: int) -> list[StepFacts]:
    """Read the records on the host, the only synchronisation of the loop, and sum those of all workers."""
    known = [float(stop_code == END), float(stop_code == INTERRUPT)]
    read = torch.stack([record.vector() for record in records]).tolist()
    rows = [
        [record.wait_seconds, record.seconds, *known, *_sums(numbers, len(record.modalities))]
        for record, numbers in zip(records, read, strict=True)
    ]
    if workers > 1:
        message = torch.tensor(rows, dtype=torch.float64, device=records[0].parts[0].device)
        distributed.all_reduce(message)
        rows = message.tolist()
    return [_facts(record, numbers, workers) for record, numbers in zip(records, rows, strict=True)]


def _sums(numbers: list[float], modalities: int) -> list[float]:
    """Norm and loss; then of each modality loss and error, each times its scored tokens, and their number."""
    norm, *values = numbers
    sums = [norm, 0.0, *[0.0] * (3 * modalities)]
    for start in range(0, len(values), 1 + 3 * modalities):
        sums[1] += values[start]
        for index in range(modalities):
            loss, decibels, count = values[start + 1 + 3 * index : start + 4 + 3 * index]
            if count:  # a modality of which a micro-batch scores nothing gives no number; 0 * nan would spoil the sum
                place = 2 + 3 * index
                sums[place] += loss * count
                sums[place + 1] += error_of(decibels) * count
                sums[place + 2] += count
    return sums


def _facts(record: StepRecord, numbers: list[float], workers: int) -> StepFacts:
    wait, seconds, end, interrupt, norm, *sums = numbers
    losses, psnr = {}, {}
    for index, name in enumerate(record.modalities):
        loss, error, count = sums[1 + 3 * index : 4 + 3 * index]
        if count:
            losses[name], psnr[name] = loss / count, decibels_of(error / count)
    return StepFacts(
        step=record.step,
        examples_consumed=record.examples_consumed,
        loss=sums[0],
        per_modality_loss=losses,
        psnr=psnr,
        gradient_norm=norm / workers,  # all workers know the same
        applied=record.result.applied,
        learning_rate=record.learning_rate,
        seconds=seconds / workers,
        wait_seconds=wait / workers,
        stop_code=INTERRUPT if interrupt else END if end else 0,
    )
