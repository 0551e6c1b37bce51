"""Figures: what they are computed from is right, and every kind of modality can be drawn."""

import numpy as np
import pytest
import torch
from evaluation_data import example, write_dataset, write_model

from hip_model.autoencoder import Reconstruction
from hip_model.modality import Modality
from hip_model.ordering import flatten, token_order
from pipeline.evaluate import examples, figures
from pipeline.evaluate.attention import on_picture
from pipeline.evaluate.options import EvaluateFigureOptions, MaskSweepOptions
from pipeline.evaluate.reconstruct import nearest_visible
from pipeline.evaluate.runner import evaluate

PNG = b"\x89PNG"


def test_tokens_go_back_to_their_pixels_in_every_order():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    for order in ("raster", "morton", "hilbert", "shuffled"):
        modality = Modality("image", 64, 3, (8, 8), order)
        np.testing.assert_array_equal(on_picture(flatten(image, token_order(order, (8, 8))), modality), image)


def test_nearest_visible_token():
    visible = torch.tensor([[False, True, False, False, False, True], [False] * 5 + [True]])
    assert nearest_visible(visible).tolist() == [[1, 1, 1, 1, 5, 5], [5] * 6]


def test_neighbour_score_of_a_smooth_table_is_high_and_of_noise_is_chance():
    y, x = np.meshgrid(np.linspace(0, 1.5, 16), np.linspace(0, 1.5, 16), indexing="ij")
    smooth = np.stack([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], -1)
    assert examples.neighbour_score(smooth)[0] > 0.95
    noise = np.random.default_rng(0).normal(size=(16, 16, 16))
    score, chance = examples.neighbour_score(noise)
    assert score < 5 * chance


@pytest.mark.parametrize(
    "modality",
    [
        Modality("video", 48, 3, (3, 4, 4), "morton"),
        Modality("grey", 16, 1, (4, 4)),
        Modality("audio", 64, 1, (64,)),
        Modality("stereo", 64, 2, (64,)),
        Modality("points", 20, 3, (20,)),
    ],
    ids=lambda modality: modality.name,
)
def test_reconstructions_of_every_kind_are_drawn(modality):
    random = np.random.default_rng(0)
    raw = torch.from_numpy(random.uniform(0, 255, (2, modality.num_tokens, modality.num_channels)).astype(np.float32))
    visible = torch.from_numpy(random.uniform(size=(2, modality.num_tokens)) < 0.5)
    name = modality.name
    answer = Reconstruction({name: raw + 1}, {name: raw}, {name: visible})
    picture = examples.reconstruction_picture(modality, answer, np.arange(2), 0.5)
    assert picture.png.startswith(PNG)
    assert picture.title == f"Reconstruction of {name}, 50% hidden"


def test_bars_leave_out_what_is_undefined_and_say_what_they_cut():
    values = {f"class {i} $&<": float(i) for i in range(60)} | {"none": float("nan")}
    picture = figures.bars("b", "Bars", values, "accuracy", limit=10)
    assert picture.png.startswith(PNG)
    assert "5 best and 5 worst of 60" in picture.caption


def test_projection_of_a_collapsed_model_says_that_all_examples_are_one():
    picture = figures.projection(np.ones((30, 8), np.float32), np.arange(30) % 2, ["a", "b"], 0)
    assert picture.png.startswith(PNG)
    assert "1 of them different" in picture.caption


def test_projection_draws_unlabelled_and_few_examples():
    features = np.random.default_rng(0).normal(size=(6, 4))
    assert figures.projection(features, np.array([-1, 0, 1, 1, 0, -1]), ["a", "b"], 0).png.startswith(PNG)


def test_reconstruction_report_shows_examples_attention_and_positions(options):
    wanted = options(
        task="reconstruction", mask=MaskSweepOptions(ratios=(0.85,)), figures=EvaluateFigureOptions(examples=2)
    )
    report = evaluate(wanted)
    expected = {
        "psnr",
        "reconstruction_image",
        "reconstruction_audio",
        "attention_0",
        "attention_1",
        "positions_image",
        "positions_audio",
    }
    assert expected == set(report.figures)


def test_examples_that_lack_a_modality_are_drawn_without_it(options, tmp_path):
    rows = [example(0, "train", without="audio"), example(1, "train", without="image"), example(2, "train")]
    shards = write_dataset(tmp_path / "partial", {"train": rows, "validation": rows})
    model = write_model(tmp_path / "model", shards)
    report = evaluate(
        options(
            task="reconstruction",
            shards=shards,
            model=model,
            mask=MaskSweepOptions(ratios=(0.85,)),
            figures=EvaluateFigureOptions(examples=3),
        )
    )
    assert report.metrics["psnr/audio/mask_0.85"].count == 2
    assert "reconstruction_audio" in report.figures
