"""Sound lies on the same time line as the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_media import write_sound, write_video

from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.limits import MediaError
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe

SOUND = TokenRecipe(clip_seconds=1.0, audio=AudioRecipe(8000))
BOTH = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(10, 16, 16), audio=AudioRecipe(8000))
TENTHS = [index / 10 for index in range(30)]


def tone(seconds: float, hertz: float = 440.0, rate: int = 8000) -> np.ndarray:
    return np.round(12_000 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def clips(path: Path, recipe: TokenRecipe, name: str = "audio") -> list[np.ndarray | None]:
    return [example.arrays[name] for example in decode_file(str(path), recipe)]


def test_wav_samples_are_exact(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-30_000, 30_000, 24_000).astype(np.int16)
    found = clips(write_sound(tmp_path / "a.wav", samples), SOUND)
    np.testing.assert_array_equal(np.concatenate(found)[:, 0], samples)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_every_format_plays_the_tone(tmp_path: Path, suffix: str) -> None:
    rate = 48_000
    path = write_sound(tmp_path / f"a.{suffix}", tone(3.0, 440, rate), rate)
    found = clips(path, SOUND)
    assert len(found) == 3
    spectrum = np.abs(np.fft.rfft(found[1][:, 0]))  # type: ignore[index]
    assert spectrum.argmax() == 440


def test_stereo_is_mixed_or_kept(tmp_path: Path) -> None:
    left, right = tone(1.0), np.zeros(8000, np.int16)
    path = write_sound(tmp_path / "a.wav", np.stack([left, right], 1))
    mono = clips(path, SOUND)[0]
    assert np.abs(mono[:, 0] - left / 2).max() <= 1  # type: ignore[index]
    stereo = clips(path, TokenRecipe(clip_seconds=1.0, audio=AudioRecipe(8000, channels=2)))[0]
    np.testing.assert_array_equal(stereo, np.stack([left, right], 1))


@pytest.mark.parametrize("shift", [0.0, 0.25, -0.25])
def test_click_and_flash_stay_together(tmp_path: Path, shift: float) -> None:
    begin = 2.0
    pictures = [np.full((16, 16, 3), 235 if index == 15 else 20, np.uint8) for index in range(30)]
    sound = np.zeros(24_000 + 4000, np.int16)
    click = round((1.5 - shift) * 8000)
    sound[click : click + 80] = 20_000
    path = write_video(
        tmp_path / "a.mkv",
        [begin + time for time in TENTHS],
        (16, 16),
        pictures=pictures,
        sound=sound,
        sound_start=begin + shift,
    )
    examples = list(decode_file(str(path), BOTH))
    frames = np.concatenate([example.arrays["video"].reshape(10, -1).mean(1) for example in examples])  # type: ignore[union-attr]
    heard = np.concatenate([np.zeros(8000) if e.arrays["audio"] is None else e.arrays["audio"][:, 0] for e in examples])
    assert frames.argmax() == 15
    assert abs(np.flatnonzero(heard > 5000)[0] / 8000 - 1.5) < 0.01


def test_sound_that_stops_early_is_missing_not_silent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", TENTHS, (16, 16), sound=tone(1.2))
    found = clips(path, BOTH)
    assert [clip is None for clip in found] == [False, True, True]
    assert all(clip is not None for clip in clips(path, BOTH, "video"))


def test_video_without_sound_has_none(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TENTHS, (16, 16))
    assert clips(path, BOTH) == [None, None, None]
    with pytest.raises(MediaError) as caught:
        clips(path, SOUND)
    assert caught.value.reason == "not_in_recipe"


def test_a_gap_in_the_time_stamps_becomes_silence(tmp_path: Path) -> None:
    from fractions import Fraction

    import av

    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for start in (0.0, 1.5):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 9000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, round(start * 8000), Fraction(1, 8000)
            for packet in stream.encode(frame):
                container.mux(packet)
        container.mux(stream.encode(None))
    recipe = TokenRecipe(clip_seconds=2.5, minimum_coverage=0.5, audio=AudioRecipe(8000))
    heard = clips(path, recipe)[0][:, 0]  # type: ignore[index]
    assert (heard[:8000] == 9000).all()
    assert (heard[8100:11900] == 0).all()
    assert (heard[12_100:19_900] == 9000).all()


def test_zero_seconds_of_sound(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(0.01))
    with pytest.raises(MediaError) as caught:
        clips(path, SOUND)
    assert caught.value.reason == "too_short"
