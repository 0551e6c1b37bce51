"""Small real media files whose picture and sound follow a hidden class, for the demo and for tests."""

from __future__ import annotations

import math
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.seeding import derive_seed

_SAMPLE_RATE = 16_000
_FRAMES_PER_SECOND = 10


@dataclass(frozen=True)
class DemoClass:
    """What a hidden class decides: shape, colour (RGB), motion per second in picture widths, and tone."""

    name: str
    shape: str
    colour: tuple[int, int, int]
    motion: tuple[float, float]
    tone_hertz: float


DEMO_CLASSES = (
    DemoClass("blue_square_down", "square", (50, 80, 230), (0.0, 0.5), 330.0),
    DemoClass("green_circle_left", "circle", (40, 200, 70), (-0.5, 0.0), 520.0),
    DemoClass("red_circle_right", "circle", (230, 50, 40), (0.5, 0.0), 180.0),
    DemoClass("yellow_square_up", "square", (230, 210, 40), (0.0, -0.5), 800.0),
)


@dataclass(frozen=True)
class _Scene:
    """One drawn example: the class plus everything that varies inside it."""

    kind: DemoClass
    start: tuple[float, float]
    radius: float
    colour: tuple[float, float, float]
    background: tuple[float, float, float]
    tone_hertz: float
    phase: float
    loudness: float


def make_demo_clips(
    folder: Path | str,
    num_clips: int,
    seed: int = 0,
    *,
    num_sounds: int = 1,
    num_images: int = 4,
    size_pixels: int = 64,
    clip_seconds: float = 2.0,
) -> list[Path]:
    """Write H.264 + AAC mp4 clips, WAV sounds and JPEG / PNG pictures under one sub-folder per class.

    File *i* is a pure function of (seed, kind of file, i), so asking for more clips keeps the earlier ones. Existing
    files are kept.

    Returns:
        The paths of all files, sorted.
    """
    folder = Path(folder)
    paths: list[Path] = []
    for kind, count in (("clip", num_clips), ("sound", num_sounds), ("image", num_images)):
        for index in range(count):
            scene = _draw_scene(derive_seed(seed, kind, index), DEMO_CLASSES[index % len(DEMO_CLASSES)])
            suffix = {"clip": "mp4", "sound": "wav", "image": ("jpg", "png")[(index + index // len(DEMO_CLASSES)) % 2]}[
                kind
            ]
            path = folder / scene.kind.name / f"{kind}_{index:04d}.{suffix}"
            if not path.exists():
                _write_file(path, kind, scene, size_pixels, clip_seconds)
            paths.append(path)
    return sorted(paths)


def _write_file(path: Path, kind: str, scene: _Scene, size_pixels: int, clip_seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part_{path.name}")
    if kind == "clip":
        _write_clip(temporary, scene, size_pixels, clip_seconds)
    elif kind == "sound":
        _write_sound(temporary, scene, clip_seconds)
    else:
        from PIL import Image

        Image.fromarray(_picture(scene, size_pixels, 0.0)).save(temporary, quality=92)
    temporary.replace(path)


def _draw_scene(seed: int, kind: DemoClass) -> _Scene:
    random = np.random.default_rng(seed)
    colour = np.clip(np.array(kind.colour) + random.normal(0, 12, 3), 0, 255)
    background = random.uniform(15, 45) + random.uniform(-5, 5, 3)  # dark and nearly grey: the shape carries the colour
    return _Scene(
        kind=kind,
        start=(float(random.uniform()), float(random.uniform())),
        radius=float(random.uniform(0.2, 0.28)),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        background=(float(background[0]), float(background[1]), float(background[2])),
        tone_hertz=kind.tone_hertz * float(random.uniform(0.96, 1.04)),
        phase=float(random.uniform(0, 2 * math.pi)),
        loudness=float(random.uniform(0.3, 0.6)),
    )


def _picture(scene: _Scene, size_pixels: int, seconds: float) -> np.ndarray:
    """The scene at one moment, uint8 [size, size, 3]; the shape re-enters on the opposite side."""
    axis = (np.arange(size_pixels) + 0.5) / size_pixels
    centre = [(begin + speed * seconds) % 1.0 for begin, speed in zip(scene.start, scene.kind.motion, strict=True)]
    across, down = (np.abs((axis - position + 0.5) % 1.0 - 0.5) for position in centre)
    if scene.kind.shape == "circle":
        inside = np.hypot(across[None, :], down[:, None]) < scene.radius
    else:
        inside = np.maximum(across[None, :], down[:, None]) < scene.radius * 0.9
    shade = 0.7 + 0.6 * axis[:, None, None]
    picture = np.where(inside[:, :, None], np.array(scene.colour), np.array(scene.background) * shade)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _sound(scene: _Scene, seconds: float) -> np.ndarray:
    """The tone with a beat at the picture's pace, int16 [samples]."""
    time = np.arange(round(seconds * _SAMPLE_RATE)) / _SAMPLE_RATE
    tone = np.sin(2 * math.pi * scene.tone_hertz * time + scene.phase)
    beat = 0.75 + 0.25 * np.cos(2 * math.pi * time + scene.phase)
    return np.round(tone * beat * scene.loudness * 32_767).astype(np.int16)


def _write_clip(path: Path, scene: _Scene, size_pixels: int, seconds: float) -> None:
    import av

    options = {"fflags": "+bitexact"}  # no time or version stamps: the same seed gives the same bytes
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=_FRAMES_PER_SECOND)
        video.width = video.height = size_pixels
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        video.options = {"preset": "ultrafast", "crf": "18"}
        audio = container.add_stream("aac", rate=_SAMPLE_RATE, layout="mono")
        for index in range(round(seconds * _FRAMES_PER_SECOND)):
            picture = _picture(scene, size_pixels, index / _FRAMES_PER_SECOND)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(_sound(scene, seconds)[None], format="s16", layout="mono")
        samples.sample_rate = _SAMPLE_RATE
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))


def _write_sound(path: Path, scene: _Scene, seconds: float) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(_SAMPLE_RATE)
        stream.writeframes(_sound(scene, seconds).tobytes())
