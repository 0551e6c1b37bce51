"""The demo's media are real, repeatable and follow their class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline.demo.clips import DEMO_CLASSES, make_demo_clips


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


def test_same_seed_same_bytes_and_more_clips_keep_the_earlier_ones(tmp_path: Path) -> None:
    make_demo_clips(tmp_path / "a", 5, seed=3)
    make_demo_clips(tmp_path / "b", 5, seed=3)
    make_demo_clips(tmp_path / "more", 7, seed=3)
    first = _digests(tmp_path / "a")
    assert first == _digests(tmp_path / "b")
    assert first.items() <= _digests(tmp_path / "more").items()
    make_demo_clips(tmp_path / "other", 5, seed=4)
    assert not set(first.values()) & set(_digests(tmp_path / "other").values())


def test_clips_hold_both_streams_and_the_class_colour(tmp_path: Path) -> None:
    for path in make_demo_clips(tmp_path, 4, seed=1, num_sounds=0, num_images=0):
        kind = next(kind for kind in DEMO_CLASSES if kind.name == path.parent.name)
        with av.open(str(path)) as container:
            assert container.streams.audio[0].codec_context.name == "aac"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 20
        assert frames[0].shape == (64, 64, 3)
        distance = np.abs(np.stack(frames).astype(int) - np.array(kind.colour)).sum(-1)
        assert (distance < 90).mean() > 0.04


def test_tone_of_a_clip_is_its_class_tone(tmp_path: Path) -> None:
    for path in make_demo_clips(tmp_path, 4, seed=2, num_sounds=0, num_images=0):
        kind = next(kind for kind in DEMO_CLASSES if kind.name == path.parent.name)
        with av.open(str(path)) as container:
            rate = container.streams.audio[0].rate
            wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
        loudest = np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()]
        assert abs(loudest / kind.tone_hertz - 1) < 0.06


def test_images_are_jpeg_and_png(tmp_path: Path) -> None:
    paths = make_demo_clips(tmp_path, 0, seed=0, num_images=4)
    formats = {Image.open(path).format for path in paths if path.suffix in {".jpg", ".png"}}
    assert formats == {"JPEG", "PNG"}
