"""Shards: writing, and reading back with every row checked, beside copies, plain files, hashes and ``dd``.

    python -m bench.data_shards

Rates are per CPU-second (user + system of this process), so that they mean something on a shared machine; the cold rate
is wall-clock and stands beside ``dd`` on the same file at the same moment. Everything is timed in turns.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from bench.harness import HIGHER, LOWER, NEITHER, Report, Row, arguments_parser, ratio_row, time_in_turns
from bench.shard_cases import AUDIO_VIDEO, IMAGE, TINY, Arrays, Case, evict, write_shard


def rate_rows(case: Case, gigabytes: float, actions: dict[str, Callable[[], Any]], repeats: int) -> list[Row]:
    """GB of tokens per CPU-second of each action."""
    timings = time_in_turns(actions, repeats)
    return [
        Row(case.name, name, "GB/CPU-s", tuple(gigabytes / seconds for seconds in timing.cpu_seconds), HIGHER)
        for name, timing in timings.items()
    ]


def writing(folder: Path, case: Case, examples: Sequence[Arrays], repeats: int) -> list[Row]:
    """Writing a shard, and its parts alone."""
    from pipeline.shards.checksum import tokens_checksum
    from pipeline.shards.columns import RowBuffer
    from pipeline.shards.statistics import ChannelSums

    arrays = [array for example in examples for array in example.values()]

    def plainly() -> None:
        with (folder / "plain.bin").open("wb", buffering=0) as stream:
            for array in arrays:
                stream.write(array.data)
            os.fsync(stream.fileno())

    def without_statistics() -> None:
        with patch.object(RowBuffer, "sums", return_value={}):
            write_shard(folder, case, examples)

    actions: dict[str, Callable[[], Any]] = {
        "write without statistics": without_statistics,
        "write": partial(write_shard, folder, case, examples),
        "floor: plain file": plainly,
        "part: statistics": lambda: [ChannelSums.of(array) for array in arrays],
        "part: row hashes": lambda: [tokens_checksum(array.data) for array in arrays],
    }
    return rate_rows(case, len(examples) * case.row_bytes / 1e9, actions, repeats)


def reading_warm(folder: Path, case: Case, repeats: int) -> list[Row]:
    """Random rows from the page cache into one batch, again and again, beside a copy of as many bytes."""
    from pipeline.ingest.order import ExampleOrder
    from pipeline.shards.reader import ShardReader

    out, source = case.allocate(case.batch_rows), case.allocate(case.batch_rows)
    checked, unchecked = ShardReader(str(folder)), ShardReader(str(folder), verify=False)
    order = ExampleOrder(len(checked), 0, "bench")
    batches = max(1, len(checked) // case.batch_rows)

    def epoch(read: Callable[[np.ndarray], Any]) -> None:
        for number in range(batches):
            read(order.indices(number * case.batch_rows, case.batch_rows))

    def copy(_: np.ndarray) -> None:
        for name, array in out.items():
            np.copyto(array, source[name])

    actions = {
        "read warm, checked": partial(epoch, lambda indices: checked.read(indices, out)),
        "read warm, unchecked": partial(epoch, lambda indices: unchecked.read(indices, out)),
        "floor: memory copy": partial(epoch, copy),
    }
    return rate_rows(case, batches * case.batch_rows * case.row_bytes / 1e9, actions, repeats)


def reading_cold(folder: Path, case: Case, repeats: int) -> list[Row]:
    """One shuffled epoch through the loader from a cold disk, beside ``dd`` of the same file, taking turns."""
    shard = folder / "train-00000.arrow"
    ours, theirs = [], []
    for turn in range(repeats):
        evict(shard)
        began = time.perf_counter()
        ours.append(load_epoch(folder, case, turn) / 1e9 / (time.perf_counter() - began))
        evict(shard)
        began = time.perf_counter()
        subprocess.run(["dd", f"if={shard}", "of=/dev/null", "bs=8M", "status=none"], check=True)
        theirs.append(shard.stat().st_size / 1e9 / (time.perf_counter() - began))
    return [
        Row(case.name, "read cold, shuffled", "GB/s", tuple(ours), HIGHER),
        Row(case.name, "dd", "GB/s", tuple(theirs), NEITHER),
        ratio_row(case.name, "cold over dd", ours, theirs, HIGHER),
    ]


def load_epoch(folder: Path, case: Case, seed: int) -> int:
    """Read every row once with two threads; the token bytes."""
    from pipeline.ingest.loader import BatchLoader
    from pipeline.ingest.options import IngestOptions
    from pipeline.ingest.order import ExampleOrder
    from pipeline.shards.reader import ShardReader

    reader = ShardReader(str(folder))
    order, options = ExampleOrder(len(reader), seed, "bench"), IngestOptions(threads=2)
    with BatchLoader(reader, order, case.batch_rows, end_examples=len(reader), options=options) as loader:
        read = sum(len(batch.sources) for batch in loader) * reader.row_bytes
    reader.close()
    return read


def order_rows(repeats: int) -> list[Row]:
    """Start-up and batches of an order over a thousand million examples."""
    from pipeline.ingest.order import ExampleOrder

    order = ExampleOrder(10**9, 0, "bench")
    actions: dict[str, Callable[[], Any]] = {
        "start-up": lambda: [ExampleOrder(10**9, 0, "bench").indices(0, 1) for _ in range(100)],
        "batch of 32": lambda: [order.indices(123_456_789 + step, 32) for step in range(100)],
    }
    timings = time_in_turns(actions, repeats)
    return [
        Row("order of 10^9 examples", name, "ms", tuple(10 * seconds for seconds in timing.cpu_seconds), LOWER)
        for name, timing in timings.items()
    ]


def main() -> None:
    """Run everything and write the result."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--folder", default=None, help="where to write the shards; default: the temporary folder")
    parser.add_argument("--megabytes", type=int, default=370, help="size of each shard")
    arguments = parser.parse_args()
    report = Report("data_shards", ("pyarrow", "xxhash"))
    for case in (TINY,) if arguments.quick else (AUDIO_VIDEO, IMAGE):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            rows = 3 * case.batch_rows if arguments.quick else arguments.megabytes * 1_000_000 // case.row_bytes
            report.add(*writing(folder, case, case.examples(rows), arguments.repeats))
            report.add(*reading_warm(folder, case, arguments.repeats))
            report.add(*reading_cold(folder, case, arguments.repeats))
    report.add(*order_rows(arguments.repeats))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
