"""Media whose every frame and sample is known, encoded for the tests."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVEL = 7
"""Frame i of a made video is a flat grey of 20 + LEVEL * i."""


def grey(index: int) -> int:
    return 20 + LEVEL * index


def frame_index(picture: np.ndarray) -> int:
    """Which frame of a made video this picture is."""
    return round((float(picture.mean()) - 20) / LEVEL)


def write_video(
    path: Path,
    times: list[float],
    size: tuple[int, int] = (32, 32),
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv444p",
    pictures: list[np.ndarray] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 8000,
    sound_start: float = 0.0,
    b_frames: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A lossless-enough video with frames shown at ``times`` (seconds) and, if given, a mono int16 sound track."""
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=1000)
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.max_b_frames = b_frames
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "qp": "0", "bf": str(b_frames)}
        track = (
            container.add_stream(
                "pcm_s16le" if path.suffix in (".mkv", ".avi", ".mov") else "aac", rate=sound_rate, layout="mono"
            )
            if sound is not None
            else None
        )
        for index, time in enumerate(times):
            picture = pictures[index] if pictures else np.full((height, width, 3), grey(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
            samples.sample_rate, samples.time_base = sound_rate, Fraction(1, sound_rate)
            samples.pts = round(sound_start * sound_rate)
            container.mux(track.encode(samples))
            container.mux(track.encode(None))
    return path


def write_sound(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    """A sound file; ``samples`` is int16 ``[S]`` or ``[S, channels]``."""
    table = samples.reshape(len(samples), -1)
    codec = {".wav": "pcm_s16le", ".flac": "flac", ".ogg": "libopus", ".mp3": "libmp3lame", ".m4a": "aac"}[path.suffix]
    layout = "mono" if table.shape[1] == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(table.reshape(1, -1)), format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate_in_header(path: Path) -> None:
    """Set the display matrix of an mp4's track to a quarter turn clockwise."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
