"""Video: each frame of a clip is the one on screen at that moment, by presentation time, in one pass over the file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocess.container import claimed_stream_seconds, decoded_frames, media_errors
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import TokenRecipe, VideoRecipe
from pipeline.preprocess.resize import Picture, fit_picture

_SEEK_BEYOND_SECONDS = 30.0
_TRUNCATED_SLACK_SECONDS = 0.5


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame and when it is on screen, in seconds of the container's clock."""

    begin: float
    end: float
    frame: Any


@dataclass
class _Window:
    """A clip in the making."""

    index: int
    frames: NDArray[np.uint8]
    filled: int = 0


@dataclass
class VideoDecoder:
    """The chosen video stream of one open container."""

    container: Any
    stream: Any
    limits: LimitsOptions
    origin_seconds: float = 0.0
    """When the first frame is shown: the zero of the clip's time line."""
    rotation_degrees: int = 0
    end_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        context = self.stream.codec_context
        pixels = (context.width or 0) * (context.height or 0)
        if pixels > self.limits.max_pixels:
            raise MediaError("too_large", f"{context.width}x{context.height} pixels, limit {self.limits.max_pixels:,}")
        self._frames = decoded_frames(self.container, self.stream)
        first = next(self._frames, None)
        if first is None:
            raise MediaError("corrupt", "the video stream has no decodable frame")
        self.origin_seconds = _seconds(first) or 0.0
        self.rotation_degrees = _rotation(first)
        self._first = first

    def shown_frames(self, begin: float = 0.0) -> Iterator[ShownFrame]:
        """Frames with the time each is on screen, relative to the first; those over before ``begin`` may be missing.

        Raises:
            MediaError: corrupt, truncated or too_long.
        """
        held, frames = self._first, self._frames
        if begin > _SEEK_BEYOND_SECONDS:
            held, frames = self._seek(begin)
        usual = self._usual_frame_seconds()
        held_begin = (_seconds(held) or 0.0) - self.origin_seconds
        for frame in frames:
            seconds = _seconds(frame)
            time = held_begin + usual if seconds is None else seconds - self.origin_seconds
            if time <= held_begin:  # a time stamp that runs backwards: keep what is on screen
                continue
            if time > self.limits.max_duration_seconds:
                raise MediaError("too_long", f"plays beyond {self.limits.max_duration_seconds:,.0f} s")
            yield ShownFrame(held_begin, time, held)
            held, held_begin = frame, time
        last_seconds = float(held.duration * held.time_base) if held.duration and held.time_base else usual
        self.end_seconds = held_begin + last_seconds
        yield ShownFrame(held_begin, self.end_seconds, held)
        self._refuse_truncated()

    def _seek(self, begin: float) -> tuple[Any, Iterator[Any]]:
        """Go to the key frame before ``begin``; back to the start of the file if the container cannot."""
        target = self.origin_seconds + begin
        with media_errors("seeking"):
            self.container.seek(int(target / self.stream.time_base), stream=self.stream, backward=True)
        frames = decoded_frames(self.container, self.stream)
        held = next(frames, None)
        if held is not None and (_seconds(held) or 0.0) <= target:
            return held, frames
        with media_errors("seeking"):
            self.container.seek(0)
        frames = decoded_frames(self.container, self.stream)
        return next(frames, self._first), frames

    def _usual_frame_seconds(self) -> float:
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate and rate < 1000 else 1 / 25

    def _refuse_truncated(self) -> None:
        claimed = claimed_stream_seconds(self.container, self.stream)
        # Some containers claim a length, some the time of the end; the smaller reading is the safe one.
        if claimed and self.end_seconds < 0.9 * (claimed - max(0.0, self.origin_seconds)) - _TRUNCATED_SLACK_SECONDS:
            raise MediaError("truncated", f"video ends at {self.end_seconds:.2f} s of the claimed {claimed:.2f} s")


def cut_video(
    decoder: VideoDecoder, recipe: TokenRecipe, begin: float = 0.0, end: float = float("inf")
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield ``(clip index, frames [F, H, W, 3] uint8)`` for every clip of ``begin … end`` that the video covers.

    Frame *j* of a clip is the one on screen at the middle of the clip's *j*-th of ``frames`` equal parts. Memory holds
    only the clips that overlap the current frame.
    """
    video = recipe.video
    assert video is not None
    active: deque[_Window] = deque()
    next_index, shown_until = 0, begin
    for shown in decoder.shown_frames(begin):
        if shown.end <= begin:
            continue
        if shown.begin >= end:
            break
        shown_until = min(shown.end, end)
        while begin + next_index * recipe.stride + _moment(recipe, 0) < shown_until:
            active.append(_Window(next_index, np.empty((video.frames, video.height, video.width, 3), np.uint8)))
            next_index += 1
        fresh = None
        for window in active:
            while window.filled < video.frames and _target(recipe, begin, window) < shown_until:
                fresh = to_picture(shown.frame, decoder.rotation_degrees, video) if fresh is None else fresh
                window.frames[window.filled] = fresh
                window.filled += 1
        while active and begin + active[0].index * recipe.stride + recipe.clip_seconds <= shown_until:
            done = active.popleft()
            yield done.index, done.frames
    for window in active:
        covered = shown_until - begin - window.index * recipe.stride
        if covered >= recipe.minimum_coverage * recipe.clip_seconds:
            window.frames[window.filled :] = window.frames[window.filled - 1]
            yield window.index, window.frames


def to_picture(frame: Any, rotation_degrees: int, video: VideoRecipe) -> Picture:
    """One decoded frame as upright RGB of the recipe's size."""
    with media_errors("converting a frame"):
        native: Picture = frame.to_ndarray(format="rgb24")
    return fit_picture(np.rot90(native, rotation_degrees // 90), video.height, video.width, video.fit)


def _moment(recipe: TokenRecipe, position: int) -> float:
    assert recipe.video is not None
    return (position + 0.5) * recipe.clip_seconds / recipe.video.frames


def _target(recipe: TokenRecipe, begin: float, window: _Window) -> float:
    return begin + window.index * recipe.stride + _moment(recipe, window.filled)


def _seconds(frame: Any) -> float | None:
    stamp = frame.pts if frame.pts is not None else frame.dts
    return float(stamp * frame.time_base) if stamp is not None and frame.time_base else None


def _rotation(frame: Any) -> int:
    """Counter-clockwise quarter turns, in degrees, that make the frame upright."""
    return round((frame.rotation or 0) / 90) * 90 % 360
