"""The fitting rules, for any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.preprocess.resize import fit_picture

SIZES = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(["crop", "stretch", "pad"]))
def test_every_size_fits(rows: int, columns: int, height: int, width: int, fit: str) -> None:
    picture = np.full((rows, columns, 3), 77, np.uint8)
    fitted = fit_picture(picture, height, width, fit)
    assert fitted.shape == (height, width, 3)
    assert set(np.unique(fitted)) <= ({0, 77} if fit == "pad" else {77})
    assert (fitted == 77).any()


def test_crop_keeps_the_centre() -> None:
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    assert (fit_picture(picture, 10, 10, "crop") == 200).all()


def test_pad_keeps_everything_and_centres_it() -> None:
    fitted = fit_picture(np.full((10, 20, 3), 200, np.uint8), 20, 20, "pad")
    assert (fitted[5:15] == 200).all()
    assert not fitted[:5].any()
    assert not fitted[15:].any()


def test_shrinking_averages() -> None:
    checks = (np.indices((32, 32)).sum(0) % 2 * 200).astype(np.uint8)
    fitted = fit_picture(np.repeat(checks[:, :, None], 3, 2), 16, 16, "stretch")
    assert (fitted == 100).all()


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_right_size_is_untouched(fit: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_picture(picture, 7, 9, fit), picture)
