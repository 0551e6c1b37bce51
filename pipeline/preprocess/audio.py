"""Sound: resampled and mixed once, laid out on the same time line as the frames, cut window by window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocess.container import claimed_stream_seconds, decoded_frames, media_errors
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.recipe import AudioRecipe

_JUMP_SECONDS = 0.03  # below one frame at 30 per second
_TRUNCATED_SLACK_SECONDS = 1.0

Samples = NDArray[np.int16]


class AudioDecoder:
    """The chosen audio stream of one open container, read forward only.

    ``origin_seconds`` is the zero of the time line on the container's clock; None = the first sample.

    Raises:
        MediaError: corrupt, truncated or too_long, while windows are taken.
    """

    def __init__(
        self, container: Any, stream: Any, recipe: AudioRecipe, limits: LimitsOptions, origin_seconds: float | None
    ) -> None:
        self.container, self.stream, self.recipe, self.limits = container, stream, recipe, limits
        self.origin_seconds = origin_seconds
        self._blocks = self._read_blocks()
        self._held: deque[tuple[int, Samples]] = deque()
        self.read_until = 0
        """Position up to which the time line is known."""
        self.ended = False

    def take(self, begin: int, count: int) -> tuple[Samples, int]:
        """Samples ``[begin, begin + count)`` of the time line, ``[count, channels]``, and how many of them exist.

        What does not exist is silence. ``begin`` must not go back by more than the caller still overlaps.
        """
        while self._held and self._held[0][0] + len(self._held[0][1]) <= begin:
            self._held.popleft()
        while not self.ended and self.read_until < begin + count:
            self._read_more(begin)
        window = np.zeros((count, self.recipe.channels), dtype=np.int16)
        covered = 0
        for position, samples in self._held:
            low, high = max(position, begin), min(position + len(samples), begin + count)
            if low < high:
                window[low - begin : high - begin] = samples[low - position : high - position]
                covered += high - low
        return window, covered

    def _read_more(self, begin: int) -> None:
        block = next(self._blocks, None)
        if block is None:
            self.ended = True
            return
        position, samples = block
        overlap = max(0, self.read_until - position)  # sound that says it plays twice: the first stays
        if overlap < len(samples):
            position, samples = position + overlap, samples[overlap:]
            self.read_until = position + len(samples)
            if self.read_until > begin:
                self._held.append((position, samples))

    def _read_blocks(self) -> Iterator[tuple[int, Samples]]:
        """``(position on the time line, samples)``; a jump of the time stamps starts again at the right position."""
        rate = self.recipe.sample_rate
        resampler: Any = None
        sound_format: tuple[Any, ...] = ()
        position, expected, seconds_read = 0, 0.0, 0.0
        for frame in decoded_frames(self.container, self.stream):
            begin = float(frame.pts * frame.time_base) if frame.pts is not None else expected
            this_format = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self.origin_seconds is None:
                self.origin_seconds = begin
            if resampler is None or this_format != sound_format or abs(begin - expected) > _JUMP_SECONDS:
                if resampler is not None:
                    yield position, self._convert(resampler, None)
                resampler, sound_format = self._new_resampler(), this_format
                position, expected = round((begin - self.origin_seconds) * rate), begin
            expected += frame.samples / frame.sample_rate
            seconds_read = expected - self.origin_seconds
            if seconds_read > self.limits.max_duration_seconds:
                raise MediaError("too_long", f"plays beyond {self.limits.max_duration_seconds:,.0f} s")
            samples = self._convert(resampler, frame)
            yield position, samples
            position += len(samples)
        if resampler is not None:
            yield position, self._convert(resampler, None)
        self._refuse_truncated(expected)

    def _new_resampler(self) -> Any:
        import av

        layout = "mono" if self.recipe.channels == 1 else "stereo"
        return av.AudioResampler(format="s16", layout=layout, rate=self.recipe.sample_rate)

    def _convert(self, resampler: Any, frame: Any) -> Samples:
        if frame is not None:
            frame.pts = None  # the position is kept here, to the sample
        with media_errors("resampling"):
            parts = [out.to_ndarray().reshape(-1, self.recipe.channels) for out in resampler.resample(frame)]
        return np.concatenate(parts) if parts else np.zeros((0, self.recipe.channels), np.int16)

    def _refuse_truncated(self, end: float) -> None:
        claimed = claimed_stream_seconds(self.container, self.stream)
        if claimed and end < 0.9 * claimed - _TRUNCATED_SLACK_SECONDS:
            raise MediaError("truncated", f"sound ends at {end:.2f} s of the claimed {claimed:.2f} s")
