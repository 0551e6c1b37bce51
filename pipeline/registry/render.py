"""Tokens back to files that a person opens: MP4, WAV, PNG; points as .npy."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

from hip_model.ordering import token_order, unflatten
from pipeline.shards.schema import ModalitySpec


def render(spec: ModalitySpec, tokens: np.ndarray) -> tuple[str, bytes]:
    """Encode one example's tokens ``[T, C]`` (stored type); returns the file suffix and the content."""
    array = tokens
    if spec.token_order != "kd":  # the order of a cloud's points carries nothing to undo
        array = unflatten(tokens, token_order(spec.token_order, spec.shape), spec.shape)
    if spec.dtype == "uint8" and len(spec.shape) == 3:
        return "mp4", _video(array, float(spec.sampling.get("clip_seconds", 1.0)))
    if spec.dtype == "uint8" and len(spec.shape) == 2:
        return "png", _picture(array)
    if spec.dtype == "int16" and len(spec.shape) == 1:
        return "wav", _sound(array, int(spec.sampling.get("sample_rate", 16_000)))
    return "npy", _numbers(array)


def _video(frames: np.ndarray, seconds: float) -> bytes:
    """H.264 at the clip's own pace; odd sizes are padded, as the codec stores colour for 2 x 2 pixels."""
    from fractions import Fraction

    import av

    count, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(count / seconds).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "12"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return target.getvalue()


def _picture(array: np.ndarray) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(target, format="PNG")
    return target.getvalue()


def _sound(samples: np.ndarray, rate: int) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as stream:
        stream.setnchannels(samples.shape[-1])
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(samples.astype("<i2").tobytes())
    return target.getvalue()


def _numbers(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array, allow_pickle=False)
    return target.getvalue()
