"""Real files from many encoders: they decode as ffmpeg's command line decodes them, or have the right reason."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.preprocess.box import decode_file_boxed
from pipeline.preprocess.decode import DecodedExample, decode_file
from pipeline.preprocess.limits import MediaError
from pipeline.preprocess.recipe import AudioRecipe, PointsRecipe, TokenRecipe, VideoRecipe

DATA = Path(__file__).parents[2].parent / "shared" / "data"
MEDIA = DATA / "media"
SECOND = 1.0

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not MEDIA.is_dir(), reason="no real media on this machine")]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg command line to compare with")

EXPECTED = {
    "audio_first.mp4": (9, "video audio"),
    "av1_video.mkv": (5, "video"),
    "bigbuckbunny_720p_51.mp4": (5, "video audio"),
    "bunny_vp8_vorbis.webm": (30, "video audio"),
    "chaplin.mp4": (9, "video audio"),
    "corrupted.mp4": (0, "corrupt"),
    "cover_art.mp3": (1, "audio"),
    "edit_list_66x50.mov": (1, "video"),
    "empty.webm": (0, "empty_file"),
    "fire2_rotated180.mp4": (2, "video audio"),
    "flipping_a_pancake.mkv": (10, "video audio"),
    "h265_10bits.mp4": (1, "video"),
    "nasa_13013_multistream.mp4": (13, "video audio"),
    "no_duration.webm": (5, "video audio"),
    "one_pixel_yuv444.mp4": (5, "video"),
    "rain.mp3": (60, "audio"),
    "rotated_90.mov": (0, "too_short"),
    "sync_test.mp4": (63, "video audio"),
    "test_audio.flac": (10, "audio"),
    "unordered.mov": (0, "too_short"),
    "variable_rate_1080p.mp4": (2, "video"),
}
"""Clips of one second and the modalities that some of them have, or the reason for quarantine."""

VIDEOS = [name for name, (count, what) in EXPECTED.items() if count and "video" in what]
SOUNDS = [name for name, (count, what) in EXPECTED.items() if count and "audio" in what]


def decode(path: Path, recipe: TokenRecipe) -> list[DecodedExample]:
    return list(decode_file_boxed(str(path), recipe))


@pytest.mark.parametrize("name", EXPECTED)
def test_clips_or_reason(name: str) -> None:
    recipe = TokenRecipe(clip_seconds=SECOND, video=VideoRecipe(4, 32, 32), audio=AudioRecipe(8000))
    count, what = EXPECTED[name]
    if not count:
        with pytest.raises(MediaError) as caught:
            decode(MEDIA / name, recipe)
        assert caught.value.reason == what
        return
    examples = decode(MEDIA / name, recipe)
    assert len(examples) == count
    found = [kind for kind in ("video", "audio") if any(example.arrays[kind] is not None for example in examples)]
    assert " ".join(found) == what


def output_of(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def probe(path: Path) -> list[dict[str, object]]:
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    streams: list[dict[str, object]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[
        "streams"
    ]
    return streams


def frame_times(path: Path, stream: int) -> list[float]:
    """Presentation times of the frames that ffmpeg's tools see."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        str(stream),
        "-show_entries",
        "frame=best_effort_timestamp_time",
    ]
    lines = (
        subprocess.run([*command, "-of", "csv=p=0", str(path)], check=True, capture_output=True).stdout.decode().split()
    )
    return [float(line.strip(",")) for line in lines]


def ffmpeg_frames(path: Path, stream: int, count: int) -> np.ndarray:
    """The first frames at native size, upright, as ffmpeg's command line decodes and rotates them."""
    head = ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:{stream}", "-vsync", "0", "-frames:v", str(count)]
    raw = output_of([*head, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
    width, height = upright_size(path, stream)
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def upright_size(path: Path, stream: int) -> tuple[int, int]:
    entry = probe(path)[stream]
    width, height = int(str(entry["width"])), int(str(entry["height"]))
    sides = entry.get("side_data_list") or [{}]
    turned = any(abs(int(side.get("rotation", 0))) % 180 == 90 for side in sides)  # type: ignore[attr-defined, union-attr]
    return (height, width) if turned else (width, height)


def chosen_stream(notes: dict[str, object], kind: str) -> int:
    return int(str(notes[kind]).split()[1])


@needs_ffmpeg
@pytest.mark.parametrize("name", [*VIDEOS, "rotated_90.mov", "unordered.mov"])
def test_pixels_equal_ffmpegs_at_native_size(name: str) -> None:
    path = MEDIA / name
    seconds = 0.1 if name in ("rotated_90.mov", "unordered.mov") else 0.41  # no moment on a frame's edge
    tiny = TokenRecipe(clip_seconds=seconds, minimum_coverage=0.5, video=VideoRecipe(3, 8, 8))
    stream = chosen_stream_of(path, tiny)
    width, height = upright_size(path, stream)
    recipe = replace(tiny, video=VideoRecipe(3, height, width, "stretch"))
    first = next(decode_file(str(path), recipe)).arrays["video"]
    assert first is not None
    stamps = frame_times(path, stream)
    times = [stamp - stamps[0] for stamp in stamps]
    moments = [(part + 0.5) * seconds / 3 for part in range(3)]
    wanted = [max(index for index, time in enumerate(times) if time <= moment + 1e-6) for moment in moments]
    reference = ffmpeg_frames(path, stream, max(wanted) + 1)[wanted]
    difference = np.abs(first.reshape(3, height, width, 3).astype(int) - reference)
    if name == "h265_10bits.mp4":  # FFmpeg changed its 10-bit colour conversion; its planes are equal bit for bit
        assert difference.mean() < 4
        return
    assert np.mean(difference > 2) < 0.001, f"{difference.max()} levels, {np.mean(difference > 2):.4f} of the values"


def chosen_stream_of(path: Path, recipe: TokenRecipe) -> int:
    notes: dict[str, object] = {}
    next(decode_file(str(path), recipe, notes=notes))
    return chosen_stream(notes, "video" if recipe.video else "audio")


@needs_ffmpeg
@pytest.mark.parametrize("name", [name for name in SOUNDS if name not in ("no_duration.webm", "fire2_rotated180.mp4")])
def test_samples_equal_ffmpegs(name: str) -> None:
    path = MEDIA / name
    recipe = TokenRecipe(clip_seconds=SECOND, audio=AudioRecipe(16_000))
    stream = chosen_stream_of(path, recipe)
    ours = np.concatenate([example.arrays["audio"][:, 0] for example in decode(path, recipe)])  # type: ignore[index]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(path),
        "-map",
        f"0:{stream}",
        "-ac",
        "1",
        "-ar",
        "16000",
        "-f",
        "s16le",
        "-",
    ]
    theirs = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.int16)
    length = min(len(ours), len(theirs)) - 200
    assert length > 15_000
    difference = np.abs(ours[100:length].astype(int) - theirs[100:length])
    assert np.quantile(difference, 0.999) <= 3, f"largest {difference.max()}, mean {difference.mean():.2f}"


def test_flash_and_beep_of_the_synchronisation_film_coincide() -> None:
    """``sync_test.mp4`` shows a flash with each beep: their onsets differ by less than one frame (1/30 s)."""
    recipe = TokenRecipe(clip_seconds=SECOND, video=VideoRecipe(30, 36, 64), audio=AudioRecipe(8000))
    examples = decode(MEDIA / "sync_test.mp4", recipe)[:20]
    light = np.concatenate([e.arrays["video"].reshape(30, -1).mean(1) for e in examples])  # type: ignore[union-attr]
    sound = np.concatenate([np.abs(e.arrays["audio"][:, 0].astype(int)) for e in examples])  # type: ignore[index]
    flashes = onsets(light, 0.5 * (light.min() + light.max())) / 30
    beeps = onsets(sound, 0.3 * sound.max(), quiet=2000) / 8000
    flashes = flashes[flashes > 2]  # the film fades in first
    assert len(flashes) >= 5
    assert len(beeps) >= 5
    assert max(float(np.abs(beeps - flash).min()) for flash in flashes) <= 1 / 30


def onsets(signal: np.ndarray, level: float, quiet: int = 1) -> np.ndarray:
    """Where the signal rises above a level after having been below it for a while."""
    above = np.flatnonzero(signal > level)
    return above[np.flatnonzero(np.diff(above, prepend=-quiet - 1) > quiet)]


def test_real_point_clouds() -> None:
    recipe = TokenRecipe(points=PointsRecipe(512))
    counts = {path.name: len(decode(path, recipe)) for path in sorted((DATA / "points").iterdir())}
    assert counts == {
        "diamond.npz": 1,
        "diamond.off": 1,
        "diamond.ply": 1,
        "modelnet10_chair_voxels.npy.gz": 889,
        "modelnet10_monitor_voxels.npy.gz": 465,
    }
