"""A two-hour film passes through in the memory of a short one, and gives every clip."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("long_film.py")
CLIP_SECONDS = 2.56


def make_film(path: Path, seconds: int) -> Path:
    """Two frames and 8,000 samples a second, in a codec that encodes fast."""
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(8)]
    sound = noise.integers(-3000, 3000, (1, 8000), dtype=np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=2)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for second in range(seconds):
            for half in range(2):
                frame = av.VideoFrame.from_ndarray(pictures[(second + half) % 8], format="rgb24")
                frame.pts, frame.time_base = 2 * second + half, Fraction(1, 2)
                container.mux(video.encode(frame))
            samples = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, 8000 * second, Fraction(1, 8000)
            container.mux(audio.encode(samples))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def peaks(film: Path, dataset: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(film), str(dataset)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


@pytest.mark.fault
def test_two_hours_need_no_more_memory_than_twenty_minutes(tmp_path: Path) -> None:
    short = peaks(make_film(tmp_path / "short.mkv", 1200), tmp_path / "short")
    long = peaks(make_film(tmp_path / "long.mkv", 7200), tmp_path / "long")
    assert short["examples"] == [int(1200 / CLIP_SECONDS)]
    assert long["examples"] == [int(7200 / CLIP_SECONDS)]
    assert long["shards"] > 1
    print(short, long)
    assert long["decoder"] < short["decoder"] + 50
    assert long["writer"] < short["writer"] + 50 + 128  # what a writer holds in memory before it goes to disk
