"""Weak scaling over one and two workers of one machine: the same examples a worker, with and without a partner.

    python -m bench.system_scaling --output bench/results/system_scaling.json

Ray Train starts the workers, each with one thread; DeepSpeed ZeRO-1 over gloo. ``together`` is the rate of two workers
over twice that of one: 1 would be perfect. Two processes that train the same model and never talk run beside it as the
ceiling: what they lose, they lose to the cores and the memory that they share.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.harness import HIGHER, Report, Row, arguments_parser
from bench.system_loop import bare_loop, make_options, write_clips

WARM_UP_BLOCKS = 2


@dataclass
class Blocks:
    """Called by the loop after each of its blocks: notes how long it took, and ends the run after ``count``."""

    count: int
    place: str
    before: float = 0.0
    found: list[float] = field(default_factory=list)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        now = time.perf_counter()
        self.found.append(now - self.before)
        self.before = now
        is_last = len(self.found) == WARM_UP_BLOCKS + self.count
        if is_last:
            Path(self.place).write_text(json.dumps(self.found[WARM_UP_BLOCKS:]))
        return is_last


def run_blocks(options: Any, workers: int, count: int, place: str) -> list[float]:
    """Seconds of each block of a run with that many workers, each with its own share of the batch."""
    from pipeline.train.runner import run_pretraining

    batch = replace(options.batch, global_size=options.batch.global_size * workers)
    scale = replace(options.scale, workers=workers)
    run_pretraining(replace(options, batch=batch, scale=scale), Blocks(count, place))
    found: list[float] = json.loads(Path(place).read_text())
    return found


def _silent_worker(options: Any, steps: int, count: int, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    step = bare_loop(options)
    for _ in range(2 * steps):
        step()
    times = []
    for _ in range(count):
        barrier.wait()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        times.append(time.perf_counter() - began)
    queue.put(times)


def silent_blocks(options: Any, processes: int, count: int) -> list[float]:
    """Seconds of blocks of bare steps in processes that do not talk, the slowest of each block."""
    context = get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    arguments = (options, options.metrics.every_steps, count, barrier, queue)
    started = [context.Process(target=_silent_worker, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    found = [queue.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    return [max(times) for times in zip(*found, strict=True)]


def main() -> None:
    """Measure both, and write the result."""
    parser = arguments_parser(__doc__, repeats=10)
    parser.add_argument("--model", default="hip_micro")
    parser.add_argument("--batch", type=int, default=8, help="examples of a worker")
    parser.add_argument("--block", type=int, default=5, help="steps in a block")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.batch, arguments.block, arguments.repeats = "hip_nano", 4, 2, 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pipeline.ray_session import RayOptions, ray_session

    report = Report("system_scaling", ("ray", "deepspeed"))
    examples = arguments.batch * arguments.block
    with tempfile.TemporaryDirectory() as name, ray_session(RayOptions(object_store_gib=0.3)):
        folder = Path(name)
        shards = write_clips(folder / "shards", 512)
        found = {}
        for workers in (1, 2):
            options = make_options(
                shards, folder / f"runs_{workers}", "deepspeed", arguments.model, arguments.batch, arguments.block
            )
            times = run_blocks(options, workers, arguments.repeats, str(folder / f"{workers}.json"))
            found[f"Ray Train + DeepSpeed, {workers}"] = tuple(workers * examples / value for value in times)
            silent = silent_blocks(options, workers, arguments.repeats)
            found[f"processes that do not talk, {workers}"] = tuple(workers * examples / value for value in silent)
    case = f"{arguments.model}, {arguments.batch} examples a worker"
    report.add(*(Row(case, f"{what} workers", "examples/s", rates, HIGHER) for what, rates in found.items()))
    for what in ("Ray Train + DeepSpeed", "processes that do not talk"):
        ratios = tuple(two / one / 2 for one, two in zip(found[f"{what}, 1"], found[f"{what}, 2"], strict=True))
        report.add(Row(case, f"{what}: two over twice one", "×", ratios, HIGHER))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
