"""``run_preprocess`` with real Ray: real clips in, shards out, and everything that can go wrong with the files."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hip_model.ordering import token_order, unflatten
from pipeline.demo.clips import make_demo_clips
from pipeline.errors import DataError, UserError
from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.lock import dataset_lock
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import AudioRecipe, ImageRecipe, PointsRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.shards.reader import ShardReader

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

RECIPE = TokenRecipe(clip_seconds=1.0, token_order="morton", video=VideoRecipe(4, 32, 32), audio=AudioRecipe(2048))


def dataset_digest(folder: Path) -> dict[str, str]:
    """Every file of a dataset, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_demo_clips(folder, 12, seed=5)
    return folder


@pytest.fixture(scope="module")
def dataset(clips: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tokens"
    run_preprocess(options(clips, folder))
    return folder


def options(source: Path, shards: Path, **changes: Any) -> PreprocessOptions:
    return replace(PreprocessOptions(str(source), str(shards), RECIPE, validation_fraction=0.3), **changes)


def test_rows_are_exactly_what_the_decoder_gives(clips: Path, dataset: Path) -> None:
    reader = ShardReader(str(dataset))
    assert len(reader) == 12 * 2 + 2
    names = reader.manifest.label_names
    assert names == tuple(sorted(path.name for path in clips.iterdir()))
    batch = reader.read(np.arange(len(reader)))
    order = token_order("morton", (4, 32, 32))
    raster = replace(RECIPE, token_order="raster")
    for row, source in enumerate(batch.sources):
        examples = {example.start_seconds: example for example in decode_file(str(clips / source), raster)}
        expected = examples[float(batch.start_seconds[row])].arrays
        assert names[batch.labels[row][0]] == Path(source).parent.name
        np.testing.assert_array_equal(batch.arrays["audio"][row], expected["audio"])
        assert batch.present["video"][row] == (expected["video"] is not None)
        if expected["video"] is not None:
            pixels = unflatten(batch.arrays["video"][row], order, (4, 32, 32))
            np.testing.assert_array_equal(pixels, expected["video"].reshape(4, 32, 32, 3))
    assert len(set(batch.example_ids.tolist())) == len(reader)


def test_a_source_is_in_one_split_only(dataset: Path) -> None:
    sources = {}
    for split in ("train", "validation"):
        reader = ShardReader(str(dataset), split=split)
        sources[split] = set(reader.read(np.arange(len(reader))).sources)
    assert sources["train"]
    assert sources["validation"]
    assert not sources["train"] & sources["validation"]


def test_manifest_says_what_happened(dataset: Path) -> None:
    lineage = ShardReader(str(dataset)).manifest.lineage
    assert lineage["files"]["done"] == 13
    assert lineage["files"]["quarantined"] == {"not_in_recipe": 4}
    assert sum(sum(counts.values()) for counts in lineage["class_examples"].values()) == 26
    assert TokenRecipe.from_dict(lineage["recipe"]) == RECIPE
    reasons = pq.read_table(dataset / "quarantine.parquet").to_pydict()
    assert set(reasons["reason"]) == {"not_in_recipe"}
    assert not list(dataset.rglob(".*"))


def test_running_again_does_nothing(clips: Path, dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    report = run_preprocess(options(clips, dataset))
    assert report.tasks_run == 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_another_order_of_work_gives_the_same_bytes(clips: Path, dataset: Path, tmp_path: Path) -> None:
    run_preprocess(options(clips, tmp_path / "one", scale=replace(options(clips, dataset).scale, workers=1)))
    assert dataset_digest(tmp_path / "one") == dataset_digest(dataset)


def test_a_lost_shard_is_rebuilt_alone(clips: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "copy")
    lost = sorted((tmp_path / "copy").glob("train-*.arrow"))[1]
    lost.unlink()
    report = run_preprocess(options(clips, tmp_path / "copy"))
    assert report.tasks_run == 1
    assert dataset_digest(tmp_path / "copy") == dataset_digest(dataset)


def test_new_files_are_added_and_old_shards_stay(clips: Path, dataset: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(clips, source)
    shutil.copytree(dataset, folder)
    before = {name: digest for name, digest in dataset_digest(folder).items() if name.endswith(".arrow")}
    make_demo_clips(source, 14, seed=5)
    (source / "a_new_class").mkdir()
    twin = next(source.rglob("clip_0003.mp4"))
    shutil.copy(twin, source / "a_new_class" / "twin.mp4")
    report = run_preprocess(options(source, folder))
    after = dataset_digest(folder)
    assert before.items() <= after.items()
    assert report.manifest.num_examples() == 26 + 4
    assert report.counts["duplicates"] == 1
    assert len(set(ShardReader(str(folder)).read(np.arange(30)).example_ids.tolist())) == 30


@pytest.fixture
def spoiled(clips: Path, tmp_path: Path) -> Path:
    """Twelve good clips among files that are broken in different ways."""
    source = tmp_path / "spoiled"
    shutil.copytree(clips, source)
    good = next(source.rglob("clip_0000.mp4")).read_bytes()
    folder = source / "broken"
    folder.mkdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_bytes(b"this is no video " * 40)
    return source


def test_broken_files_are_quarantined(spoiled: Path, tmp_path: Path) -> None:
    report = run_preprocess(options(spoiled, tmp_path / "out", max_failed_fraction=0.2))
    assert report.manifest.num_examples() == 26
    table = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    reasons = {Path(row["path"]).name: row["reason"] for row in table if row["reason"] != "not_in_recipe"}
    assert reasons["empty.mp4"] == "empty_file"
    assert reasons["text.mp4"] == "not_media"
    assert reasons["cut.mp4"] in ("corrupt", "truncated")
    assert all(row["detail"] for row in table)
    again = run_preprocess(options(spoiled, tmp_path / "out", max_failed_fraction=0.2, retry_failed=True))
    assert again.tasks_run >= 1
    assert again.manifest.fingerprint == report.manifest.fingerprint


def test_too_many_failures_stop_the_run_and_a_larger_budget_goes_on(spoiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"3 of 20 files failed.*max_failed_fraction=0.1.*quarantine.parquet"):
        run_preprocess(options(spoiled, out, max_failed_fraction=0.1))
    assert not (out / "manifest.json").exists()
    assert (out / "quarantine.parquet").exists()
    assert run_preprocess(options(spoiled, out, max_failed_fraction=0.5)).manifest.num_examples() == 26


def test_failures_that_were_taken_out_of_the_source_or_mended_do_not_count(spoiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"3 of 20 files failed.*take them out of the source"):
        run_preprocess(options(spoiled, out, max_failed_fraction=0.1))
    (spoiled / "broken" / "cut.mp4").unlink()
    make_demo_clips(tmp_path / "whole", 1, seed=9)
    shutil.copy(next((tmp_path / "whole").rglob("*.mp4")), spoiled / "broken" / "text.mp4")
    report = run_preprocess(options(spoiled, out, max_failed_fraction=0.1))
    assert report.manifest.num_examples() == 28
    assert report.counts["failed"] == 3, "they are still told"


def test_only_broken_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.mp4").write_bytes(b"not a video %d" % number * 20)
    with pytest.raises(DataError, match="3 not_media"):
        run_preprocess(options(tmp_path / "in", tmp_path / "out"))
    with pytest.raises(DataError, match="none of the 3 files"):
        run_preprocess(options(tmp_path / "in", tmp_path / "out", max_failed_fraction=1.0))
    assert not (tmp_path / "out/manifest.json").exists()


def test_missing_empty_and_busy(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run_preprocess(options(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        run_preprocess(options(tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with dataset_lock(str(tmp_path / "busy")), pytest.raises(UserError, match="another run"):
        run_preprocess(options(clips, tmp_path / "busy"))


def test_another_recipe_into_the_same_folder(clips: Path, dataset: Path) -> None:
    other = TokenRecipe(image=ImageRecipe(8, 8))
    with pytest.raises(UserError, match="another folder"):
        run_preprocess(options(clips, dataset, tokens=other))


def test_media_of_another_kind_than_the_recipe(clips: Path, tmp_path: Path) -> None:
    points = TokenRecipe(points=PointsRecipe(16))
    with pytest.raises(DataError, match=r"none of the 17 files.*17 not_in_recipe.*tokens=image_224"):
        run_preprocess(options(clips, tmp_path / "out", tokens=points))


def test_many_files_are_hashed_on_the_cluster(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(300):
        path = source / f"class_{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), (number % 250, number // 250, 7), np.uint8)).save(path)
    report = run_preprocess(options(source, tmp_path / "out", tokens=TokenRecipe(image=ImageRecipe(8, 8))))
    assert report.counts["examples"] == 300
    reader = ShardReader(str(tmp_path / "out"))
    batch = reader.read(np.arange(300))
    for row, name in enumerate(batch.sources):
        number = int(Path(name).stem)
        assert (batch.arrays["image"][row] == (number % 250, number // 250, 7)).all()
        assert batch.labels[row] == (number % 3,)


def test_mixed_media_share_one_dataset(clips: Path, tmp_path: Path) -> None:
    mixed = replace(RECIPE, image=ImageRecipe(32, 32))
    report = run_preprocess(options(clips, tmp_path / "out", tokens=mixed))
    assert report.quarantined == {}
    reader = ShardReader(str(tmp_path / "out"))
    present = reader.read(np.arange(len(reader))).present
    assert [int(present[name].sum()) for name in ("video", "audio", "image")] == [24, 26, 4]
