"""Checkpoints by parameter name: one format for every engine, ZeRO stage and number of workers.

A checkpoint is a folder ``step_00000012`` with the portable model (``model.safetensors``, ``config.json``),
``trainer_state.json``, ``optimizer/part-*-of-*.safetensors`` (float32 weights and Adam moments, each worker its share
of the names) and, written last, ``complete.json`` with all sizes. A folder without a matching ``complete.json`` does
not count.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as distributed
from pyarrow import fs
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.errors import HipError, InfrastructureError, UserError
from pipeline.storage import explain_os_error, is_local, join, local_path, read_bytes, redact, resolve, write_atomic
from pipeline.train.engine import MOMENTS, Engine, ParameterState
from pipeline.train.options import CheckpointOptions
from pipeline.train.state import TrainerState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^step_(\d{8,})$")
COMPLETE = "complete.json"
STATE = "trainer_state.json"
Weights = Mapping[str, torch.Tensor]
Export = Callable[[Weights, Weights | None, Path], None]


def checkpoint_name(step: int) -> str:
    """The folder name for a step."""
    return f"step_{step:08d}"


def list_checkpoints(run_folder: str) -> list[str]:
    """Complete checkpoints of a run, oldest first."""
    system, path = resolve(join(run_folder, "checkpoints"))
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in found if _NAME.match(info.base_name))
    folders = [join(run_folder, "checkpoints", name) for name in names]
    return [folder for folder in folders if is_complete(folder)]


def latest_checkpoint(run_folder: str) -> str | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = list_checkpoints(run_folder)
    return found[-1] if found else None


def is_complete(folder: str) -> bool:
    """Whether every file that ``complete.json`` lists is there with its size."""
    try:
        sizes = json.loads(read_bytes(join(folder, COMPLETE)))["files"]
    except (UserError, ValueError, KeyError):
        return False
    system, path = resolve(folder)
    infos = system.get_file_info([f"{path}/{name}" for name in sizes])
    return all(info.size == size for info, size in zip(infos, sizes.values(), strict=True))


def read_state(folder: str) -> TrainerState:
    """The trainer state of a checkpoint."""
    return TrainerState.from_json(read_bytes(join(folder, STATE)))


class NamedStates(Mapping[str, ParameterState]):
    """A checkpoint's weights and moments, read from its part files one name at a time."""

    def __init__(self, folder: str) -> None:
        self._where: dict[str, Path] = {}
        for part in sorted((_local_copy(folder) / "optimizer").glob("part-*.safetensors")):
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


def _local_copy(folder: str) -> Path:
    """The folder itself, or a temporary copy of a remote one."""
    if is_local(folder):
        return local_path(folder)
    target = Path(tempfile.mkdtemp(prefix="hip-checkpoint-"))
    system, path = resolve(folder)
    fs.copy_files(path, str(target), source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
    return target


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of one run; every method is called by all workers together."""

    run_folder: str
    options: CheckpointOptions
    export: Export  # writes the portable model from float32 weights by name, and their average
    average: Callable[[], Weights | None] = lambda: None
    rank: int = 0
    workers: int = 1

    def save(self, engine: Engine, state: TrainerState) -> str:
        """Write one checkpoint and return its folder; nothing is visible under that name before it is whole.

        Raises:
            InfrastructureError: it could not be written (a full disk); the earlier ones are untouched.
        """
        target = join(self.run_folder, "checkpoints", checkpoint_name(state.step))
        staging = self._staging(self._same_everywhere(uuid.uuid4().hex[:8]) or "")
        trouble: str | None = None
        mine, weights = self._collect(engine)  # all workers take part, whatever happens to their files
        try:
            self._write_share(staging, mine, weights, state)
            if not is_local(self.run_folder):
                _upload(staging, target)
        except (OSError, HipError) as error:
            trouble = str(explain_os_error(error, redact(target)) if isinstance(error, OSError) else error)
        problems = [problem for problem in self._from_all(trouble) if problem]
        if self.rank == 0:
            trouble = problems[0] if problems else self._publish(staging, target)
        trouble = self._same_everywhere(trouble)
        if self.rank == 0 or not is_local(self.run_folder):
            shutil.rmtree(staging, ignore_errors=True)
        if trouble:
            raise InfrastructureError(f"checkpoint {checkpoint_name(state.step)} was not saved: {trouble}")
        return target

    def _staging(self, token: str) -> Path:
        if is_local(self.run_folder):
            return local_path(self.run_folder) / "checkpoints" / f".writing-{token}"
        return Path(tempfile.gettempdir()) / f"hip-checkpoint-{token}-{self.rank}"

    def _collect(self, engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """This worker's share of the state on the CPU, and on rank 0 all weights for the portable model."""
        mine: dict[str, torch.Tensor] = {}
        weights: dict[str, torch.Tensor] = {}
        for index, (name, parameter) in enumerate(engine.named_state()):
            if index % self.workers == self.rank:
                mine[f"weight/{name}"] = _to_host(parameter.weight)
                mine |= {f"{key}/{name}": _to_host(value) for key, value in parameter.moments.items()}
            if self.rank == 0:
                weights[name] = mine.get(f"weight/{name}", _to_host(parameter.weight))
        return mine, weights

    def _write_share(
        self, staging: Path, mine: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], state: TrainerState
    ) -> None:
        optimizer = staging / "optimizer"
        optimizer.mkdir(parents=True, exist_ok=True)
        save_file(mine, optimizer / f"part-{self.rank:05d}-of-{self.workers:05d}.safetensors")
        if self.rank == 0:
            self.export(weights, self.average(), staging)
            (staging / STATE).write_bytes(state.to_json())

    def _publish(self, staging: Path, target: str) -> str | None:
        """Give the checkpoint its name; returns what went wrong."""
        try:
            if not is_local(self.run_folder):
                system, path = resolve(target)
                files = [info for info in system.get_file_info(fs.FileSelector(path, recursive=True)) if info.is_file]
                sizes = {info.path.removeprefix(path).lstrip("/"): info.size for info in files}
                write_atomic(join(target, COMPLETE), json.dumps({"files": sizes}).encode())
                return None
            paths = [path for path in staging.rglob("*") if path.is_file()]
            if len([path for path in paths if path.name.startswith("part-")]) != self.workers:
                return f"not all workers see {staging.parent}; put storage on a file system that all nodes share"
            sizes = {str(path.relative_to(staging)): path.stat().st_size for path in paths}
            write_atomic(str(staging / COMPLETE), json.dumps({"files": sizes}).encode())
            place = local_path(target)
            if is_complete(target):  # the same step is the same state
                return None
            shutil.rmtree(place, ignore_errors=True)  # damaged
            staging.rename(place)
        except OSError as error:
            return str(explain_os_error(error, redact(target)))
        return None

    def prune(self) -> None:
        """Delete what the options do not keep, and what killed writers left behind."""
        if self.rank != 0:
            return
        every = self.options.keep_every_steps
        for folder in list_checkpoints(self.run_folder)[: -self.options.keep_last]:
            if not every or int(folder.rsplit("_", 1)[1]) % every:
                _delete(folder)
        if is_local(self.run_folder):
            for leftover in (local_path(self.run_folder) / "checkpoints").glob(".writing-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _from_all(self, value: str | None) -> list[str | None]:
        if self.workers == 1:
            return [value]
        values: list[str | None] = [None] * self.workers
        distributed.all_gather_object(values, value)
        return values

    def _same_everywhere(self, value: str | None) -> str | None:
        if self.workers == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()


def _upload(staging: Path, target: str) -> None:
    system, path = resolve(target)
    for file in (file for file in staging.rglob("*") if file.is_file()):
        place = f"{path}/{file.relative_to(staging)}"
        system.create_dir(place.rsplit("/", 1)[0], recursive=True)
        fs.copy_files(str(file), place, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)


def _delete(folder: str) -> None:
    """Delete a checkpoint; its marker first, so that a kill in between leaves nothing that looks whole."""
    system, path = resolve(folder)
    try:
        system.delete_file(f"{path}/{COMPLETE}")
        system.delete_dir(path)
    except OSError as error:
        logger.warning("could not delete the old checkpoint %s: %s", redact(folder), error)
