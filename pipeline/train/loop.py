"""The training loop: batches in, steps applied, facts out. Everything else is a hook."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as distributed

from hip_model.masking import mask_seeds
from pipeline.errors import InfrastructureError, Interrupted
from pipeline.ingest.loader import BatchLoader, LoadedBatch
from pipeline.seeding import derive_seed
from pipeline.tracking.client import Tracker
from pipeline.train.checkpoint import CheckpointWriter, NamedStates, read_state
from pipeline.train.engine import Engine
from pipeline.train.hooks import Hook
from pipeline.train.options import PretrainOptions
from pipeline.train.progress import Progress, Show
from pipeline.train.schedule import learning_rate_scale
from pipeline.train.state import TrainerState
from pipeline.train.steps import END, INTERRUPT, StepFacts, StepRecord, gather
from pipeline.train.weighting import count_scored, weighted_loss

logger = logging.getLogger(__name__)


class StopFlag(Protocol):
    """Anything that knows whether someone asked the run to stop."""

    def is_set(self) -> bool:
        """Whether to stop after this step."""


Vary = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]


@dataclass
class Trainer:
    """All parts of one worker's training, wired in ``worker.py``."""

    options: PretrainOptions
    engine: Engine
    open_loader: Callable[[int], BatchLoader]  # from a position in examples
    state: TrainerState
    total_steps: int
    modalities: tuple[str, ...]
    checkpoints: CheckpointWriter
    hooks: Sequence[Hook]
    tracker: Tracker  # writes on rank 0 only
    stop: StopFlag
    accumulation_steps: int = 1
    rank: int = 0
    workers: int = 1
    check_every_steps: int = 1
    beat: Callable[[], None] = lambda: None  # tells the watchdog that this worker lives
    show: Show = field(default_factory=lambda: Progress(on_terminal=False).show)  # tells a person of an interval
    vary: Vary = lambda inputs, epochs, example_ids: inputs  # augments raw tokens on the device
    may_skip_absent: bool = True  # what no example of a micro-batch has; workers then go through the model differently
    parts_are_equal: bool = True  # every example has as many scored tokens of each modality
    last_checkpoint: str | None = None
    pending: list[StepRecord] = field(default_factory=list)
    recent: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=256))
    save_is_due: bool = False  # a checkpoint is to be taken when all steps so far are known to be healthy
    ending: bool = False  # rank 0 was told to end the run early
    stop_code: int = 0

    def learning_rate(self) -> float:
        """The rate of the next step."""
        peak = self.options.optim.peak_learning_rate(self.options.batch.global_size)
        return peak * learning_rate_scale(self.options.schedule, self.state.step, self.total_steps)

    def save(self) -> None:
        """Write a checkpoint of this moment, and wait for it."""
        self.settle_save()
        self.begin_save()
        self.end_save()

    def begin_save(self) -> None:
        """Take a checkpoint of this moment; it is written while training goes on."""
        self.state.optimizer_steps = self.engine.optimizer_steps()
        self.state.engine = self.engine.extra_state()
        self.state.hooks = {hook.name: hook.state() for hook in self.hooks}
        self.checkpoints.begin(self.engine, self.state)

    def end_save(self) -> bool:
        """Wait for the checkpoint that is being written, if one is; whether there was one.

        Raises:
            InfrastructureError: it could not be written.
        """
        folder = self.checkpoints.wait()
        self.last_checkpoint = folder or self.last_checkpoint
        return folder is not None

    def settle_save(self) -> None:
        """The same where a failure is no reason to stop: the next save shows whether it lasts."""
        try:
            self.end_save()
        except InfrastructureError as error:
            logger.error("%s", error)

    def roll_back(self) -> None:
        """Put the last checkpoint's weights and moments back; step and position stay, so bad examples are passed."""
        self.settle_save()
        assert self.last_checkpoint is not None
        logger.warning("step %d: back to the weights of %s", self.state.step, self.last_checkpoint)
        earlier = read_state(self.last_checkpoint)
        self.engine.load_named_state(NamedStates(self.last_checkpoint), earlier.optimizer_steps)
        self.engine.load_extra_state(earlier.engine)
        for hook in self.hooks:
            hook.on_roll_back(self, self.last_checkpoint)
        self.save()

    def example_ids_of(self, step: int) -> list[int]:
        """The ids of a recent step's global batch; called by all workers together."""
        mine = [record.example_ids.tolist() for record in self.recent if record.step == step]
        if self.workers == 1:
            return [value for ids in mine for value in ids]
        everyone: list[list[list[int]]] = [[] for _ in range(self.workers)]
        distributed.all_gather_object(everyone, mine)
        return [value for worker in everyone for ids in worker for value in ids]

    def wanted_stop(self) -> int:
        """What this worker knows of a wish to stop."""
        return INTERRUPT if self.stop.is_set() else END if self.ending else 0


def train(trainer: Trainer) -> None:
    """Run to the last step.

    Raises:
        Interrupted: someone asked to stop; state is saved.
        TrainingDiverged: the guards gave up.
        InfrastructureError: checkpoints cannot be written.
    """
    for hook in trainer.hooks:
        hook.on_start(trainer)
    with trainer.open_loader(trainer.state.examples_consumed) as loader:
        while trainer.state.step < trainer.total_steps:
            record = train_step(trainer, loader)
            trainer.pending.append(record)
            trainer.recent.append(record)
            if is_check_step(trainer):
                facts = gather(trainer.pending, trainer.workers, trainer.wanted_stop())
                trainer.pending = []
                notify(trainer, facts)
            for hook in trainer.hooks:
                hook.on_step(trainer)
            if trainer.stop_code == END:
                break
            if trainer.stop_code == INTERRUPT:
                trainer.save()
                raise Interrupted(f"stopped at step {trainer.state.step} of {trainer.total_steps}, state saved")
    for hook in trainer.hooks:
        hook.on_end(trainer)


def train_step(trainer: Trainer, loader: BatchLoader) -> StepRecord:
    """One optimizer step over this worker's slice of the next global batch, in micro-batches."""
    batch = next(loader)
    began = time.perf_counter()
    options, state, engine = trainer.options, trainer.state, trainer.engine
    seed_generators(derive_seed(options.seed, "step", state.step, trainer.rank), engine.device)
    record = StepRecord(
        step=state.step + 1,
        examples_consumed=batch.examples_consumed,
        learning_rate=trainer.learning_rate(),
        example_ids=batch.example_ids,
        global_batch_size=options.batch.global_size,
        modalities=trainer.modalities,
        wait_seconds=batch.wait_seconds,
    )
    totals = None
    if not trainer.parts_are_equal and trainer.workers * trainer.accumulation_steps > 1:
        totals = count_scored(engine.module, batch, options.seed, trainer.workers, engine.device)
    for part, weight, last in micro_batches(batch, trainer.accumulation_steps, options.batch.global_size):
        inputs = {name: judgeable(value).to(engine.device, non_blocking=True) for name, value in part.inputs.items()}
        present = {
            name: value.to(engine.device, non_blocking=True) if value.any() or not trainer.may_skip_absent else None
            for name, value in part.present.items()
        }
        seeds = mask_seeds(options.seed, part.epochs, part.example_ids).to(engine.device, non_blocking=True)
        whole = all(bool(value.all()) for value in part.present.values())
        inputs = trainer.vary(inputs, part.epochs, part.example_ids)
        output = engine.forward(inputs=inputs, mask_seed=seeds, present=None if whole else present)
        scored = {name: output.scored_tokens[name] * (weight > 0) for name in trainer.modalities}
        loss = weighted_loss(output, weight, totals, options.loss.weights)
        loader.read_ahead()
        engine.backward(loss, last)
        record.add(loss, output.per_modality_loss, output.psnr, scored)
    record.result = engine.step(record.learning_rate)
    state.step += 1
    state.examples_consumed = batch.examples_consumed
    record.seconds = time.perf_counter() - began + batch.wait_seconds
    trainer.beat()
    return record


def seed_generators(seed: int, device: torch.device) -> None:
    """Start a step's dropout from a seed, so that there is no generator state to save.

    Not ``torch.manual_seed``: it also leaves its stack trace with every kind of device that never starts, which takes
    milliseconds.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def judgeable(values: torch.Tensor) -> torch.Tensor:
    """NaN as infinity: on CPU the model raises on NaN, but one bad example is for the guard, not the end of a run."""
    return values.nan_to_num(math.inf, math.inf, -math.inf) if values.is_floating_point() else values


def micro_batches(batch: LoadedBatch, parts: int, global_size: int) -> Iterator[tuple[LoadedBatch, float, bool]]:
    """Cut a slice into ``parts``; each with the weight that makes the losses of all workers sum to the global mean.

    Every worker yields the same number of parts, for collectives must match; one without examples repeats the first
    example with weight 0.
    """
    count = len(batch.example_ids)
    bounds = [round(index * count / parts) for index in range(parts + 1)]
    for index in range(parts):
        start, end = bounds[index], bounds[index + 1]
        rows = slice(start, end) if end > start else slice(0, 1)
        part = LoadedBatch(
            {name: value[rows] for name, value in batch.inputs.items()},
            {name: value[rows] for name, value in batch.present.items()},
            batch.example_ids[rows],
            batch.epochs[rows],
            batch.labels[rows],
            batch.sources[rows],
            batch.examples_consumed,
            batch.wait_seconds,
        )
        yield part, (end - start) / global_size, index == parts - 1


def is_check_step(trainer: Trainer) -> bool:
    """Whether pending steps must be looked at now: at intervals, before a checkpoint, and at the end."""
    step = trainer.state.step
    due = (trainer.check_every_steps, trainer.options.checkpoint.every_steps, trainer.options.metrics.every_steps)
    return step >= trainer.total_steps or any(step % every == 0 for every in due)


def notify(trainer: Trainer, facts: Sequence[StepFacts]) -> None:
    """Show the hooks what happened."""
    trainer.stop_code = facts[-1].stop_code
    for hook in trainer.hooks:
        hook.on_facts(trainer, facts)
