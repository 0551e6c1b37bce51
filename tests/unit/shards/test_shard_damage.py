"""A changed byte is caught before the example is used, and named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_samples import build

from pipeline.errors import DataError
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.verify import verify_dataset

Build = Callable[..., tuple[str, Manifest]]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << (offset % 8)
    path.write_bytes(content)


def read_all(folder: str) -> list[bytes]:
    """Every row as bytes, read one at a time."""
    reader = ShardReader(folder)
    rows = []
    for index in range(len(reader)):
        batch = reader.read(np.array([index]))
        described = (
            f"{batch.sources}{batch.labels}{batch.start_seconds}{batch.example_ids}{sorted(batch.present.items())}"
        )
        rows.append(b"".join(array.tobytes() for array in batch.arrays.values()) + described.encode())
    return rows


def test_a_flipped_bit_is_named_with_shard_row_example_and_command(build_dataset: Build) -> None:
    folder, _ = build_dataset(train_00000=10, train_00001=10)
    reader = ShardReader(folder)
    tokens = reader.read(np.array([13])).arrays["audio"].tobytes()
    shard = Path(folder) / "train-00001.arrow"
    flip(shard, shard.read_bytes().index(tokens) + 11)
    damaged = ShardReader(folder)
    with pytest.raises(DataError) as caught:
        damaged.read(np.array([2, 13]))
    message = str(caught.value)
    assert "train-00001.arrow, row 3, example " in message
    assert "tokens of 'audio'" in message
    assert (
        f"delete {shard} and run the command that made the dataset again (hip preprocess source=/media/clips" in message
    )
    assert damaged.read(np.array([2, 12, 14])).sources[0] == "clips/ä2.mp4"  # its neighbours are still good


def test_wherever_a_bit_flips_no_changed_example_is_returned(build_dataset: Build) -> None:
    folder, _ = build_dataset(train_00000=12)
    shard = Path(folder) / "train-00000.arrow"
    good = read_all(folder)
    content = shard.read_bytes()
    refused = 0
    for offset in random.Random(5).sample(range(len(content)), 100):
        flip(shard, offset)
        try:
            assert read_all(folder) == good, f"byte {offset} of {len(content)} changed an example unnoticed"
        except DataError as error:
            refused += "train-00000" in str(error)
        finally:
            shard.write_bytes(content)
    assert refused > 30  # most bytes are tokens


def test_verify_names_every_damaged_row_and_the_remedy(build_dataset: Build) -> None:
    folder, manifest = build_dataset(train_00000=10, validation_00000=5)
    assert all(check.sound for check in verify_dataset(folder))
    reader = ShardReader(folder, "validation")
    shard = Path(folder) / "validation-00000.arrow"
    for index in (1, 3):
        flip(shard, shard.read_bytes().index(reader.read(np.array([index])).arrays["video"].tobytes()))
    checks = {check.name: check for check in verify_dataset(folder, manifest)}
    assert checks["train-00000.arrow"].sound
    problems = "\n".join(checks["validation-00000.arrow"].problems)
    assert "xxh3_128 is" in problems
    assert "row 1, example" in problems
    assert "row 3, example" in problems
    assert "row 0," not in problems
    assert f"delete {shard} and run" in checks["validation-00000.arrow"].remedy


def test_a_missing_truncated_or_foreign_shard_is_an_error_that_names_it(build_dataset: Build) -> None:
    folder, manifest = build_dataset(train_00000=6, train_00001=6)
    first, second = (Path(folder) / shard.name for shard in manifest.shards)
    content = first.read_bytes()
    first.write_bytes(content[:-100])
    with pytest.raises(
        DataError, match=r"train-00000.arrow has \d+ bytes, the manifest says .* delete .*train-00000.arrow"
    ):
        ShardReader(folder).read(np.array([0]))
    first.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match=r"train-00000\.arrow: no Arrow message where"):
        ShardReader(folder).read(np.array([0]))
    first.unlink()
    with pytest.raises(DataError, match=r"train-00000\.arrow is missing"):
        ShardReader(folder).read(np.array([0]))
    assert next(verify_dataset(folder)).problems == ("the file is missing",)
    assert len(ShardReader(folder).read(np.array([6])).sources) == 1
    assert second.exists()


def test_a_sound_shard_of_another_dataset_is_refused(tmp_path: Path) -> None:
    build(str(tmp_path / "one"), {"train-00000": 6}, start=16)
    build(str(tmp_path / "two"), {"train-00000": 6}, start=46)
    ours, theirs = (tmp_path / name / "train-00000.arrow" for name in ("one", "two"))
    assert ours.stat().st_size == theirs.stat().st_size
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(DataError, match=r"train-00000\.arrow: the rows of the record batch .* are not those"):
        ShardReader(str(tmp_path / "one")).read(np.array([0]))
