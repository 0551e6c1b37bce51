"""Checkpoints: whole or not there, the same by name, pruned by rule."""

import json
import math
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InfrastructureError, UserError
from pipeline.train import checkpoint
from pipeline.train.checkpoint import (
    CheckpointWriter,
    NamedStates,
    is_complete,
    latest_checkpoint,
    list_checkpoints,
    read_state,
)
from pipeline.train.engine import TorchEngine
from pipeline.train.options import CheckpointOptions, EngineOptions, OptimOptions
from pipeline.train.state import TrainerState


class Loss:
    """What a model returns."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class Small(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Loss:
        return Loss(self.second(self.first(x).tanh()).square().mean())


def engine_after(steps: int, seed: int = 0) -> TorchEngine:
    torch.manual_seed(seed)
    engine = TorchEngine(Small(), EngineOptions(kind="torch", precision="fp32"), OptimOptions(), torch.device("cpu"))
    for _ in range(steps):
        engine.backward(engine.forward(x=torch.ones(4, 3)).loss, last=True)
        engine.step(0.01)
    return engine


def export(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"".join(value.numpy().tobytes() for value in weights.values()))


def writer(folder: Path, **options: int) -> CheckpointWriter:
    return CheckpointWriter(str(folder), CheckpointOptions(**options), export)


def test_weights_and_moments_come_back_to_the_bit(tmp_path: Path) -> None:
    engine = engine_after(3)
    folder = writer(tmp_path).save(engine, TrainerState(seed=1, step=3, optimizer_steps=engine.optimizer_steps()))
    other = engine_after(1, seed=9)
    saved = read_state(folder)
    other.load_named_state(NamedStates(folder), saved.optimizer_steps)
    for (name, mine), (_, theirs) in zip(engine.named_state(), other.named_state(), strict=True):
        assert torch.equal(mine.weight, theirs.weight), name
        assert all(torch.equal(mine.moments[key], theirs.moments[key]) for key in mine.moments)
    assert other.optimizer_steps() == 3
    for each in (engine, other):
        each.backward(each.forward(x=torch.ones(4, 3)).loss, last=True)
        each.step(0.01)
    assert torch.equal(engine.module.first.weight, other.module.first.weight)


def test_a_kill_at_any_file_leaves_the_last_checkpoint_loadable(tmp_path: Path) -> None:
    engine = engine_after(1)
    whole = Path(writer(tmp_path).save(engine, TrainerState(seed=0, step=1)))
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    assert len(files) == 4
    for kept in range(len(files)):  # the files that were written before the kill, under the temporary name
        staging = tmp_path / "checkpoints" / ".writing-abc"
        for file in files[:kept]:
            (staging / file.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, staging / file.relative_to(whole))
        assert list_checkpoints(str(tmp_path)) == [str(whole)]
        shutil.rmtree(staging, ignore_errors=True)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer_state.json", "optimizer/part-00000-of-00001.safetensors"]
)
def test_a_damaged_checkpoint_does_not_count_and_the_one_before_does(tmp_path: Path, name: str) -> None:
    engine = engine_after(1)
    first = writer(tmp_path).save(engine, TrainerState(seed=0, step=1))
    second = Path(writer(tmp_path).save(engine, TrainerState(seed=0, step=2)))
    assert latest_checkpoint(str(tmp_path)) == str(second)
    (second / name).write_bytes((second / name).read_bytes()[:-1])
    assert not is_complete(str(second))
    assert latest_checkpoint(str(tmp_path)) == first
    again = writer(tmp_path).save(engine, TrainerState(seed=0, step=2))  # written over
    assert latest_checkpoint(str(tmp_path)) == again == str(second)


def test_pruning_keeps_the_last_ones_and_sweeps_up_what_killed_writers_left(tmp_path: Path) -> None:
    engine = engine_after(0)
    (tmp_path / "checkpoints" / ".writing-dead").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000002" / "optimizer").mkdir(parents=True)  # half deleted
    keeping = writer(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(1, 8):
        keeping.save(engine, TrainerState(seed=0, step=step))
        keeping.prune()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",
        "step_00000007",
    ]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    may_write = threading.Event()

    def slow(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, folder: Path) -> None:
        assert may_write.wait(30)
        export(weights, average, folder)

    engine = engine_after(1)
    then = engine.module.first.weight.detach().clone()
    writing = CheckpointWriter(str(tmp_path), CheckpointOptions(), slow)
    writing.begin(engine, TrainerState(seed=0, step=1))
    engine.backward(engine.forward(x=torch.ones(4, 3)).loss, last=True)
    engine.step(0.01)
    assert latest_checkpoint(str(tmp_path)) is None  # half a checkpoint is none
    may_write.set()
    folder = writing.wait()
    assert folder is not None
    assert writing.wait() is None
    assert torch.equal(NamedStates(folder)["first.weight"].weight, then)  # of the moment in which it was begun
    assert not torch.equal(engine.module.first.weight, then)


def test_a_failed_write_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    failing = CheckpointWriter(str(tmp_path), CheckpointOptions(), broken)
    with pytest.raises(InfrastructureError, match="no space left"):
        failing.save(engine_after(0), TrainerState(seed=0, step=1))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_unforeseen_fault_of_a_writer_is_told(tmp_path: Path) -> None:
    def broken(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, folder: Path) -> None:
        raise ValueError("odd weights")

    with pytest.raises(InfrastructureError, match="step_00000001 was not saved: ValueError: odd weights"):
        CheckpointWriter(str(tmp_path), CheckpointOptions(), broken).save(engine_after(0), TrainerState(0, step=1))


def test_a_store_that_fails_after_the_last_file_does_not_undo_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(run_folder: str) -> list[str]:
        raise OSError("the store is away")

    monkeypatch.setattr(checkpoint, "list_checkpoints", away)
    folder = writer(tmp_path).save(engine_after(0), TrainerState(seed=0, step=1))
    assert is_complete(folder)
    assert "could not be deleted: the store is away" in caplog.text


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = writer(tmp_path).save(engine_after(0), TrainerState(seed=0, step=1))
    states = NamedStates(folder)
    shapes = {name: state.weight.shape for name, state in states.items()}
    states.check(shapes)
    with pytest.raises(UserError, match=r"first\.weight is \(5, 3\) there, \(7, 3\) here"):
        states.check(shapes | {"first.weight": torch.Size([7, 3])})
    with pytest.raises(UserError, match="third"):
        states.check(shapes | {"third": torch.Size([1])})


def test_a_state_of_a_newer_version_is_refused_and_unknown_fields_are_ignored() -> None:
    values = json.loads(TrainerState(seed=3, step=4).to_json())
    assert TrainerState.from_json(json.dumps(values | {"later": 1}).encode()).step == 4
    with pytest.raises(UserError, match="format 99"):
        TrainerState.from_json(json.dumps(values | {"format_version": 99}).encode())


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_paths_and_uris_are_the_same_place(tmp_path: Path, scheme: str) -> None:
    folder = CheckpointWriter(f"{scheme}{tmp_path}", CheckpointOptions(), export).save(
        engine_after(0), TrainerState(seed=0, step=1)
    )
    assert is_complete(folder)
    assert math.prod(NamedStates(folder)["first.weight"].weight.shape) == 15


def test_remote_storage_is_published_by_its_last_file(tmp_path: Path) -> None:
    import fsspec

    remote = CheckpointWriter("memory://bucket/run", CheckpointOptions(keep_last=1), export)
    engine, memory = engine_after(2), fsspec.filesystem("memory")
    memory.pipe_file("/bucket/run/checkpoints/step_00000009/model.safetensors", b"of an upload that was killed")
    for step in (1, 2, 2):  # a stop right after a save takes the same step again
        folder = remote.save(engine, TrainerState(seed=0, step=step))
        remote.prune()
    assert list_checkpoints("memory://bucket/run") == [folder]
    assert not memory.exists("/bucket/run/checkpoints/step_00000009")
    states = NamedStates(folder)
    assert torch.equal(states["second.bias"].weight, engine.module.second.bias.detach())
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_remote_checkpoint_has_no_part_of_a_killed_save_by_more_workers(tmp_path: Path) -> None:
    import fsspec

    name, memory = "step_00000002", fsspec.filesystem("memory")
    old = Path(CheckpointWriter(str(tmp_path), CheckpointOptions(), export).save(engine_after(1), TrainerState(seed=0)))
    left = f"/bucket/run/checkpoints/{name}/optimizer/part-00003-of-00004.safetensors"
    memory.pipe_file(left, (old / "optimizer" / "part-00000-of-00001.safetensors").read_bytes())
    engine = engine_after(2)
    folder = CheckpointWriter("memory://bucket/run", CheckpointOptions(), export).save(engine, TrainerState(0, step=2))
    assert torch.equal(NamedStates(folder)["second.bias"].weight, engine.module.second.bias.detach())
    memory.rm("/bucket", recursive=True)


def test_the_copy_of_a_remote_checkpoint_goes_with_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    folder = CheckpointWriter("memory://bucket/run", CheckpointOptions(), export).save(
        engine_after(1), TrainerState(seed=0, step=1)
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    states = NamedStates(folder)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["part-00000-of-00001.safetensors"]
    assert states["first.weight"].weight.shape == (5, 3)
    del states
    assert list(tmp_path.iterdir()) == []
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
