"""What goes into a shard comes out bit for bit, and the same rows give the same file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, UserError
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec, rows_per_batch
from pipeline.shards.statistics import ChannelSums
from pipeline.shards.writer import ShardWriter

SPECS = st.lists(
    st.builds(
        ModalitySpec,
        name=st.sampled_from(["video", "audio", "image", "points"]),
        shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
        num_channels=st.integers(1, 4),
        dtype=st.sampled_from(["uint8", "int8", "int16", "float32"]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda spec: spec.name,
)


def random_tokens(spec: ModalitySpec, random: np.random.Generator) -> np.ndarray:
    shape = (spec.num_tokens, spec.num_channels)
    if spec.dtype == "float32":
        return random.normal(size=shape).astype(np.float32)
    limits = np.iinfo(spec.dtype)
    return random.integers(limits.min, limits.max, shape, dtype=spec.dtype, endpoint=True)


def random_rows(specs: list[ModalitySpec], count: int, seed: int) -> list[ExampleRow]:
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        kept = index % len(specs)  # at least one modality stays
        arrays = {
            spec.name: random_tokens(spec, random) if place == kept or random.random() < 0.6 else None
            for place, spec in enumerate(specs)
        }
        labels = tuple(int(label) for label in random.integers(-5, 2**31 - 1, random.integers(0, 4)))
        rows.append(ExampleRow(random.bytes(16), f"källa {index}", float(random.normal()), labels, arrays))
    return rows


def write(folder: str, specs: list[ModalitySpec], rows: list[ExampleRow]) -> Manifest:
    with ShardWriter(folder, "train-00000", specs, {"seed": 1}) as writer:
        for row in rows:
            writer.add(row)
        record = writer.close()
    manifest = Manifest(tuple(specs), (record,))
    manifest.write(folder)
    return manifest


@settings(max_examples=40, deadline=None)
@given(specs=SPECS, count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_every_row_comes_back_bit_for_bit_and_the_file_is_reproducible(
    specs: list[ModalitySpec], count: int, seed: int
) -> None:
    rows = random_rows(specs, count, seed)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        manifest = write(first, specs, rows)
        assert write(second, specs, rows).fingerprint == manifest.fingerprint
        for name in ("train-00000.arrow", "manifest.json"):
            assert (Path(first) / name).read_bytes() == (Path(second) / name).read_bytes()
        wanted = np.random.default_rng(seed).integers(0, count, 15)
        batch = ShardReader(first).read(wanted)
        for slot, index in enumerate(wanted.tolist()):
            row = rows[index]
            for spec in specs:
                tokens = row.arrays[spec.name]
                assert bool(batch.present[spec.name][slot]) == (tokens is not None)
                stored = np.zeros((spec.num_tokens, spec.num_channels), spec.dtype) if tokens is None else tokens
                assert batch.arrays[spec.name][slot].tobytes() == stored.tobytes()
            assert batch.labels[slot] == row.labels
            assert batch.sources[slot] == row.source
            assert batch.start_seconds[slot] == row.start_seconds
            assert batch.example_ids[slot] == np.frombuffer(row.example_id[:8], "<i8")[0]


def test_a_dataset_of_many_record_batches_and_shards_reads_in_any_order(tmp_path: Path) -> None:
    spec = ModalitySpec("image", (4,), 1, "uint8")
    rows = [
        ExampleRow(bytes([n % 256]) * 16, str(n), 0.0, (), {"image": np.full((4, 1), n % 251, np.uint8)})
        for n in range(3000)
    ]
    records = []
    for number in range(2):
        with ShardWriter(str(tmp_path), f"train-{number:05d}", [spec]) as writer:
            for row in rows[number * 1500 : (number + 1) * 1500]:
                writer.add(row)
            records.append(writer.close())
    Manifest((spec,), tuple(records)).write(str(tmp_path))
    reader = ShardReader(str(tmp_path), "train")
    assert reader.block_bounds().tolist() == [0, 1024, 1500, 2524, 3000]
    wanted = np.random.default_rng(0).permutation(3000)
    batch = reader.read(wanted)
    assert batch.sources == [str(index) for index in wanted]
    assert np.array_equal(batch.arrays["image"][:, 0, 0], wanted % 251)
    with pytest.raises(IndexError, match="indices go from 0 to 2999"):
        reader.read(np.array([3000]))


def test_reading_into_given_arrays_uses_them(tmp_path: Path) -> None:
    specs = [ModalitySpec("image", (4,), 1, "uint8")]
    write(str(tmp_path), specs, random_rows(specs, 4, 0))
    out = {"image": np.full((3, 4, 1), 7, np.uint8)}
    batch = ShardReader(str(tmp_path)).read(np.array([2, 0, 2]), out)
    assert batch.arrays["image"] is out["image"]
    assert np.array_equal(out["image"][0], out["image"][2])


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "int8", "int16", "float32"]),
    tokens=st.integers(1, 900),
    channels=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_sums_equal_numpy_over_everything(dtype: str, tokens: int, channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    spec = ModalitySpec("x", (tokens,), channels, dtype)
    first, second = random_tokens(spec, random), random_tokens(spec, random)
    merged = ChannelSums.of(first) + ChannelSums.of(second)
    both = np.concatenate([first, second]).astype(np.float64)
    assert (merged.examples, merged.count) == (2, 2 * tokens)
    assert np.allclose(merged.mean, both.mean(axis=0), rtol=1e-6, atol=1e-9)
    assert np.allclose(merged.std, both.std(axis=0), rtol=1e-5, atol=1e-6)
    assert (merged.minimum, merged.maximum) == (tuple(both.min(axis=0)), tuple(both.max(axis=0)))
    if dtype != "float32":
        assert merged.total == tuple(both.astype(np.int64).sum(axis=0).tolist())
        assert merged.squares == tuple((both.astype(np.int64) ** 2).sum(axis=0).tolist())
    assert ChannelSums.from_dict(merged.to_dict()) == merged


def test_sums_of_the_largest_bytes_stay_exact() -> None:
    sums = ChannelSums.of(np.full((401_408, 3), 255, np.uint8))
    assert sums.total == (255 * 401_408,) * 3
    assert sums.squares == (255**2 * 401_408,) * 3
    assert sums.std == (0.0,) * 3


@pytest.mark.parametrize(("dtype", "value"), [("int16", -32768), ("int16", 32767)])
@pytest.mark.parametrize("channels", [1, 2])
def test_sums_of_the_loudest_sound_stay_exact(dtype: str, value: int, channels: int) -> None:
    tokens = np.full((300_001, channels), value, dtype)
    tokens[::7] = 1
    sums = ChannelSums.of(tokens)
    assert sums.total == (int(tokens[:, 0].astype(np.int64).sum()),) * channels
    assert sums.squares == (int((tokens[:, 0].astype(np.int64) ** 2).sum()),) * channels
    assert (sums.minimum, sums.maximum) == ((min(1, value),) * channels, (max(1, value),) * channels)


def test_record_batches_have_the_measured_sizes() -> None:
    video = ModalitySpec("video", (8, 224, 224), 3, "uint8")
    audio = ModalitySpec("audio", (122_880,), 1, "int16")
    assert video.row_bytes + audio.row_bytes == 1_449_984
    assert rows_per_batch([video, audio]) == 16
    assert rows_per_batch([ModalitySpec("image", (224, 224), 3, "uint8")]) == 128
    assert rows_per_batch([ModalitySpec("video", (300, 512, 512), 3, "uint8")]) == 1


def good_row(**changes: object) -> ExampleRow:
    values = {"example_id": bytes(16), "source": "a", "start_seconds": 0.0, "labels": (), **changes}
    values.setdefault("arrays", {"points": np.zeros((5, 3), np.float32)})
    return ExampleRow(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (good_row(example_id=b"short"), "example_id must be 16 bytes"),
        (
            good_row(arrays={"points": np.zeros((5, 2), np.float32)}),
            r"float32\[5, 2\], but the dataset stores float32\[5, 3\]",
        ),
        (good_row(arrays={"points": np.zeros((5, 3))}), r"points is float64"),
        (good_row(arrays={"points": np.full((5, 3), np.nan, np.float32)}), "not finite"),
        (good_row(arrays={"points": None}), "none of the modalities"),
        (good_row(arrays={"image": None}), r"modalities \['image'\] that this dataset does not store"),
        (good_row(labels=(2**31,)), "do not fit 32 bits"),
        (good_row(source="\udcff.mp4"), "not valid UTF-8"),
    ],
)
def test_a_row_that_would_not_come_back_is_refused(tmp_path: Path, row: ExampleRow, message: str) -> None:
    writer = ShardWriter(str(tmp_path), "train-00000", [ModalitySpec("points", (5,), 3, "float32")])
    with writer, pytest.raises(DataError, match=message):
        writer.add(row)
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_under_the_name_before_close(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "train-00000", [ModalitySpec("points", (5,), 3, "float32")]) as writer:
        writer.add(good_row())
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.arrow"]


def test_an_empty_shard_is_a_valid_file(tmp_path: Path) -> None:
    manifest = write(str(tmp_path), [ModalitySpec("points", (5,), 3, "float32")], [])
    assert len(ShardReader(str(tmp_path))) == 0
    assert manifest.normalisation() == {"points": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    with pa.memory_map(str(tmp_path / "train-00000.arrow")) as source:
        assert pa.ipc.open_file(source).num_record_batches == 0


@pytest.mark.parametrize("name", ["../train-00000", "train", "Train-00000", "/train-00000", "train-1"])
def test_bad_shard_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not usable; wanted <split>-<5 digits>"):
        ShardWriter(str(tmp_path), name, [ModalitySpec("points", (5,), 3, "float32")])
