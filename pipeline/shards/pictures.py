"""PNG pictures of stored examples: frames, images, waveforms, point clouds and histograms of raw values."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from hip_model.ordering import token_order, unflatten
from pipeline.shards.schema import ModalitySpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_FRAMES = 8
_FRAME_PIXELS = 128
_MAX_POINTS = 4000


def picture(spec: ModalitySpec, tokens: np.ndarray) -> bytes:
    """A PNG of one example's tokens ``[num_tokens, num_channels]``, chosen by the modality's axes."""
    axes = len(spec.shape)
    if spec.dtype == "uint8" and axes in (2, 3) and spec.num_channels in (1, 3):
        array = restore(spec, tokens)
        return _frames(array if axes == 3 else array[None])
    if axes == 1 and spec.num_channels >= 3:
        return _cloud(tokens)
    if axes == 1:
        return _waveform(restore(spec, tokens), spec.sampling.get("sample_rate"))
    return histogram(spec, tokens)


def restore(spec: ModalitySpec, tokens: np.ndarray) -> np.ndarray:
    """Tokens back on their axes: ``[*shape, num_channels]``; an order that each example decides for itself is kept."""
    if spec.token_order == "kd":
        return tokens.reshape(*spec.shape, spec.num_channels)
    return unflatten(tokens, token_order(spec.token_order, spec.shape), spec.shape)


def histogram(spec: ModalitySpec, tokens: np.ndarray) -> bytes:
    """How often each raw value occurs, one line a channel; ``tokens`` is ``[..., num_channels]``."""
    figure = _figure(4.5, 2.2)
    axis = figure.subplots()
    flat = tokens.reshape(-1, spec.num_channels)
    bins = np.linspace(float(flat.min()), float(flat.max()) + 1e-9, 65)
    colours = ("tab:red", "tab:green", "tab:blue") if spec.num_channels == 3 else ("tab:blue",)
    for channel in range(spec.num_channels):
        counts, _ = np.histogram(flat[:, channel], bins)
        axis.stairs(counts / max(1, len(flat)), bins, color=colours[channel % len(colours)], label=f"channel {channel}")
    axis.locator_params(axis="x", nbins=6)
    axis.set_xlabel("raw value")
    axis.set_ylabel("share of tokens")
    return _png(figure)


def _frames(frames: np.ndarray) -> bytes:
    """Up to eight frames ``[F, H, W, C]`` side by side."""
    from PIL import Image

    chosen = np.linspace(0, len(frames) - 1, min(_MAX_FRAMES, len(frames))).astype(int)
    strip = np.concatenate([frames[index] for index in chosen], axis=1)
    image = Image.fromarray(strip.squeeze(-1) if strip.shape[-1] == 1 else strip)
    scale = _FRAME_PIXELS / frames.shape[1]
    size = (max(1, round(image.width * scale)), _FRAME_PIXELS)
    resized = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
    stream = io.BytesIO()
    resized.save(stream, "PNG")
    return stream.getvalue()


def _waveform(samples: np.ndarray, sample_rate: object) -> bytes:
    """Lowest and highest sample of each of at most 1,000 stretches, ``[T, C]``, first channel."""
    first = samples[:, 0]
    stretches = np.array_split(first, min(1000, len(first)))
    low, high = [int(part.min()) for part in stretches], [int(part.max()) for part in stretches]
    seconds = len(first) / sample_rate if isinstance(sample_rate, int | float) else float(len(first))
    figure = _figure(6, 1.4)
    axis = figure.subplots()
    axis.fill_between(np.linspace(0, seconds, len(stretches)), low, high, linewidth=0.4)
    axis.set_xlabel("seconds" if isinstance(sample_rate, int | float) else "samples")
    return _png(figure)


def _cloud(points: np.ndarray) -> bytes:
    """Points ``[P, 3+]`` seen along two axes, coloured by the third."""
    shown = points[:: max(1, len(points) // _MAX_POINTS)]
    figure = _figure(5, 2.4)
    for axis, (across, up, depth) in zip(figure.subplots(1, 2), ((0, 1, 2), (0, 2, 1)), strict=True):
        axis.scatter(shown[:, across], shown[:, up], c=shown[:, depth], s=1)
        axis.set_aspect("equal")
    return _png(figure)


def _figure(width_inches: float, height_inches: float) -> Figure:
    """A figure of its own: no global state, no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return stream.getvalue()
