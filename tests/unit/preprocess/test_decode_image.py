"""Pictures: upright RGB of the recipe's size, never decoded when the header claims too much."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from made_media import png_header
from PIL import Image

from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import ImageRecipe, TokenRecipe

RECIPE = TokenRecipe(image=ImageRecipe(12, 8))


def read(path: Path, recipe: TokenRecipe = RECIPE) -> np.ndarray:
    (example,) = decode_file(str(path), recipe)
    assert recipe.image is not None
    tokens = example.arrays["image"]
    assert tokens is not None
    return tokens.reshape(recipe.image.height, recipe.image.width, 3)


@pytest.mark.parametrize(("suffix", "lossless"), [("png", True), ("webp", True), ("jpg", False)])
def test_pixels_of_the_right_size_are_not_touched(tmp_path: Path, suffix: str, lossless: bool) -> None:
    rows = np.linspace(0, 255, 12)[:, None, None] * np.array([1.0, 0.5, 0.25])
    picture = np.broadcast_to(rows, (12, 8, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", lossless=True, quality=95)
    difference = np.abs(read(tmp_path / f"a.{suffix}").astype(int) - picture)
    assert difference.max() <= (0 if lossless else 24)


def test_exif_orientation(tmp_path: Path) -> None:
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:4, :6] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(picture, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_other_pixel_formats_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (8, 12)).save(tmp_path / f"a.{suffix}")
    assert read(tmp_path / f"a.{suffix}").shape == (12, 8, 3)


def test_dimension_bomb_is_refused_unseen(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(50_000, 50_000))
    started = time.monotonic()
    with pytest.raises(MediaError) as caught:
        read(path)
    assert caught.value.reason == "too_large"
    assert time.monotonic() - started < 2


def test_the_limit_is_the_users(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="40x30"):
        list(decode_file(str(tmp_path / "a.png"), RECIPE, LimitsOptions(max_pixels=1199)))


def test_cut_off_and_broken_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(MediaError) as caught:
            read(path)
        assert caught.value.reason in ("truncated", "corrupt"), suffix
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"junk" * 100)
    with pytest.raises(MediaError) as caught:
        read(tmp_path / "b.jpg")
    assert caught.value.reason in ("not_media", "corrupt")


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 12), (9, 8, 7)).save(tmp_path / "a.jpg", format="PNG")
    assert (read(tmp_path / "a.jpg") == (9, 8, 7)).all()
