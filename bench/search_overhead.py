"""What a search costs beyond its trials' own training, once Ray is up.

    python -m bench.search_overhead --output bench/results/search_overhead.json

The same short pretrainings run twice, each time one after the other: plainly (``run_pretraining`` in this process,
which is warm) and as trials of a search. What the search takes longer, divided by the trials, is its overhead; the
report, the candidates and the start of the process that all trials share are in it. ``period`` is the time from the end
of one trial to the end of the next, where that process is warm. CPU seconds would miss the waiting, so all figures are
wall-clock: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.harness import NEITHER, Report, Row, arguments_parser

if TYPE_CHECKING:
    from pipeline.tune.options import TuneOptions


def write_images(folder: Path, count: int) -> str:
    """A dataset of 16x16 noise images; overhead does not depend on what is in them."""
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.schema import ExampleRow, ModalitySpec
    from pipeline.shards.writer import ShardWriter

    spec = ModalitySpec("image", (16, 16), 3, "uint8")
    draw = np.random.default_rng(0)
    with ShardWriter(str(folder), "train-00000", [spec]) as writer:
        for index in range(count):
            pixels = draw.integers(0, 255, (spec.num_tokens, spec.num_channels)).astype(spec.dtype)
            writer.add(ExampleRow(index.to_bytes(16, "little"), str(index), 0.0, (), {"image": pixels}))
        record = writer.close()
    Manifest((spec,), (record,), lineage={"recipe": {}}).write(str(folder))
    return str(folder)


def search_options(shards: str, storage: Path, trials: int, steps: int, tracked: bool) -> TuneOptions:
    """One model at ``trials`` learning rates, one trial at a time."""
    from pipeline.tracking.options import TrackingOptions
    from pipeline.train.options import (
        BatchOptions,
        CheckpointOptions,
        DurationOptions,
        EngineOptions,
        FigureOptions,
        MetricsOptions,
        ModelOptions,
        ValidationOptions,
    )
    from pipeline.tune.options import SearchOptions, TuneOptions

    rates = [1e-3 * (1 + index / 10) for index in range(trials)]
    return TuneOptions(
        shards=shards,
        storage=str(storage),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(16),
        duration=DurationOptions(steps=steps),
        engine=EngineOptions(kind="torch", precision="fp32"),
        metrics=MetricsOptions(every_steps=10),
        checkpoint=CheckpointOptions(every_steps=max(10, steps)),
        validation=ValidationOptions(every_steps=0),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(enabled=tracked, system_metrics=False),
        search=SearchOptions(
            name="search",
            trials=trials,
            max_concurrent=1,
            algorithm="grid",
            scheduler="none",
            budget="none",
            options={"optim.learning_rate": rates},
        ),
    )


def plain_seconds(options: TuneOptions) -> list[float]:
    """Wall seconds of each trial's training without a search, after one that warms this process up."""
    from pipeline.train.options import RunOptions
    from pipeline.train.runner import train_in_process
    from pipeline.tune.candidates import plain_pretrain_options
    from pipeline.tune.space import with_option

    found = []
    rates = options.search.options["optim.learning_rate"]
    assert isinstance(rates, list)
    for index, rate in enumerate([rates[0], *rates]):
        plain = with_option(plain_pretrain_options(options), "optim.learning_rate", rate)
        plain = replace(plain, run=RunOptions(f"plain_{index}"))
        began = time.perf_counter()
        train_in_process(plain, None)
        found.append(time.perf_counter() - began)
    return found[1:]


def searched_seconds(options: TuneOptions) -> tuple[float, list[float]]:
    """Wall seconds of the whole search, and between the ends of consecutive trials."""
    from pipeline.tune.search import run_search

    began = time.perf_counter()
    found = run_search(options)
    wall = time.perf_counter() - began
    ends = sorted((Path(trial.run_folder or "") / "run.json").stat().st_mtime for trial in found.trials)
    return wall, [after - before for before, after in pairwise(ends)]


def measure(report: Report, arguments: argparse.Namespace, folder: Path, tracked: bool) -> None:
    """Both ways of running the trials, ``--repeats`` times."""
    case = f"{arguments.trials} trials of {arguments.steps} steps, {'SQLite tracking' if tracked else 'no tracking'}"
    shards = str(folder / "shards")
    plain, whole, periods, overheads = [], [], [], []
    for repeat in range(arguments.repeats):
        storage = folder / f"{tracked}-{repeat}"
        options = search_options(shards, storage, arguments.trials, arguments.steps, tracked)
        alone = plain_seconds(options)
        wall, between = searched_seconds(options)
        plain += alone
        whole.append(wall)
        periods += between
        overheads.append((wall - sum(alone)) / arguments.trials)
    report.add(
        Row(case, "training alone, a trial", "s", tuple(plain), NEITHER),
        Row(case, "search", "s", tuple(whole), NEITHER),
        Row(case, "period, warm", "s", tuple(periods), NEITHER),
        Row(case, "overhead a trial", "s", tuple(overheads)),
    )


def main() -> None:
    """Measure with and without tracking."""
    parser = arguments_parser(__doc__, repeats=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.steps, arguments.repeats = 2, 4, 1
    from pipeline.ray_session import RayOptions, ray_session

    report = Report("search_overhead", ("ray", "mlflow"))
    with tempfile.TemporaryDirectory() as folder, ray_session(RayOptions(num_cpus=2)):
        write_images(Path(folder) / "shards", 256)
        for tracked in (False, True):
            measure(report, arguments, Path(folder), tracked)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
