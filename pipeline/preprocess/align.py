"""Clips of a file with picture and sound on one time line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocess.audio import AudioDecoder, Samples
from pipeline.preprocess.container import choose_audio, choose_video, open_container, prepare_stream
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.preprocess.video import VideoDecoder, cut_video

Segment = tuple[float, float]
"""First and last second of a file that may be used."""


@dataclass(frozen=True)
class Clip:
    """One clip before flattening: frames ``[F, H, W, 3]`` uint8, sound ``[S, channels]`` int16, None where missing."""

    index: int
    start_seconds: float
    video: NDArray[np.uint8] | None
    audio: Samples | None


def cut_clips(
    path: str, recipe: TokenRecipe, limits: LimitsOptions, segment: Segment | None, notes: dict[str, Any]
) -> Iterator[Clip]:
    """Cut every clip of an audio or video file in one pass per stream, with bounded memory whatever its length.

    The time line starts at the first video frame, or at the first sample of a file without video. Clips follow the
    video where there is one; sound covering less than the recipe's minimum of a clip is missing there.

    Raises:
        MediaError: the file cannot be used.
    """
    begin, end = segment or (0.0, float("inf"))
    with ExitStack() as stack:
        video = _open_video(stack, path, recipe, limits, notes)
        audio = _open_audio(stack, path, recipe, limits, notes, video.origin_seconds if video else None)
        if video is None and audio is None:
            raise MediaError("not_in_recipe", "no video or audio stream that the recipe asks for")
        if video is None:
            assert audio is not None
            yield from _sound_only(audio, recipe, begin, end)
            return
        for index, frames in cut_video(video, recipe, begin, end):
            start = begin + index * recipe.stride
            yield Clip(index, start, frames, _sound_at(audio, recipe, start, end))


def _open_video(
    stack: ExitStack, path: str, recipe: TokenRecipe, limits: LimitsOptions, notes: dict[str, Any]
) -> VideoDecoder | None:
    container = stack.enter_context(open_container(path, limits))
    stream = choose_video(container)
    if stream is None or recipe.video is None:
        return None
    prepare_stream(stream)
    decoder = VideoDecoder(container, stream, limits)
    context = stream.codec_context
    notes["video"] = f"stream {stream.index} {context.name} {context.width}x{context.height}"
    if decoder.rotation_degrees:
        notes["rotated_degrees"] = decoder.rotation_degrees
    return decoder


def _open_audio(
    stack: ExitStack,
    path: str,
    recipe: TokenRecipe,
    limits: LimitsOptions,
    notes: dict[str, Any],
    origin_seconds: float | None,
) -> AudioDecoder | None:
    if recipe.audio is None:
        return None
    # Its own handle: picture and sound can then advance together however badly the file interleaves them.
    container = stack.enter_context(open_container(path, limits))
    stream = choose_audio(container)
    if stream is None:
        return None
    prepare_stream(stream)
    notes["audio"] = f"stream {stream.index} {stream.codec_context.name} {stream.rate} Hz {stream.layout.name}"
    return AudioDecoder(container, stream, recipe.audio, limits, origin_seconds)


def _sound_at(audio: AudioDecoder | None, recipe: TokenRecipe, start: float, end: float) -> Samples | None:
    if audio is None or recipe.audio is None:
        return None
    count = recipe.samples_per_clip
    samples, covered = audio.take(round(start * recipe.audio.sample_rate), count)
    if end < start + recipe.clip_seconds:
        allowed = max(0, round((end - start) * recipe.audio.sample_rate))
        samples[allowed:] = 0
        covered = min(covered, allowed)
    return samples if covered >= recipe.minimum_coverage * count else None


def _sound_only(audio: AudioDecoder, recipe: TokenRecipe, begin: float, end: float) -> Iterator[Clip]:
    assert recipe.audio is not None
    index = 0
    while True:
        start = begin + index * recipe.stride
        if start >= end or (audio.ended and start * recipe.audio.sample_rate >= audio.read_until):
            return
        samples = _sound_at(audio, recipe, start, end)
        if samples is not None:
            yield Clip(index, start, None, samples)
        index += 1
