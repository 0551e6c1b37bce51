"""Pictures of single examples and of what a model learned about places: reconstructions, sounds, position tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hip_model.autoencoder import MaskedAutoencoder, Reconstruction
from hip_model.masking import MaskConfig
from hip_model.modality import Modality
from hip_model.ordering import inverse, token_order
from pipeline.evaluate.attention import attention_pictures
from pipeline.evaluate.figures import Picture, canvas, picture_rows, png
from pipeline.evaluate.reconstruct import reconstruct_batch
from pipeline.evaluate.session import Session

_STRIP_FRAMES = 4


def example_pictures(session: Session) -> list[Picture]:
    """Reconstructions at the ratio nearest to the paper's 0.85, attention maps, and every position table."""
    options = session.options
    ratio = min(options.mask.ratios, key=lambda value: abs(value - 0.85))
    config = MaskConfig(policy=options.mask.policy, ratio=ratio)
    autoencoder = MaskedAutoencoder(session.loaded.model, config, normalisation=session.loaded.normalisations)
    reader = session.reader(options.split)
    batch = reader.read(np.arange(min(options.figures.examples, session.count(options.split))))
    answer = reconstruct_batch(session, autoencoder, batch)
    pictures = []
    for modality in session.loaded.model.modalities:
        rows = np.flatnonzero(batch.present[modality.name])
        if len(rows):
            pictures.append(reconstruction_picture(modality, answer, rows, ratio))
    pictures += attention_pictures(session, batch, min(2, options.figures.examples))
    return pictures + [p for m in session.loaded.model.modalities for p in position_pictures(session.loaded.model, m)]


def reconstruction_picture(modality: Modality, answer: Reconstruction, rows: np.ndarray, ratio: float) -> Picture:
    """Input, what the model saw, and what it answered, one example a line, in raw units."""
    name = modality.name
    raw, made = (values[name].float().cpu().numpy()[rows] for values in (answer.raw, answer.reconstruction))
    visible = answer.visible[name].cpu().numpy()[rows]
    title = f"Reconstruction of {name}, {ratio:.0%} hidden"
    if is_picture(modality):
        low, high = (0.0, 255.0) if raw.min() >= 0 and raw.max() > 1.5 else (float(raw.min()), float(raw.max()))
        grey = np.full_like(raw, (low + high) / 2)
        lines = [
            [
                _strip(np.clip((tokens - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8), modality)
                for tokens in (raw[i], np.where(visible[i][:, None], raw[i], grey[i]), made[i])
            ]
            for i in range(len(raw))
        ]
        return picture_rows(f"reconstruction_{name}", title, ("input", "visible", "reconstruction"), lines)
    if modality.num_channels == 1:
        return _sound_picture(name, title, raw[..., 0], made[..., 0], visible)
    return _points_picture(name, title, raw, made, visible)


def position_pictures(model: Any, modality: Modality) -> list[Picture]:
    """A table as the paper shows it: similarity of some positions to all others, and its principal components."""
    if not is_picture(modality) or modality.shape is None:
        return []
    with torch.no_grad():
        code = model.position_code(modality.name).float().cpu().numpy()
    undone = inverse(token_order(modality.token_order, modality.shape))
    grid = code[undone].reshape(-1, *modality.shape[-2:], code.shape[1])[0]  # of a video the first frame
    height, width, _ = grid.shape
    figure = canvas(9.2, 2.2)
    panels = figure.subplots(1, 5)
    unit = grid / np.clip(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-9, None)
    for axes, (row, column) in zip(panels, ((0.5, 0.5), (0.2, 0.2), (0.8, 0.3), (0.3, 0.8)), strict=False):
        place = (int(row * (height - 1)), int(column * (width - 1)))
        axes.imshow(unit @ unit[place], cmap="RdBu_r", vmin=-1, vmax=1)
        axes.plot(place[1], place[0], "k+", markersize=7)
    centred = (grid - grid.mean((0, 1))).reshape(-1, grid.shape[-1])
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    components = (centred @ directions[:3].T).reshape(height, width, -1)
    span = np.ptp(components, axis=(0, 1))
    panels[4].imshow(np.clip((components - components.min((0, 1))) / np.where(span > 0, span, 1), 0, 1))
    for axes, title in zip(panels, ["cosine similarity to +"] * 4 + ["first components as colour"], strict=True):
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    near, chance = neighbour_score(grid)
    caption = f"Nearest position in the table is a spatial neighbour for {near:.1%} of positions (chance {chance:.1%})."
    return [Picture(f"positions_{modality.name}", f"Position codes of {modality.name}", png(figure), caption)]


def neighbour_score(grid: np.ndarray, limit: int = 1024) -> tuple[float, float]:
    """Share of positions whose most similar other position touches them (8 neighbours), and that share by chance.

    ``grid`` [H, W, E]; at most ``limit`` evenly spaced positions are asked.
    """
    height, width, _ = grid.shape
    flat = grid.reshape(height * width, -1)
    flat = flat / np.clip(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9, None)
    asked = np.unique(np.linspace(0, len(flat) - 1, min(limit, len(flat))).astype(int))
    similarity = flat[asked] @ flat.T
    similarity[np.arange(len(asked)), asked] = -np.inf
    nearest = similarity.argmax(1)
    apart = np.maximum(abs(nearest // width - asked // width), abs(nearest % width - asked % width))
    return float((apart <= 1).mean()), min(1.0, 8 / (len(flat) - 1))


def is_picture(modality: Modality) -> bool:
    """Whether tokens lie on a fixed grid of two axes, or of frames of two axes."""
    return modality.shape is not None and len(modality.shape) in (2, 3) and modality.num_channels in (1, 3)


def _strip(tokens: np.ndarray, modality: Modality) -> np.ndarray:
    """Tokens [T, C] as one picture [H, W, 3]; a video as a few of its frames side by side."""
    assert modality.shape is not None
    grid = tokens[inverse(token_order(modality.token_order, modality.shape))].reshape(*modality.shape, -1)
    if grid.ndim == 4:
        chosen = np.linspace(0, len(grid) - 1, min(_STRIP_FRAMES, len(grid))).round().astype(int)
        grid = np.concatenate(list(grid[chosen]), axis=1)
    return np.asarray(np.repeat(grid, 3, -1) if grid.shape[-1] == 1 else grid)


def _sound_picture(name: str, title: str, raw: np.ndarray, made: np.ndarray, visible: np.ndarray) -> Picture:
    figure = canvas(10, 1.9 * len(raw))
    grid = figure.subplots(len(raw), 4, squeeze=False)
    for line, before, after, seen in zip(grid, raw, made, visible, strict=True):
        reach = float(max(abs(before).max(), 1.0)) * 1.05
        line[0].plot(before, linewidth=0.5, color="#2a6f97")
        line[1].plot(np.where(seen, after, np.nan), ".", markersize=1, color="#9aa5b1")
        line[1].plot(after, linewidth=0.5, color="#c05621")
        for axes in line[:2]:
            axes.set_ylim(-reach, reach)
        for axes, signal in ((line[2], before), (line[3], after)):
            axes.imshow(log_spectrogram(signal), origin="lower", aspect="auto", cmap="magma", vmin=-60, vmax=0)
    for axes, text in zip(
        grid[0], ("input", "reconstruction", "spectrogram of input", "of reconstruction"), strict=True
    ):
        axes.set_title(text, fontsize=9)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    return Picture(f"reconstruction_{name}", title, png(figure), "Spectrograms in dB below the loudest bin of each.")


def log_spectrogram(signal: np.ndarray) -> np.ndarray:
    """Hann-windowed short-time power in dB below its maximum, [frequencies, times]."""
    length = max(16, min(512, 2 ** int(np.log2(max(len(signal) // 16, 16)))))
    hop = length // 2
    starts = range(0, max(len(signal) - length, 0) + 1, hop)
    frames = np.stack([signal[start : start + length] for start in starts]) * np.hanning(length)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return np.asarray(10 * np.log10(power / max(power.max(), 1e-12) + 1e-9).T)


def _points_picture(name: str, title: str, raw: np.ndarray, made: np.ndarray, visible: np.ndarray) -> Picture:
    figure = canvas(7.5, 2.4 * len(raw))
    for index, (before, after, seen) in enumerate(zip(raw, made, visible, strict=True)):
        for column, (points, text) in enumerate(
            ((before, "input"), (before[seen], "visible"), (after, "reconstruction"))
        ):
            axes: Any = figure.add_subplot(len(raw), 3, 3 * index + column + 1, projection="3d")
            axes.scatter(*points[:, :3].T, s=2)
            axes.set_axis_off()
            if index == 0:
                axes.set_title(text, fontsize=9)
    return Picture(f"reconstruction_{name}", title, png(figure))
