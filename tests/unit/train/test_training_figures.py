"""Figures show the right pixels, and are logged by a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_data import POINTS, SOUND, write_dataset

from hip_model.modality import Modality
from hip_model.ordering import flatten, token_order
from pipeline.tracking.client import Tracker
from pipeline.train import worker
from pipeline.train.figure_hook import choose_rows
from pipeline.train.figures import in_shape, position_maps, principal_components, reconstruction_grid, spectrogram
from pipeline.train.options import FigureOptions, MetricsOptions, PretrainOptions
from pipeline.train.runner import run_pretraining

VIDEO = Modality("video", 3 * 4 * 5, 3, (3, 4, 5), "hilbert")


def test_tokens_of_any_order_come_back_to_their_place() -> None:
    clip = np.arange(3 * 4 * 5 * 3).reshape(3, 4, 5, 3)
    tokens = flatten(clip, token_order("hilbert", (3, 4, 5)))
    assert np.array_equal(in_shape(tokens, VIDEO), clip)


def test_the_grid_shows_the_middle_frame_in_true_colours() -> None:
    clip = np.zeros((3, 4, 5, 3))
    clip[1, :, :, 0] = 255
    tokens = flatten(clip, token_order("hilbert", (3, 4, 5)))[None]
    figure = reconstruction_grid(VIDEO, tokens, np.ones((1, 60), bool), tokens * 0, 255.0)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert np.array_equal(shown[0], np.broadcast_to([1.0, 0, 0], (4, 5, 3)))
    assert np.array_equal(shown[3], shown[0])  # all is visible: nothing is replaced
    assert not shown[2].any()


def test_a_tone_is_a_line_in_its_spectrogram() -> None:
    wave = np.sin(2 * np.pi * 0.25 * np.arange(4096))
    power = spectrogram(wave, 256)
    assert set(power.argmax(axis=0)) == {64}


def test_components_find_the_direction_of_most_change() -> None:
    line = np.linspace(0, 1, 50)
    table = np.outer(line, [3.0, 0, 0, 0]) + 0.01 * np.random.default_rng(0).normal(size=(50, 4))
    first = principal_components(table)[:, 0]
    assert abs(np.corrcoef(first, line)[0, 1]) > 0.999
    assert (first.min(), first.max()) == (0, 1)


@pytest.mark.parametrize("modality", [VIDEO, Modality("image", 64, 3, (8, 8)), Modality("audio", 300, 1, (300,))])
def test_positions_are_drawn_for_every_kind(modality: Modality) -> None:
    figure = position_maps(modality, np.random.default_rng(0).normal(size=(modality.num_tokens, 8)))
    assert sum(len(axes.images) for axes in figure.axes) >= 1


def test_the_examples_that_are_shown_have_what_is_shown() -> None:
    present = {"video": np.array([0, 0, 1, 1, 0, 1], bool), "audio": np.array([1, 1, 1, 0, 1, 1], bool)}
    rows = choose_rows(present, 2)
    assert all(present[name][rows].sum() >= 2 for name in present)
    assert len(rows) <= 4
    assert choose_rows({"video": np.zeros(3, bool), "audio": np.ones(3, bool)}, 2).size == 2


class Kept(Tracker):
    """Keeps what a run logs."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.metrics: dict[str, float] = {}

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        assert Path(path).stat().st_size > 1000
        self.files.append(Path(path).name)

    def log_metrics(self, values: object, step: int) -> None:
        self.metrics |= dict(values)  # type: ignore[call-overload]


def test_clouds_and_stereo_sound_are_drawn_too(
    make_options: Callable[..., PretrainOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    specs = (replace(SOUND, num_channels=2), replace(POINTS, token_order="kd"))
    shards = write_dataset(tmp_path / "clouds", train=16, specs=specs)
    kept = Kept()
    monkeypatch.setattr(worker, "_open_tracker", lambda job: kept)
    run_pretraining(make_options(shards=shards, figures=FigureOptions(every_steps=100, examples=2)))
    names = {name.rsplit("_step_", 1)[0] for name in kept.files}
    assert names == {"reconstruction_points", "reconstruction_audio", "positions_audio"}  # a cloud's order is no place
    assert kept.metrics["latents/block_00"] > 0


def test_a_run_logs_pictures_and_the_size_of_its_latents(
    make_options: Callable[..., PretrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr(worker, "_open_tracker", lambda job: kept)
    metrics = MetricsOptions(every_steps=1, profile_steps=(3, 4))
    run_pretraining(make_options(figures=FigureOptions(every_steps=5, examples=2), metrics=metrics))
    assert kept.files.pop(0) == "trace_steps_3_to_4.json"
    names = {name.rsplit("_step_", 1)[0] for name in kept.files}
    assert names == {"reconstruction_image", "reconstruction_audio", "positions_image", "positions_audio"}
    assert len(kept.files) == 8  # at step 5 and at the end
    assert kept.metrics["latents/block_00"] > 0
    assert kept.metrics["gradients/block_00"] > 0
    assert kept.metrics["gradients/positions"] > 0
