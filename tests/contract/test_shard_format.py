"""Format version 1 of token shards: what other tools may rely on, and old files that must stay readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.verify import verify_dataset
from pipeline.shards.writer import ShardWriter

STORED = Path(__file__).parent / "data" / "shards_v1"
SPECS = (
    ModalitySpec("video", (2, 2, 2), 3, "uint8", "hilbert", {"frames_per_second": 3.125}),
    ModalitySpec("audio", (6,), 1, "int16", sampling={"sample_rate": 48000}),
    ModalitySpec("points", (3,), 3, "float32"),
)


def stored_row(index: int) -> ExampleRow:
    """What ``data/shards_v1`` holds at ``index``: plain arithmetic, so that any language can check it."""
    return ExampleRow(
        example_id=bytes(range(index, index + 16)),
        source=f"clips/{index}.mp4",
        start_seconds=2.5 * index,
        labels=tuple(range(index % 3)),
        arrays={
            "video": (np.arange(24).reshape(8, 3) * (index + 1) % 256).astype(np.uint8),
            "audio": None if index == 2 else (np.arange(6).reshape(6, 1) * -1000 * index).astype(np.int16),
            "points": (np.arange(9).reshape(3, 3) / 4 - index).astype(np.float32),
        },
    )


def write_dataset(folder: Path) -> Manifest:
    """The dataset of ``data/shards_v1``."""
    records = []
    for name, rows in (("train-00000", range(4)), ("validation-00000", range(4, 6))):
        with ShardWriter(str(folder), name, SPECS, {"recipe": {"clip_seconds": 2.5}}) as writer:
            for index in rows:
                writer.add(stored_row(index))
            records.append(writer.close())
    manifest = Manifest(SPECS, tuple(records), ("cat", "dog"), {"source": "clips", "recipe": {"clip_seconds": 2.5}})
    manifest.write(str(folder))
    return manifest


def test_files_of_version_1_stay_readable() -> None:
    reader = ShardReader(str(STORED))
    assert reader.manifest.fingerprint == json.loads((STORED / "manifest.json").read_text())["fingerprint"]
    batch = reader.read(np.array([5, 0, 2]))
    for slot, index in enumerate((5, 0, 2)):
        row = stored_row(index)
        for name, tokens in row.arrays.items():
            assert batch.present[name][slot] == (tokens is not None)
            if tokens is not None:
                assert batch.arrays[name][slot].tobytes() == tokens.tobytes()
        assert (batch.sources[slot], batch.start_seconds[slot]) == (row.source, row.start_seconds)
        assert batch.labels[slot] == row.labels
    assert all(check.sound for check in verify_dataset(str(STORED)))


def test_this_release_writes_the_same_rows_that_version_1_holds(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    stored = Manifest.load(str(STORED))
    assert manifest.modalities == stored.modalities
    assert [shard.statistics for shard in manifest.shards] == [shard.statistics for shard in stored.shards]
    for shard in stored.shards:
        tables = []
        for folder in (tmp_path, STORED):
            with pa.memory_map(str(folder / shard.name)) as source:
                tables.append(pa.ipc.open_file(source).read_all())
        assert tables[0].equals(tables[1], check_metadata=True)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    with pa.memory_map(str(STORED / "train-00000.arrow")) as source:
        return pa.ipc.open_file(source).read_all()


def test_plain_arrow_reads_a_shard_with_its_documented_columns(table: pa.Table) -> None:
    assert {field.name: (str(field.type), field.nullable) for field in table.schema} == {
        "example_id": ("fixed_size_binary[16]", False),
        "video": (str(pa.fixed_shape_tensor(pa.uint8(), [8, 3])), True),
        "video_xxh3": ("uint64", True),
        "audio": (str(pa.fixed_shape_tensor(pa.int16(), [6, 1])), True),
        "audio_xxh3": ("uint64", True),
        "points": (str(pa.fixed_shape_tensor(pa.float32(), [3, 3])), True),
        "points_xxh3": ("uint64", True),
        "source": ("string", False),
        "start_seconds": ("double", False),
        "labels": ("list<item: int32>", False),
        "row_xxh3": ("uint64", False),
    }
    video = table.column("video").chunk(0).to_numpy_ndarray()
    assert np.array_equal(video[1], stored_row(1).arrays["video"])
    assert table.column("video_xxh3")[1].as_py() == xxhash.xxh3_64_intdigest(video[1].tobytes())
    assert table.column("audio")[2].as_py() is None
    assert table.column("audio_xxh3")[2].as_py() is None


def test_a_shard_alone_explains_itself(table: pa.Table) -> None:
    described = json.loads(table.schema.metadata[b"hip_shard"])
    assert described["format_version"] == 1
    assert described["metadata"] == {"recipe": {"clip_seconds": 2.5}}
    assert [ModalitySpec.from_dict(values) for values in described["modalities"]] == list(SPECS)


def test_the_manifest_has_its_documented_keys() -> None:
    values: dict[str, Any] = json.loads((STORED / "manifest.json").read_text())
    assert values.keys() == {
        "format_version",
        "fingerprint",
        "modalities",
        "shards",
        "num_examples",
        "splits",
        "statistics",
        "label_names",
        "lineage",
        "notes",
    }
    assert values["shards"][0].keys() == {
        "name",
        "split",
        "rows",
        "bytes",
        "xxh3_128",
        "rows_per_batch",
        "batches",
        "statistics",
    }
    assert values["splits"] == {"train": 4, "validation": 2}
    assert values["modalities"][0] == {
        "name": "video",
        "shape": [2, 2, 2],
        "num_tokens": 8,
        "num_channels": 3,
        "dtype": "uint8",
        "token_order": "hilbert",
        "sampling": {"frames_per_second": 3.125},
    }
    assert values["fingerprint"].startswith("sha256:")
    assert values["shards"][0]["bytes"] == (STORED / "train-00000.arrow").stat().st_size
    assert values["shards"][0]["xxh3_128"] == xxhash.xxh3_128_hexdigest((STORED / "train-00000.arrow").read_bytes())
