from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from hip_model.ordering import flatten, token_order
from pipeline.registry.render import render
from pipeline.shards.schema import ModalitySpec


@pytest.mark.parametrize("order", ["raster", "morton", "hilbert"])
def test_a_picture_comes_back_exactly_in_any_token_order(order: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    spec = ModalitySpec("image", (8, 12), 3, "uint8", order)
    suffix, content = render(spec, flatten(picture, token_order(order, (8, 12))))
    assert suffix == "png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), picture)


def test_a_sound_comes_back_exactly() -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, (400, 1), dtype=np.int16)
    suffix, content = render(ModalitySpec("audio", (400,), 1, "int16", sampling={"sample_rate": 4000}), samples)
    assert suffix == "wav"
    with wave.open(io.BytesIO(content)) as stream:
        assert stream.getframerate() == 4000
        np.testing.assert_array_equal(np.frombuffer(stream.readframes(400), "<i2"), samples[:, 0])


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_a_video_keeps_its_length_and_colours(size: tuple[int, int]) -> None:
    spec = ModalitySpec("video", (4, *size), 3, "uint8", sampling={"clip_seconds": 2.0})
    grey = np.repeat(np.arange(40, 200, 40, dtype=np.uint8), size[0] * size[1])[:, None].repeat(3, axis=1)
    suffix, content = render(spec, grey)
    assert suffix == "mp4"
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == pytest.approx(2.0)
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    np.testing.assert_allclose(means, [40, 80, 120, 160], atol=3)


def test_points_are_kept_as_numbers() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    suffix, content = render(ModalitySpec("points", (9,), 3, "float32", "kd"), points)
    assert suffix == "npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(content), allow_pickle=False), points)
