"""What one optimizer step leaves behind, and how workers put their parts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as distributed
from torch import Tensor

from pipeline.train.decibels import decibels_of, errors_of
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
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    sums: Tensor | None = (
        None  # [modalities, 3]: loss and error behind PSNR, each times its scored tokens, and their number
    )

    def add(
        self, loss: Tensor, per_modality_loss: dict[str, Tensor], psnr: dict[str, Tensor], scored: dict[str, Tensor]
    ) -> None:
        """Count one micro-batch in. ``loss`` is weighted already, the others are means of ``scored[name]`` tokens."""
        self.loss = self.loss.to(loss.device) + loss.detach()
        values = [value.detach() for name in self.modalities for value in (per_modality_loss[name], psnr[name])]
        means = torch.stack(values).float().reshape(-1, 2)
        means[:, 1] = errors_of(means[:, 1])
        counts = torch.stack([scored[name] for name in self.modalities]).float()[:, None]
        # A modality of which this micro-batch scores nothing gives no number; 0 * nan would spoil the sum.
        part = torch.cat([torch.where(counts > 0, means * counts, 0.0), counts], dim=1)
        self.sums = part if self.sums is None else self.sums + part

    def vector(self) -> Tensor:
        """All that is summed over workers, one flat float64 tensor on the device."""
        norm = torch.as_tensor(self.result.gradient_norm, dtype=torch.float64, device=self.loss.device)
        sums = torch.zeros(len(self.modalities), 3, device=self.loss.device) if self.sums is None else self.sums
        return torch.cat([norm.reshape(1), self.loss.reshape(1), sums.flatten()])


def gather(records: Sequence[StepRecord], workers: int, stop_code: int) -> list[StepFacts]:
    """Sum the records of all workers and read them on the host: the only synchronisation of the loop."""
    known = [float(stop_code == END), float(stop_code == INTERRUPT)]
    sums = torch.stack([record.vector() for record in records])
    times = torch.tensor([[record.wait_seconds, record.seconds, *known] for record in records], dtype=torch.float64)
    message = torch.cat([times.to(sums.device), sums], dim=1)
    if workers > 1:
        distributed.all_reduce(message)
    return [_facts(record, numbers, workers) for record, numbers in zip(records, message.tolist(), strict=True)]


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
