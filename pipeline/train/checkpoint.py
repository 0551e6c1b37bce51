"""Checkpoints by parameter name: one format for every engine, ZeRO stage and number of workers.

A checkpoint is a folder ``step_00000012`` with the portable model (``model.safetensors``, ``config.json``),
``trainer_state.json``, ``optimizer/part-*-of-*.safetensors`` (float32 weights and Adam moments, each worker its share
of the names) and, written last, ``complete.json`` with all sizes. A folder without a matching ``complete.json`` does
not count. Training goes on while files are written: a save copies the state to the host, a thread does the rest.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from pyarrow import fs
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.errors import HipError, InfrastructureError, UserError
from pipeline.scratch import ScratchFolder
from pipeline.storage import (
    download,
    explain_os_error,
    is_local,
    join,
    local_path,
    name_of,
    read_bytes,
    redact,
    resolve,
)
from pipeline.train.checkpoint_files import (
    CHECKPOINT_NAME,
    STATE,
    delete,
    files_of,
    is_complete,
    publish,
    staging_folder,
    sweep_up,
    upload,
)
from pipeline.train.engine import MOMENTS, Engine, ParameterState
from pipeline.train.options import CheckpointOptions
from pipeline.train.state import TrainerState

logger = logging.getLogger(__name__)

Weights = Mapping[str, torch.Tensor]
Export = Callable[[Weights, Weights | None, Path], None]


def checkpoint_name(step: int) -> str:
    """The folder name for a step."""
    return f"step_{step:08d}"


def list_checkpoints(run_folder: str) -> list[str]:
    """Complete checkpoints of a run, oldest first."""
    system, path = resolve(join(run_folder, "checkpoints"))
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in found if CHECKPOINT_NAME.match(info.base_name))
    folders = [join(run_folder, "checkpoints", name) for name in names]
    return [folder for folder in folders if is_complete(folder)]


def latest_checkpoint(run_folder: str) -> str | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = list_checkpoints(run_folder)
    return found[-1] if found else None


def read_state(folder: str) -> TrainerState:
    """The trainer state of a checkpoint."""
    return TrainerState.from_json(read_bytes(join(folder, STATE)))


class NamedStates(Mapping[str, ParameterState]):
    """A checkpoint's weights and moments, read from its part files one name at a time.

    A remote one is copied to this machine for as long as this object lives.
    """

    def __init__(self, folder: str) -> None:
        self._where: dict[str, Path] = {}
        remote = not is_local(folder)
        self._scratch = ScratchFolder("checkpoint") if remote else None  # deleted with this object
        here = local_path(folder) if self._scratch is None else self._scratch.path
        for name in sorted(name for name in files_of(folder) if name.startswith("optimizer/part-")):
            part = here / name
            if remote:
                download(join(folder, name), part)
            with safe_open(part, "pt") as opened:
                keys = list(opened.keys())
            self._where |= {key.removeprefix("weight/"): part for key in keys if key.startswith("weight/")}

    def __getitem__(self, name: str) -> ParameterState:
        with safe_open(self._where[name], "pt") as opened:
            moments = {key: opened.get_tensor(f"{key}/{name}") for key in MOMENTS}
            return ParameterState(opened.get_tensor(f"weight/{name}"), moments)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse to load into another model.

        Raises:
            UserError: names or shapes differ.
        """
        missing, extra = sorted(shapes.keys() - set(self)), sorted(set(self) - shapes.keys())
        if missing or extra:
            raise UserError(
                f"the checkpoint is of another model: it lacks {missing[:3] or 'nothing'} and has "
                f"{extra[:3] or 'nothing'} in excess; give the model it was made with, or another run.name"
            )
        for name, shape in shapes.items():
            if self[name].weight.shape != shape:
                raise UserError(
                    f"the checkpoint is of another model: {name} is {tuple(self[name].weight.shape)} there, "
                    f"{tuple(shape)} here; give the model it was made with, or another run.name"
                )


@dataclass(frozen=True)
class _Snapshot:
    """One worker's share of a moment, on the host: nothing in it changes while it is written."""

    target: str
    staging: Path | None  # shared by all workers; none where the run is elsewhere
    mine: Weights
    weights: Weights  # all of them on rank 0, for the portable model
    average: Weights | None
    state: bytes


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of one run; every method is called by all workers together."""

    run_folder: str
    options: CheckpointOptions
    export: Export  # writes the portable model from float32 weights by name, and their average
    average: Callable[[], Weights | None] = lambda: None
    rank: int = 0
    workers: int = 1
    whole: str | None = None  # the newest folder that is written, and how long it took
    seconds: float = 0.0
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _target: str = field(default="", init=False, repr=False)
    _began: float = field(default=0.0, init=False, repr=False)
    _trouble: str | None = field(default=None, init=False, repr=False)
    _group: Any = field(default=None, init=False, repr=False)  # of its own: the thread talks while training does

    def save(self, engine: Engine, state: TrainerState) -> str:
        """Write one checkpoint and return its folder; nothing is visible under that name before it is whole.

        Raises:
            InfrastructureError: it could not be written (a full disk); the earlier ones are untouched.
        """
        self.begin(engine, state)
        folder = self.wait()
        assert folder is not None, "a save was begun"
        return folder

    def begin(self, engine: Engine, state: TrainerState) -> None:
        """Copy the state to the host and write it in the background; the one before must have been waited for."""
        assert self._thread is None, "one checkpoint at a time"
        began = time.perf_counter()
        if self.workers > 1 and self._group is None:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(hours=2))
        token = same_everywhere(uuid.uuid4().hex[:8], self.workers) or ""
        average = self.average() if self.rank == 0 else None
        mine, weights = self._collect(engine)
        snapshot = _Snapshot(
            target=join(self.run_folder, "checkpoints", checkpoint_name(state.step)),
            staging=staging_folder(self.run_folder, token),
            mine=mine,
            weights=weights,
            average=None if average is None else {name: _to_host(value) for name, value in average.items()},
            state=state.to_json(),
        )
        self._began = began
        self._target, self._trouble = snapshot.target, "its writer died"
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """The folder of the checkpoint that was being written; none when there was none.

        Raises:
            InfrastructureError: it could not be written.
        """
        if self._thread is None:
            return None
        self.join()
        self._thread = None
        if self._trouble:
            raise InfrastructureError(f"checkpoint {name_of(self._target)} was not saved: {self._trouble}")
        return self._target

    def join(self, timeout_seconds: float | None = None) -> None:
        """Let the files settle; ``wait`` still tells how it went."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _write(self, snapshot: _Snapshot) -> None:
        """The thread: each worker its files, then rank 0 makes them visible once all are there."""
        trouble = self._write_share(snapshot)
        problems = [problem for problem in self._from_all(trouble) if problem]
        if self.rank == 0:
            trouble = problems[0] if problems else publish(snapshot.staging, snapshot.target, self.workers)
            if not trouble:
                self._prune_or_say_why_not()
        trouble = same_everywhere(trouble, self.workers, self._group)
        if self.rank == 0 and snapshot.staging is not None:
            shutil.rmtree(snapshot.staging, ignore_errors=True)
        self._trouble = trouble
        if not trouble:
            self.whole, self.seconds = snapshot.target, time.perf_counter() - self._began

    def _collect(self, engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """This worker's share of the state on the CPU, and on rank 0 all weights for the portable model."""
        mine: dict[str, torch.Tensor] = {}
        weights: dict[str, torch.Tensor] = {}
        for index, (name, parameter) in enumerate(engine.named_state()):
            is_mine = index % self.workers == self.rank
            if is_mine or self.rank == 0:
                weights[name] = _to_host(parameter.weight)
            if is_mine:
                mine[f"weight/{name}"] = weights[name]
                mine |= {f"{key}/{name}": _to_host(value) for key, value in parameter.moments.items()}
        return mine, weights

    def _write_share(self, snapshot: _Snapshot) -> str | None:
        """Write this worker's files; returns what went wrong, whatever it was, for the others wait for an answer."""
        try:
            if snapshot.staging is not None:
                self._write_files(snapshot, snapshot.staging)
                return None
            with ScratchFolder("checkpoint") as staging:
                self._write_files(snapshot, staging)
                upload(staging, snapshot.target)
        except OSError as error:
            return str(explain_os_error(error, redact(snapshot.target)))
        except Exception as error:
            return str(error) if isinstance(error, HipError) else f"{type(error).__name__}: {error}"
        return None

    def _write_files(self, snapshot: _Snapshot, staging: Path) -> None:
        optimizer = staging / "optimizer"
        optimizer.mkdir(parents=True, exist_ok=True)
        save_file(dict(snapshot.mine), optimizer / f"part-{self.rank:05d}-of-{self.workers:05d}.safetensors")
        if self.rank == 0:
            self.export(snapshot.weights, snapshot.average, staging)
            (staging / STATE).write_bytes(snapshot.state)

    def prune(self) -> None:
        """Delete what the options do not keep, and what killed writers left behind."""
        if self.rank != 0:
            return
        every = self.options.keep_every_steps
        for folder in list_checkpoints(self.run_folder)[: -self.options.keep_last]:
            if not every or int(name_of(folder).removeprefix("step_")) % every:
                delete(folder)
        sweep_up(self.run_folder)

    def _prune_or_say_why_not(self) -> None:
        """The checkpoint is there: what cannot be deleted now is deleted after a later one."""
        try:
            self.prune()
        except (OSError, HipError) as error:
            logger.warning("old checkpoints could not be deleted: %s", redact(str(error)))

    def _from_all(self, value: str | None) -> list[str | None]:
        if self.workers == 1:
            return [value]
        values: list[str | None] = [None] * self.workers
        distributed.all_gather_object(values, value, group=self._group)
        return values


def same_everywhere(value: str | None, workers: int, group: Any = None) -> str | None:
    """What rank 0 says."""
    if workers == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of its own, float32."""
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor.detach())
