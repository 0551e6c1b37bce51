"""Pictures of what a model sees, hides and says, in raw units and true colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from hip_model.modality import Modality
from hip_model.ordering import inverse, token_order

_HIDDEN_GREY = 0.5
_TITLES = ("input", "visible", "reconstruction", "visible + reconstruction")


def new_figure(rows: int, columns: int, width_inches: float, height_inches: float, **axes: Any) -> tuple[Any, Any]:
    """A grid of axes outside of pyplot's global state: ``(figure, axes [rows, columns])``; ``axes`` describes each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw=axes)


def in_shape(tokens: np.ndarray, modality: Modality) -> np.ndarray:
    """Tokens ``[T, C]`` in the modality's order as an array ``[*shape, C]``."""
    shape = modality.shape or (modality.num_tokens,)
    back = inverse(token_order(modality.token_order, shape))
    return np.asarray(tokens)[back].reshape(*shape, tokens.shape[-1])


def has_places(modality: Modality) -> bool:
    """Whether a token's position says where it is, as it does not in a cloud of points."""
    shape = modality.shape
    return modality.token_order != "kd" and shape is not None and (len(shape) >= 2 or modality.num_channels <= 2)


def reconstruction_figure(
    modality: Modality, raw: np.ndarray, visible: np.ndarray, answer: np.ndarray, peak: float
) -> Any | None:
    """The kind of picture that fits a modality, one row an example; none where nothing does.

    ``raw`` and ``answer`` ``[B, T, C]`` in raw units, ``visible`` ``[B, T]``.
    """
    axes, channels = len(modality.shape or ()), modality.num_channels
    if axes >= 2 and channels in (1, 3):
        return reconstruction_grid(modality, raw, visible, answer, peak)
    if axes == 1 and channels <= 2:
        return sound_pairs(modality, raw, visible, answer)
    return clouds(raw, visible, answer) if axes == 1 else None


def clouds(raw: np.ndarray, visible: np.ndarray, answer: np.ndarray) -> Any:
    """Clouds of points ``[B, T, 3+]`` seen at an angle, otherwise as ``reconstruction_grid``."""
    figure, grid = new_figure(len(raw), 4, 8.4, 2.1 * len(raw) + 0.3, projection="3d")
    for line, tokens, seen, said in zip(grid, raw, visible, answer, strict=True):
        shown = (tokens, tokens[seen], said, np.where(seen[:, None], tokens, said))
        low, high = tokens[:, :3].min(axis=0), tokens[:, :3].max(axis=0) + 1e-6
        for axes, title, points in zip(line, _TITLES, shown, strict=True):
            axes.scatter(*points[:, :3].T, s=1)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    return figure


def reconstruction_grid(
    modality: Modality, raw: np.ndarray, visible: np.ndarray, answer: np.ndarray, peak: float
) -> Any:
    """Input, what the model saw, what it said, and the input with only its hidden part replaced.

    Arguments as for ``reconstruction_figure``. Videos show their middle frame.
    """
    figure, grid = new_figure(len(raw), 4, 8.4, 2.1 * len(raw) + 0.3)
    for line, tokens, seen, said in zip(grid, raw, visible, answer, strict=True):
        shown = np.where(seen[:, None], tokens, _HIDDEN_GREY * peak)
        merged = np.where(seen[:, None], tokens, said)
        for axes, title, values in zip(line, _TITLES, (tokens, shown, said, merged), strict=True):
            axes.imshow(_picture(in_shape(values, modality), peak), interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.axis("off")
    return figure


def _picture(values: np.ndarray, peak: float) -> np.ndarray:
    """``[frames, H, W, C]`` or ``[H, W, C]`` as a picture with values in 0 to 1; the middle frame of a video."""
    frame = values[len(values) // 2] if values.ndim == 4 else values
    scaled = np.clip(frame.astype(np.float64) / peak, 0, 1)
    return scaled if scaled.shape[-1] == 3 else np.repeat(scaled[..., :1], 3, axis=-1)


def sound_pairs(modality: Modality, raw: np.ndarray, visible: np.ndarray, answer: np.ndarray) -> Any:
    """Waveforms over each other and both spectrograms, of the first channel; as ``reconstruction_figure``."""
    figure, grid = new_figure(len(raw), 3, 10, 1.9 * len(raw) + 0.3)
    for line, tokens, seen, said in zip(grid, raw, visible, answer, strict=True):
        wave, hidden, back = (in_shape(values, modality)[:, 0] for values in (tokens, ~seen[:, None], said))
        line[0].plot(wave, linewidth=0.6, color="0.6", label="input")
        line[0].plot(np.where(hidden, back, np.nan), linewidth=0.6, color="tab:red", label="reconstruction (hidden)")
        line[0].legend(fontsize=6, loc="upper right")
        for axes, title, values in (
            (line[1], "input", wave),
            (line[2], "reconstruction", np.where(hidden, back, wave)),
        ):
            axes.imshow(spectrogram(values), origin="lower", aspect="auto", cmap="magma")
            axes.set_title(f"{title}, dB", fontsize=8)
        for axes in line:
            axes.tick_params(labelsize=6)
    return figure


def spectrogram(wave: np.ndarray, window: int = 256) -> np.ndarray:
    """Power in dB ``[frequencies, frames]``, Hann windows with half overlap; short sounds get short windows."""
    window = int(min(window, max(8, len(wave) // 4)))
    starts = range(0, max(1, len(wave) - window + 1), window // 2)
    frames = np.stack([np.resize(wave[start : start + window], window) for start in starts]).astype(np.float64)
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1)) ** 2
    return np.asarray(10 * np.log10(power.T + 1e-6 * power.max() + 1e-12))


def position_maps(modality: Modality, table: np.ndarray, anchors: int = 8) -> Any:
    """The paper's picture of learned positions: how similar each place is to some others, and three main components.

    ``table`` ``[T, E]``. Videos show the middle frame's places; sounds show a similarity matrix and component curves.
    """
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    components = principal_components(table)
    shape = modality.shape or (modality.num_tokens,)
    if len(shape) < 2:
        return _position_curves(modality, unit, components)
    places = in_shape(np.arange(modality.num_tokens)[:, None], modality)[..., 0]
    frame = places[len(places) // 2] if places.ndim == 3 else places
    figure, grid = new_figure(1, anchors + 1, 1.5 * (anchors + 1), 1.9)
    chosen = np.linspace(0, frame.size - 1, anchors + 2).astype(int)[1:-1]
    for axes, flat in zip(grid[0], chosen, strict=False):
        token = frame.reshape(-1)[flat]
        axes.imshow((unit[frame.reshape(-1)] @ unit[token]).reshape(frame.shape), cmap="coolwarm", vmin=-1, vmax=1)
        axes.plot(flat % frame.shape[1], flat // frame.shape[1], "k+", markersize=6)
        axes.set_title("similarity", fontsize=7)
    grid[0][-1].imshow(components[frame.reshape(-1)].reshape(*frame.shape, 3))
    grid[0][-1].set_title("3 components", fontsize=7)
    for axes in grid[0]:
        axes.axis("off")
    return figure


def _position_curves(modality: Modality, unit: np.ndarray, components: np.ndarray) -> Any:
    figure, grid = new_figure(1, 2, 8, 3.2)
    ordered = in_shape(unit, modality)
    picked = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), 256)).astype(int)]
    grid[0][0].imshow(picked @ picked.T, cmap="coolwarm", vmin=-1, vmax=1)
    grid[0][0].set_title("similarity of places", fontsize=8)
    grid[0][1].plot(in_shape(components, modality), linewidth=0.7)
    grid[0][1].set_title("3 components", fontsize=8)
    return figure


def principal_components(table: np.ndarray) -> np.ndarray:
    """The first three components of ``[T, E]``, each stretched to 0 to 1: ``[T, 3]``, usable as colours."""
    centred = table.astype(np.float64) - table.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = centred @ vectors[:, ::-1][:, :3]
    found = np.pad(found, ((0, 0), (0, 3 - found.shape[1])))
    low, high = found.min(axis=0), found.max(axis=0)
    return np.asarray((found - low) / np.maximum(high - low, 1e-12))
