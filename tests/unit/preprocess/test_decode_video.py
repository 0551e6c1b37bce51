"""Frames are chosen by presentation time, whatever the container does to it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_media import frame_index, grey, rotate_in_header, write_video

from pipeline.preprocess.decode import decode_file
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import TokenRecipe, VideoRecipe

RECIPE = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(4, 32, 32))
TENTHS = [index / 10 for index in range(20)]


def indices(path: Path, recipe: TokenRecipe = RECIPE, segment: tuple[float, float] | None = None) -> list[list[int]]:
    """Which frames each clip of a made video holds."""
    assert recipe.video is not None
    shape = (recipe.video.frames, recipe.video.height, recipe.video.width, 3)
    clips = [example.arrays["video"] for example in decode_file(str(path), recipe, None, segment)]
    return [[frame_index(frame) for frame in clip.reshape(shape)] for clip in clips if clip is not None]


def on_screen(times: list[float], moment: float) -> int:
    """The last frame that began at or before ``moment`` after the first."""
    return max(index for index, time in enumerate(times) if time - times[0] <= moment)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_frames_at_the_middle_of_their_share(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, TENTHS)
    assert indices(path) == [[1, 3, 6, 8], [11, 13, 16, 18]]


def test_start_other_than_zero_changes_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", [7.3 + time for time in TENTHS])
    assert indices(path) == [[1, 3, 6, 8], [11, 13, 16, 18]]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.integers(20, 900), min_size=3, max_size=15), begin=st.integers(0, 3000))
def test_variable_rate_follows_the_clock(tmp_path: Path, gaps: list[int], begin: int) -> None:
    times = [(begin + sum(gaps[:index])) / 1000 for index in range(len(gaps) + 1)]
    path = write_video(tmp_path / "variable.mkv", times)
    last = times[-1] - times[0]
    found_clips = indices(path) if last >= 1 else []
    for clip, found in enumerate(found_clips):
        for part, index in enumerate(found):
            moment = clip + (part + 0.5) / 4
            assert index == on_screen(times, min(moment, last))


def test_overlapping_clips(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TENTHS)
    recipe = TokenRecipe(clip_seconds=1.0, stride_seconds=0.5, video=VideoRecipe(4, 32, 32))
    assert indices(path, recipe) == [[1, 3, 6, 8], [6, 8, 11, 13], [11, 13, 16, 18]]


def test_a_segment_limits_the_clips(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TENTHS)
    assert indices(path, segment=(0.5, 1.6)) == [[6, 8, 11, 13]]


def test_seeking_gives_the_frames_of_a_full_pass(tmp_path: Path) -> None:
    times = [index / 2 for index in range(120)]
    pictures = [np.full((16, 16, 3), 20 + 2 * (index % 100), np.uint8) for index in range(120)]
    path = write_video(tmp_path / "long.mp4", times, (16, 16), pictures=pictures)
    recipe = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(2, 16, 16))
    everything = {round(e.start_seconds): e.arrays["video"] for e in decode_file(str(path), recipe)}
    part = list(decode_file(str(path), recipe, None, (40.0, 45.0)))
    assert [round(example.start_seconds) for example in part] == [40, 41, 42, 43, 44]
    for example in part:
        np.testing.assert_array_equal(example.arrays["video"], everything[round(example.start_seconds)])


def test_a_bit_short_is_padded_with_the_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "enough.mkv", [*TENTHS[:18], 1.8, 1.9])
    assert indices(path)[1] == [11, 13, 16, 18]
    path = write_video(tmp_path / "too_little.mkv", TENTHS[:18])
    assert len(indices(path)) == 1


def test_missing_time_stamps_and_reordered_frames(tmp_path: Path) -> None:
    times = [index / 10 for index in range(20)]
    path = write_video(tmp_path / "a.mp4", times, b_frames=3)
    assert indices(path) == [[1, 3, 6, 8], [11, 13, 16, 18]]
    raw = tmp_path / "raw.avi"
    import av

    with av.open(str(raw), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for index in range(20):
            picture = np.full((32, 32, 3), grey(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert indices(raw) == [[1, 3, 6, 8], [11, 13, 16, 18]]


def test_rotation_metadata_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16] = 255
    path = write_video(tmp_path / "a.mp4", TENTHS[:10], (32, 16), pictures=[picture] * 10)
    rotate_in_header(path)
    notes: dict[str, object] = {}
    recipe = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(1, 32, 16))
    clip = next(decode_file(str(path), recipe, notes=notes)).arrays["video"]
    assert clip is not None
    expected = np.rot90(picture, -1)  # clockwise
    assert np.abs(clip.reshape(32, 16, 3).astype(int) - expected).max() <= 3
    assert notes["rotated_degrees"] == 270


def test_odd_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", TENTHS[:10], (33, 17))
    for fit in ("crop", "stretch", "pad"):
        recipe = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(3, 21, 15, fit))
        clip = next(decode_file(str(path), recipe)).arrays["video"]
        assert clip is not None
        assert clip.shape == (3 * 21 * 15, 3)


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TENTHS, (64, 64))
    with pytest.raises(MediaError) as caught:
        list(decode_file(str(path), RECIPE, LimitsOptions(max_pixels=4000)))
    assert caught.value.reason == "too_large"


def test_claimed_duration_is_limited(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [*TENTHS, 400_000.0], codec="ffv1")
    with pytest.raises(MediaError) as caught:
        list(decode_file(str(path), RECIPE))
    assert caught.value.reason == "too_long"


def test_cut_off_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    content = write_video(tmp_path / "whole.mkv", TENTHS, (64, 64), pictures=pictures).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 3])
    with pytest.raises(MediaError) as caught:
        list(decode_file(str(cut), RECIPE))
    assert caught.value.reason in ("truncated", "corrupt")


def test_reasons_for_files_that_are_no_media(tmp_path: Path) -> None:
    for name, content, reason in (
        ("empty.mp4", b"", "empty_file"),
        ("text.mp4", b"hello, this is text" * 50, "not_media"),
        ("notes.txt", b"hello", "other_file"),
        ("picture.jpg", b"\xff\xd8\xff" + b"0" * 100, "not_in_recipe"),
        ("half.mp4", b"\0\0\0\x18ftypisom" + b"\0" * 100, "corrupt"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MediaError) as caught:
            list(decode_file(str(path), RECIPE))
        assert caught.value.reason == reason, name
    with pytest.raises(MediaError, match="unreadable"):
        list(decode_file(str(tmp_path / "absent.mp4"), RECIPE))


def test_encrypted(tmp_path: Path) -> None:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    path = write_video(tmp_path / "a.mp4", TENTHS, container_options=key)
    with pytest.raises(MediaError) as caught:
        list(decode_file(str(path), RECIPE))
    assert caught.value.reason == "encrypted"


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "long.mkv",
        [float(second) for second in range(900)],
        (16, 16),
        pictures=[np.zeros((16, 16, 3), np.uint8)] * 900,
    )
    recipe = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(2, 256, 256))
    tracemalloc.start()
    total = sum(example.arrays["video"].nbytes for example in decode_file(str(path), recipe))  # type: ignore[union-attr]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 300e6
    assert peak < 20e6


def test_token_orders_can_be_undone(tmp_path: Path) -> None:
    from hip_model.ordering import token_order, unflatten

    path = write_video(tmp_path / "a.mp4", TENTHS)
    plain = next(decode_file(str(path), RECIPE)).arrays["video"]
    for order in ("morton", "hilbert", "time_major", "shuffled"):
        recipe = TokenRecipe(clip_seconds=1.0, token_order=order, video=VideoRecipe(4, 32, 32))
        tokens = next(decode_file(str(path), recipe)).arrays["video"]
        assert plain is not None
        assert tokens is not None
        back = unflatten(tokens, token_order(order, (4, 32, 32)), (4, 32, 32))
        np.testing.assert_array_equal(back, plain.reshape(4, 32, 32, 3))
