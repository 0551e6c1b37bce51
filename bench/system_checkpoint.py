"""Saving and loading checkpoints against plain files of the same bytes on the same disk.

    python -m bench.system_checkpoint --output bench/results/system_checkpoint.json

One worker with the plain engine and its Adam moments. ``pause``: how long training stands still while the state is
copied; the files are then written by a thread. All files are flushed to the disk before the clock stops, in both; loads
read what was just written, from the page cache, in both.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.harness import HIGHER, NEITHER, Report, Row, arguments_parser, ratio_row


def flush(folder: Path) -> None:
    """Have the disk take everything below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def timed(action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def build_engine(model: str, side: int) -> Any:
    """The plain engine of a model of pictures of that side, with moments."""
    from hip_model import Modality, build_model
    from pipeline.train.engine import TorchEngine
    from pipeline.train.options import EngineOptions, OptimOptions

    module = build_model(model, [Modality("image", side * side, 3, (side, side))])
    engine = TorchEngine(module, EngineOptions(kind="torch", precision="fp32"), OptimOptions(), torch.device("cpu"))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    engine.step(1e-4)
    return engine


def measure(report: Report, model: str, side: int, repeats: int, folder: Path) -> None:
    """Save and load one model's state ``repeats`` times, in turns with a plain file."""
    from safetensors.torch import save_file

    from pipeline.train.checkpoint import CheckpointWriter, NamedStates
    from pipeline.train.options import CheckpointOptions
    from pipeline.train.state import TrainerState

    engine = build_engine(model, side)

    def export(weights: Any, average: Any, target: Path) -> None:
        save_file(dict(weights), target / "model.safetensors")

    writer = CheckpointWriter(str(folder / "run"), CheckpointOptions(keep_last=1), export)
    plain = folder / "plain.bin"
    found: dict[str, list[float]] = {"pause": [], "save": [], "write": [], "load": [], "read": []}
    size = 0
    for step in range(repeats + 1):  # the first is warm-up
        state = TrainerState(0, step=step)
        pause = timed(partial(writer.begin, engine, state))
        save = pause + timed(lambda: (writer.wait(), flush(folder / "run")))
        size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
        block = memoryview(bytearray(os.urandom(2**20)) * (size // 2**20))
        write = timed(lambda block=block: (plain.write_bytes(block), flush(folder)))  # type: ignore[misc]
        load = timed(partial(engine.load_named_state, NamedStates(str(writer.whole)), step))
        read = timed(plain.read_bytes)
        if step:
            for name, seconds in zip(found, (pause, save, write, load, read), strict=True):
                found[name].append(seconds)
    case, gb = f"{model} at {side}²", size / 1e9
    report.add(
        Row(case, "checkpoint", "GB", (gb,), NEITHER),
        Row(case, "pause of training", "s", tuple(found["pause"])),
        Row(case, "save, flushed", "GB/s", tuple(gb / seconds for seconds in found["save"]), HIGHER),
        Row(case, "plain file, flushed", "GB/s", tuple(gb / seconds for seconds in found["write"]), NEITHER),
        ratio_row(case, "save over plain file, time", found["save"], found["write"]),
        Row(case, "load", "GB/s", tuple(gb / seconds for seconds in found["load"]), HIGHER),
        Row(case, "plain file, read", "GB/s", tuple(gb / seconds for seconds in found["read"]), NEITHER),
    )


def main() -> None:
    """Measure, and write the result."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--model", default="hip_256")
    parser.add_argument("--side", type=int, default=224)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.side, arguments.repeats = "hip_nano", 32, 1
    torch.set_num_threads(1)
    report = Report("system_checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        measure(report, arguments.model, arguments.side, arguments.repeats, Path(folder))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
