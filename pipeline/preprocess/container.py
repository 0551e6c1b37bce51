"""Opening a container with PyAV: limits before decoding, the stream chosen by rule, errors with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.preprocess.limits import LimitsOptions, MediaError


@contextmanager
def media_errors(what: str) -> Iterator[None]:
    """Turn PyAV's errors inside the block into :class:`MediaError`."""
    import av

    try:
        yield
    except MemoryError as error:
        raise MediaError("memory_limit", f"{what}: out of memory") from error
    except av.error.FFmpegError as error:
        if error.errno == 12:
            raise MediaError("memory_limit", f"{what}: {error.strerror}") from error
        raise MediaError("corrupt", f"{what}: {error.strerror or error}") from error
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise MediaError("corrupt", f"{what}: {error}") from error


@contextmanager
def open_container(path: str, limits: LimitsOptions) -> Iterator[Any]:
    """An open PyAV input container whose claimed duration is within the limits.

    Raises:
        MediaError: corrupt, too_long or no_stream.
    """
    import av

    with media_errors("opening"):
        container = av.open(path, metadata_errors="replace")
    with container:
        seconds = claimed_seconds(container)
        if seconds > limits.max_duration_seconds:
            raise MediaError("too_long", f"claims {seconds:,.0f} s, the limit is {limits.max_duration_seconds:,.0f} s")
        if not container.streams.video and not container.streams.audio:
            raise MediaError("no_stream", f"container {container.format.name} without video or audio")
        yield container


def claimed_seconds(container: Any) -> float:
    """The longest duration that the container or one of its video and audio streams claims; 0 when none does."""
    streams = [*container.streams.video, *container.streams.audio]
    claims = [float(stream.duration * stream.time_base) for stream in streams if stream.duration and stream.time_base]
    return max([*claims, (container.duration or 0) / 1_000_000])


def choose_video(container: Any) -> Any | None:
    """The video stream with the most pixels, those marked default first, cover pictures never; None without one."""
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    return max(streams, key=_video_rank, default=None)


def _video_rank(stream: Any) -> tuple[bool, int, int]:
    import av

    context = stream.codec_context  # None for an unknown codec
    pixels = (context.width or 0) * (context.height or 0) if context is not None else -1
    return bool(stream.disposition & av.stream.Disposition.default), pixels, -stream.index


def choose_audio(container: Any) -> Any | None:
    """The first audio stream, or None."""
    return container.streams.audio[0] if container.streams.audio else None


def prepare_stream(stream: Any) -> None:
    """One decoder thread (files are the unit of parallel work).

    Raises:
        MediaError: a codec that this build of FFmpeg does not know.
    """
    if stream.codec_context is None:
        raise MediaError("corrupt", f"stream {stream.index} has a codec that this FFmpeg build does not know")
    stream.codec_context.thread_count = 1


def decoded_frames(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of one stream from where the container stands.

    Raises:
        MediaError: corrupt or encrypted.
    """
    with media_errors(f"{stream.type} stream"):
        for packet in container.demux(stream):
            if packet.has_sidedata("encryption_info"):
                raise MediaError("encrypted", f"stream {stream.index} is encrypted")
            yield from packet.decode()


def claimed_stream_seconds(container: Any, stream: Any) -> float | None:
    """The duration that a container claims for one stream; None when it does not say.

    Matroska keeps it in a tag; a container's own claim is the longest of its streams, so it counts only for one alone.
    """
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) == 3:
        with suppress(ValueError):
            return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
    alone = len(container.streams.video) + len(container.streams.audio) == 1
    return container.duration / 1_000_000 if alone and container.duration else None
