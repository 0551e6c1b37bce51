"""What Ray Train, the engine, the data path, metrics and tracking cost over a bare torch loop with the same model.

    python -m bench.system_loop --output bench/results/system_loop.json

One worker, started by Ray as ``hip pretrain`` does, alternates between blocks of its own loop and blocks of a bare one
(the same model and batch size; forward, backward, clip, fused AdamW; one batch that lies ready), so whatever else the
machine does slows both. ``ratio`` is block by block. The data-wait share and the time from the call to the first
step, with Ray up, are of the same runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.harness import Report, Row, arguments_parser, ratio_row

if TYPE_CHECKING:
    from pipeline.train.options import PretrainOptions

WARM_UP_BLOCKS = 2
ENGINES = {"deepspeed": ("deepspeed", 1), "deepspeed_zero0": ("deepspeed", 0), "torch": ("torch", 0)}
"""Kind and ZeRO stage."""


def write_clips(folder: Path, count: int) -> str:
    """A dataset of noise with the sizes of the demo's clips: 4 frames of 32x32 and 2,048 samples of sound."""
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.schema import ExampleRow, ModalitySpec
    from pipeline.shards.writer import ShardWriter

    video, sound = ModalitySpec("video", (4, 32, 32), 3, "uint8"), ModalitySpec("audio", (2048,), 1, "int16")
    draw = np.random.default_rng(0)
    with ShardWriter(str(folder), "train-00000", [video, sound]) as writer:
        for index in range(count):
            arrays: dict[str, np.ndarray | None] = {
                "video": draw.integers(0, 255, (video.num_tokens, 3)).astype(np.uint8),
                "audio": draw.integers(-32768, 32767, (sound.num_tokens, 1)).astype(np.int16),
            }
            writer.add(ExampleRow(index.to_bytes(16, "little"), str(index), 0.0, (), arrays))
        record = writer.close()
    Manifest((video, sound), (record,), lineage={"recipe": {}}).write(str(folder))
    return str(folder)


def make_options(shards: str, storage: Path, engine: str, model: str, batch: int, block: int) -> PretrainOptions:
    """A run as a user starts it: one worker, tracked, metrics every block."""
    from pipeline.train.options import (
        BatchOptions,
        CheckpointOptions,
        DurationOptions,
        EngineOptions,
        FigureOptions,
        MetricsOptions,
        ModelOptions,
        PretrainOptions,
        RunOptions,
    )

    return PretrainOptions(
        shards=shards,
        storage=str(storage),
        run=RunOptions(engine),
        model=ModelOptions(model),
        batch=BatchOptions(batch),
        duration=DurationOptions(steps=1_000_000),
        engine=EngineOptions(kind=ENGINES[engine][0], stage=ENGINES[engine][1], precision="fp32"),
        metrics=MetricsOptions(every_steps=block),
        checkpoint=CheckpointOptions(every_steps=100 * block),
        figures=FigureOptions(every_steps=0),
    )


def bare_loop(options: PretrainOptions) -> Callable[[], None]:
    """One step of the plainest training of the same model."""
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.reader import ShardReader
    from pipeline.train.build import build_autoencoder

    model = build_autoencoder(options, Manifest.load(options.shards))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    batch = ShardReader(options.shards).read(np.arange(options.batch.global_size))
    inputs = {name: torch.from_numpy(value) for name, value in batch.arrays.items()}
    seeds = torch.arange(options.batch.global_size)

    def step() -> None:
        model(inputs, seeds).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def clocks() -> tuple[float, float]:
    """Seconds on the wall, and of CPU time in all threads of this process: the second counts no stolen time."""
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
    """How far both clocks went."""
    wall, cpu = clocks()
    return wall - before[0], cpu - before[1]


@dataclass
class Alternate:
    """Called by the loop after each of its blocks: runs a bare block, and notes both times."""

    options: PretrainOptions
    pairs: int
    place: str
    step: Callable[[], None] | None = None
    before: tuple[float, float] = (0.0, 0.0)
    found: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        loop, loop_cpu = since(self.before)
        if self.step is None:
            self.step = bare_loop(self.options)
        began = clocks()
        for _ in range(self.options.metrics.every_steps):
            self.step()
        bare, bare_cpu = since(began)
        wait = metrics["data_wait_share"]
        self.found.append({"loop": loop, "loop_cpu": loop_cpu, "bare": bare, "bare_cpu": bare_cpu, "wait": wait})
        is_last = len(self.found) == WARM_UP_BLOCKS + self.pairs
        if is_last:
            Path(self.place).write_text(json.dumps(self.found))
        self.before = clocks()
        return is_last


@dataclass
class FirstStep:
    """Ends a run after its first step, and notes when that was."""

    place: str

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        Path(self.place).write_text(str(time.time()))
        return True


def measure(report: Report, arguments: argparse.Namespace, engine: str, shards: str, folder: Path) -> None:
    """One engine: two kinds of blocks in turns, then the start of a run of one step."""
    from dataclasses import replace

    from pipeline.train.options import MetricsOptions, RunOptions
    from pipeline.train.runner import run_pretraining

    case = f"{engine} fp32, {arguments.model}, {arguments.batch} examples"
    options = make_options(shards, folder / "runs", engine, arguments.model, arguments.batch, arguments.block)
    place = str(folder / f"{engine}.json")
    run_pretraining(options, Alternate(options, arguments.repeats, place))
    blocks: list[dict[str, Any]] = json.loads(Path(place).read_text())[WARM_UP_BLOCKS:]
    loop, bare = [block["loop"] for block in blocks], [block["bare"] for block in blocks]
    steps = arguments.block
    report.add(
        Row(case, "step, ours", "s", tuple(value / steps for value in loop)),
        Row(case, "step, bare", "s", tuple(value / steps for value in bare)),
        ratio_row(case, "ratio", loop, bare),
        ratio_row(case, "ratio of CPU time", [b["loop_cpu"] for b in blocks], [b["bare_cpu"] for b in blocks]),
        Row(case, "data wait", "% of time", tuple(100 * block["wait"] for block in blocks)),
    )
    began = time.time()
    one = replace(options, run=RunOptions(f"{engine}_start"), metrics=MetricsOptions(every_steps=1))
    run_pretraining(one, FirstStep(place))
    report.add(Row(case, "start to first step", "s", (float(Path(place).read_text()) - began,)))


def main() -> None:
    """Measure both engines on a Ray that is up."""
    parser = arguments_parser(__doc__, repeats=12)
    parser.add_argument("--model", default="hip_micro")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--block", type=int, default=20, help="steps in a block; metrics are gathered once in each")
    parser.add_argument("--engines", nargs="+", default=["deepspeed", "torch"], choices=ENGINES)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.batch, arguments.block, arguments.repeats = "hip_nano", 4, 2, 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    from pipeline.ray_session import RayOptions, ray_session

    report = Report("system_loop", ("ray", "deepspeed", "mlflow"))
    with tempfile.TemporaryDirectory() as name, ray_session(RayOptions(object_store_gib=0.3)):
        shards = write_clips(Path(name) / "shards", 512)
        for engine in arguments.engines:
            measure(report, arguments, engine, shards, Path(name))
    report.note("bare: its batch is read once and its seeds never change; the loop's threads (reading, sending) go on")
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
