"""Shards: how fast they are written, and read back with every row checked. Writes JSON and prints a table.

    python bench/data_shards.py --output bench/results/data_shards.json

Rates are per CPU-second (user + system of this process), so that they mean something on a shared machine; the cold rate
is wall-clock and stands beside ``dd`` on the same file at the same moment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.ingest.loader import BatchLoader
from pipeline.ingest.options import IngestOptions
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.checksum import array_checksum
from pipeline.shards.columns import RowBuffer
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.statistics import ChannelSums
from pipeline.shards.writer import ShardWriter

AUDIO_VIDEO = (ModalitySpec("video", (8, 224, 224), 3, "uint8"), ModalitySpec("audio", (122_880,), 1, "int16"))
IMAGE = (ModalitySpec("image", (224, 224), 3, "uint8"),)


def rows(specs: tuple[ModalitySpec, ...], count: int) -> list[ExampleRow]:
    """Random examples: 32 different ones, repeated."""
    random = np.random.default_rng(0)
    distinct = [
        {spec.name: random.integers(0, 255, (spec.num_tokens, spec.num_channels)).astype(spec.dtype) for spec in specs}
        for _ in range(32)
    ]
    return [ExampleRow(index.to_bytes(16, "little"), "x", 0.0, (), distinct[index % 32]) for index in range(count)]


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The least CPU time of ``repeats`` runs."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def bench_write(
    folder: str, specs: tuple[ModalitySpec, ...], examples: list[ExampleRow], repeats: int
) -> dict[str, Any]:
    """Write one shard; also the cost of its parts alone."""

    def write() -> None:
        with ShardWriter(folder, "train-00000", specs) as writer:
            for row in examples:
                writer.add(row)
            record = writer.close()
        Manifest(specs, (record,)).write(folder)

    def write_plainly() -> None:
        with (Path(folder) / "plain.bin").open("wb", buffering=0) as stream:
            for array in arrays:
                stream.write(array.data)
            os.fsync(stream.fileno())

    gigabytes = len(examples) * sum(spec.row_bytes for spec in specs) / 1e9
    arrays = [array for row in examples for array in row.arrays.values() if array is not None]
    whole = cpu_seconds(write, repeats)
    sums = cpu_seconds(lambda: [ChannelSums.of(array) for array in arrays], repeats)
    with patch.object(RowBuffer, "sums", return_value={}):
        bare = cpu_seconds(write, repeats)
    plain = cpu_seconds(write_plainly, repeats)
    hashes = cpu_seconds(lambda: [array_checksum(array) for array in arrays], repeats)
    return {
        "write_gb_per_cpu_second": gigabytes / whole,
        "write_without_statistics_gb_per_cpu_second": gigabytes / bare,
        "plain_file_write_gb_per_cpu_second": gigabytes / plain,
        "statistics_alone_gb_per_cpu_second": gigabytes / sums,
        "row_hashes_alone_gb_per_cpu_second": gigabytes / hashes,
    }


def read_epoch(
    reader: ShardReader, order: ExampleOrder, out: dict[str, np.ndarray], batches: int, batch_size: int
) -> None:
    """All full batches of one epoch into the same arrays."""
    for number in range(batches):
        reader.read(order.indices(number * batch_size, batch_size), out)


def bench_warm(folder: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """Random rows from the page cache into one batch, again and again, with and without checking them."""
    result = {"copy_alone_gb_per_cpu_second": copy_rate(folder, batch_size, repeats)}
    for name, verify in (("read_warm_verified", True), ("read_warm_unverified", False)):
        reader = ShardReader(folder, verify=verify)
        order = ExampleOrder(len(reader), 0, "bench")
        out = reader.allocate(batch_size)
        batches = max(1, len(reader) // batch_size)

        epoch = partial(read_epoch, reader, order, out, batches, batch_size)
        epoch()
        seconds = cpu_seconds(epoch, repeats)
        result[f"{name}_gb_per_cpu_second"] = batches * batch_size * reader.row_bytes / 1e9 / seconds
        result[f"{name}_microseconds_per_row"] = seconds / (batches * batch_size) * 1e6
    return result


def copy_rate(folder: str, batch_size: int, repeats: int) -> float:
    """Ceiling of reading: the same number of bytes copied from memory into the same arrays."""
    reader = ShardReader(folder)
    source, out = reader.read(np.arange(batch_size)).arrays, reader.allocate(batch_size)
    seconds = cpu_seconds(lambda: [np.copyto(out[name], source[name]) for name in out], 3 * repeats)
    return batch_size * reader.row_bytes / 1e9 / seconds


def evict(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def bench_cold(folder: str, batch_size: int, threads: int, repeats: int) -> dict[str, Any]:
    """One shuffled epoch through the loader from a cold disk, beside ``dd`` of the same file, taking turns."""
    shard = Path(folder) / "train-00000.arrow"
    ours, theirs = [], []
    for turn in range(repeats):
        evict(shard)
        reader = ShardReader(folder)
        began = time.perf_counter()
        with BatchLoader(
            reader,
            ExampleOrder(len(reader), turn, "bench"),
            batch_size,
            end_examples=len(reader),
            options=IngestOptions(threads=threads),
        ) as loader:
            read = sum(len(batch.sources) for batch in loader) * reader.row_bytes
        ours.append(read / 1e9 / (time.perf_counter() - began))
        reader.close()
        evict(shard)
        began = time.perf_counter()
        subprocess.run(["dd", f"if={shard}", "of=/dev/null", "bs=8M", "status=none"], check=True)
        theirs.append(shard.stat().st_size / 1e9 / (time.perf_counter() - began))
    return {
        "read_cold_gb_per_second": statistics.median(ours),
        "dd_gb_per_second": statistics.median(theirs),
        "cold_share_of_dd": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def bench_order() -> dict[str, Any]:
    """Start-up and batches of an order over a thousand million examples."""

    def start() -> None:
        ExampleOrder(10**9, 0, "bench").indices(0, 1)

    order = ExampleOrder(10**9, 0, "bench")
    return {
        "order_start_up_milliseconds": cpu_seconds(start, 50) * 1e3,
        "order_batch_of_32_milliseconds": cpu_seconds(lambda: order.indices(123_456_789, 32), 50) * 1e3,
    }


def main() -> None:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="bench/results/data_shards.json")
    parser.add_argument("--folder", default=None, help="where to write the shards; default: the temporary folder")
    parser.add_argument("--megabytes", type=int, default=370, help="size of each shard")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"}
    for name, specs, batch_size in (("audio_video", AUDIO_VIDEO, 32), ("image", IMAGE, 256)):
        row_bytes = sum(spec.row_bytes for spec in specs)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            examples = rows(specs, arguments.megabytes * 1_000_000 // row_bytes)
            results[name] = {"row_bytes": row_bytes, "rows": len(examples), "load_average": os.getloadavg()[0]}
            results[name] |= bench_write(folder, specs, examples, arguments.repeats)
            results[name] |= bench_warm(folder, batch_size, arguments.repeats)
            results[name] |= bench_cold(folder, batch_size, 2, arguments.repeats)
    results["order"] = bench_order()
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    for part, values in results.items():
        for key, value in values.items() if isinstance(values, dict) else ((part, values),):
            print(f"{part:<12} {key:<46} {value:.4g}" if isinstance(value, float) else f"{part:<12} {key:<46} {value}")


if __name__ == "__main__":
    main()
