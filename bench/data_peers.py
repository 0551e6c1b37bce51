"""Shards against what others use: WebDataset, MosaicML Streaming (MDS), Parquet and a plain file, on the same examples.

    python -m bench.data_peers

Each writes the examples, and reads them into one preallocated batch; what was read is compared with what was written.
GB of tokens per CPU-second, this process and its threads. A peer that is not installed is left out and named in the
notes. Ours checks a hash of every row it reads; the peers check nothing.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import HIGHER, Report, Row, arguments_parser, time_in_turns
from bench.shard_cases import AUDIO_VIDEO, IMAGE, TINY, Arrays, Case, write_shard

RowOf = Callable[[int], dict[str, Any]]


@dataclass
class Format:
    """One way to store examples. ``open`` gives a function from a row's index to its bytes or arrays by name."""

    name: str
    package: str
    write: Callable[[Path, Case, Sequence[Arrays]], None]
    open: Callable[[Path, Case], RowOf] | None = None
    stream: Callable[[Path, Case], Iterator[dict[str, Any]]] | None = None
    folder: Path = field(default_factory=Path)

    def read(self, case: Case, indices: np.ndarray, out: Arrays) -> None:
        """Fill the batch ``out`` with the rows ``indices``."""
        assert self.open is not None
        row_of = self.open(self.folder, case)
        for number, index in enumerate(indices.tolist()):
            fill(out, number % case.batch_rows, row_of(index))

    def read_stream(self, case: Case, out: Arrays) -> None:
        """Fill batch after batch in the order of the file."""
        assert self.stream is not None
        for number, row in enumerate(self.stream(self.folder, case)):
            fill(out, number % case.batch_rows, row)


def fill(out: Arrays, slot: int, row: dict[str, Any]) -> None:
    for name, array in out.items():
        value = row[name]
        flat = np.frombuffer(value, array.dtype) if not isinstance(value, np.ndarray) else value
        np.copyto(array[slot], flat.reshape(array.shape[1:]))


def write_plain(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    with (folder / "data.bin").open("wb", buffering=0) as stream:
        for example in examples:
            for array in example.values():
                stream.write(array.data)


def open_plain(folder: Path, case: Case) -> RowOf:
    content = np.memmap(folder / "data.bin", np.uint8, "r").reshape(-1, case.row_bytes)

    def row(index: int) -> dict[str, Any]:
        start, found = 0, {}
        for name, shape, channels, kind in case.modalities:
            size = int(np.prod(shape)) * channels * np.dtype(kind).itemsize
            found[name] = content[index, start : start + size].view(kind)
            start += size
        return found

    return row


def write_parquet(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    """Bytes columns, eight rows a group: a uint8 list would be stored as 32-bit integers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.binary()) for name, *_ in case.modalities])
    with pq.ParquetWriter(folder / "data.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, len(examples), 8):
            group = examples[start : start + 8]
            columns = {name: [example[name].tobytes() for example in group] for name, *_ in case.modalities}
            writer.write_table(pa.table(columns, schema=schema))


def open_parquet(folder: Path, case: Case) -> RowOf:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "data.parquet", memory_map=True)

    def row(index: int) -> dict[str, Any]:
        group = file.read_row_group(index // 8, use_threads=False)
        return {name: group.column(name)[index % 8].as_buffer() for name, *_ in case.modalities}

    return row


def stream_parquet(folder: Path, case: Case) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(folder / "data.parquet", memory_map=True).iter_batches(8, use_threads=False):
        for index in range(batch.num_rows):
            yield {name: batch.column(name)[index].as_buffer() for name, *_ in case.modalities}


def write_webdataset(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    import webdataset

    with webdataset.TarWriter(str(folder / "data.tar")) as sink:
        for index, example in enumerate(examples):
            sink.write(
                {"__key__": f"{index:08d}", **{f"{name}.bin": array.tobytes() for name, array in example.items()}}
            )


def stream_webdataset(folder: Path, case: Case) -> Iterator[dict[str, Any]]:
    import webdataset

    for sample in webdataset.WebDataset(str(folder / "data.tar"), shardshuffle=False):
        yield {name: sample[f"{name}.bin"] for name, *_ in case.modalities}


def stream_tar(folder: Path, case: Case) -> Iterator[dict[str, Any]]:
    with tarfile.open(folder / "data.tar") as archive:
        found: dict[str, Any] = {}
        for member in archive:
            content = archive.extractfile(member)
            found[member.name.split(".")[1]] = content.read() if content else b""
            if len(found) == len(case.modalities):
                yield found
                found = {}


def write_tar(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for index, example in enumerate(examples):
            for name, array in example.items():
                entry = tarfile.TarInfo(f"{index:08d}.{name}.bin")
                entry.size = array.nbytes
                archive.addfile(entry, io.BytesIO(array.tobytes()))


def write_mds(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    from streaming import MDSWriter

    columns = {name: "bytes" for name, *_ in case.modalities}
    with MDSWriter(out=str(folder), columns=columns, exist_ok=True) as writer:
        for example in examples:
            writer.write({name: array.tobytes() for name, array in example.items()})


def open_mds(folder: Path, case: Case) -> RowOf:
    from streaming import LocalDataset

    dataset = LocalDataset(str(folder))
    return lambda index: dict(dataset[index])


def write_ours(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    write_shard(folder, case, examples)


FORMATS = (
    Format("plain file, memory map", "numpy", write_plain, open_plain),
    Format("MosaicML MDS", "streaming", write_mds, open_mds),
    Format("Parquet, bytes", "pyarrow", write_parquet, open_parquet, stream_parquet),
    Format("WebDataset", "webdataset", write_webdataset, stream=stream_webdataset),
    Format("tar, standard library", "tarfile", write_tar, stream=stream_tar),
)


class Ours:
    """Reads through :class:`ShardReader`, every row checked."""

    def __init__(self, folder: Path) -> None:
        from pipeline.shards.reader import ShardReader

        self.reader = ShardReader(str(folder))

    def read(self, case: Case, indices: np.ndarray, out: Arrays) -> None:
        for start in range(0, len(indices), case.batch_rows):
            chosen = indices[start : start + case.batch_rows]
            self.reader.read(chosen, out if len(chosen) == case.batch_rows else None)


def check(case: Case, examples: Sequence[Arrays], indices: np.ndarray, out: Arrays, what: str) -> None:
    """The last whole batch equals its source.

    Raises:
        RuntimeError: it does not.
    """
    last = len(indices) // case.batch_rows * case.batch_rows
    for slot, index in enumerate(indices[last - case.batch_rows : last].tolist()):
        for name, array in out.items():
            if not np.array_equal(array[slot], examples[index][name]):
                raise RuntimeError(f"{what} read a wrong {name} for row {index}")


def compare(case: Case, rows: int, root: Path, repeats: int, formats: Sequence[Format]) -> Iterator[Row]:
    """Writing, sequential and random reading of every format, in turns."""
    rows = rows // case.batch_rows * case.batch_rows
    examples, out = case.examples(rows), case.allocate(case.batch_rows)
    writers: dict[str, Callable[[], Any]] = {}
    for name, write in (("HiP shards", write_ours), *((form.name, form.write) for form in formats)):
        writers[name] = partial(write_fresh, write, root / name.replace(" ", "_").replace(",", ""), case, examples)
    yield from rates(case, "write", rows, writers, repeats)
    ours = Ours(root / "HiP_shards")
    for form in formats:
        form.folder = root / form.name.replace(" ", "_").replace(",", "")
    for what, indices in (("in order", np.arange(rows)), ("at random", np.random.default_rng(1).permutation(rows))):
        readers: dict[str, Callable[[], Any]] = {"HiP shards": partial(ours.read, case, indices, out)}
        for form in formats:
            if what == "in order" and form.stream is not None:
                readers[form.name] = partial(form.read_stream, case, out)
            elif form.open is not None:
                readers[form.name] = partial(form.read, case, indices, out)
        for name, read in readers.items():
            for array in out.values():
                array.fill(0)
            read()
            check(case, examples, indices, out, name)
        yield from rates(case, f"read {what}", rows, readers, repeats)


def write_fresh(
    write: Callable[[Path, Case, Sequence[Arrays]], None], folder: Path, case: Case, examples: Sequence[Arrays]
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder, case, examples)


def rates(case: Case, what: str, rows: int, actions: dict[str, Callable[[], Any]], repeats: int) -> Iterator[Row]:
    for name, timing in time_in_turns(actions, repeats).items():
        values = tuple(rows * case.row_bytes / 1e9 / seconds for seconds in timing.cpu_seconds)
        yield Row(f"{name} | {case.name}", what, "GB/CPU-s", values, HIGHER)


def main() -> None:
    """Run everything and write the result."""
    parser = arguments_parser(__doc__, repeats=3)
    parser.add_argument("--megabytes", type=int, default=150, help="size of each set")
    arguments = parser.parse_args()
    report = Report("data_peers", ("pyarrow", "webdataset", "mosaicml-streaming", "xxhash"))
    formats = [form for form in FORMATS if importlib.util.find_spec(form.package) is not None]
    for form in FORMATS:
        if form not in formats:
            report.note(f"{form.name} is not installed and was left out")
    for case in (TINY,) if arguments.quick else (AUDIO_VIDEO, IMAGE):
        rows = 2 * case.batch_rows if arguments.quick else arguments.megabytes * 1_000_000 // case.row_bytes
        with tempfile.TemporaryDirectory() as root:
            report.add(*compare(case, rows, Path(root), arguments.repeats, formats))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
