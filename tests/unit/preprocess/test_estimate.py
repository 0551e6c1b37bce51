"""What preprocessing will take, from a sample of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline.demo.clips import make_demo_clips
from pipeline.errors import DataError, UserError
from pipeline.preprocess import estimate
from pipeline.preprocess.estimate import estimate_preprocessing
from pipeline.preprocess.ledger import TaskRecord
from pipeline.preprocess.recipe import AudioRecipe, ImageRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.task import ShardTask

RECIPE = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(4, 32, 32), audio=AudioRecipe(2048))


def test_a_small_folder_is_counted_whole(tmp_path: Path) -> None:
    make_demo_clips(tmp_path, 5, num_sounds=1, num_images=0)
    told = estimate_preprocessing(str(tmp_path), RECIPE)
    assert (told.files, told.sampled) == (6, 6)
    assert told.examples == 5 * 2 + 2
    assert 0 < told.core_seconds < 60


def test_a_large_folder_follows_from_a_sample(tmp_path: Path) -> None:
    recipe = TokenRecipe(image=ImageRecipe(16, 16))
    for number in range(80):
        Image.new("RGB", (20 + number, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    told = estimate_preprocessing(str(tmp_path), recipe)
    assert (told.files, told.sampled) == (80, 16)
    assert told.examples == pytest.approx(80, rel=0.1)


def test_what_decoding_loads_once_is_not_counted_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_demo_clips(tmp_path, 3, num_sounds=0, num_images=0)
    decode, used = estimate.run_task, []

    def first_is_slow(task: ShardTask) -> TaskRecord:
        used.append(1.0 if used else 1000.0)
        return decode(task)

    monkeypatch.setattr(estimate, "run_task", first_is_slow)
    monkeypatch.setattr(estimate, "_cpu_seconds", lambda: sum(used))
    assert estimate_preprocessing(str(tmp_path), RECIPE).core_seconds == 3.0  # a task for each file


def test_files_that_give_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match="none of 1 files"):
        estimate_preprocessing(str(tmp_path), RECIPE)
    with pytest.raises(UserError, match="does not exist"):
        estimate_preprocessing(str(tmp_path / "nowhere"), RECIPE)
