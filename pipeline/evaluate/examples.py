"""Pictures of single examples and of what a model learned about places, drawn as training draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hip_model.autoencoder import MaskedAutoencoder, Reconstruction
from hip_model.masking import MaskConfig
from hip_model.modality import Modality
from pipeline.evaluate.attention import attention_pictures
from pipeline.evaluate.figures import Picture, canvas, png
from pipeline.evaluate.reconstruct import reconstruct_batch
from pipeline.evaluate.session import Session
from pipeline.train.figures import in_shape, position_maps, reconstruction_grid, sound_pairs


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
    positions = (position_picture(session.loaded.model, modality) for modality in session.loaded.model.modalities)
    return pictures + [picture for picture in positions if picture is not None]


def reconstruction_picture(modality: Modality, answer: Reconstruction, rows: np.ndarray, ratio: float) -> Picture:
    """Input, what the model saw, and what it answered, one example a line, in raw units."""
    name = modality.name
    raw, made = (values[name].float().cpu().numpy()[rows] for values in (answer.raw, answer.reconstruction))
    visible = answer.visible[name].cpu().numpy()[rows]
    axes = len(modality.shape or ())
    if axes >= 2 and modality.num_channels in (1, 3) and modality.token_order != "kd":
        peak = 255.0 if answer.raw[name].dtype == torch.uint8 else float(np.abs(raw).max()) or 1.0
        figure = reconstruction_grid(modality, raw, visible, made, peak)
    elif axes == 1 and modality.num_channels == 1:
        figure = sound_pairs(modality, raw, visible, made)
    else:
        figure = _points(raw, visible, made)
    return Picture(f"reconstruction_{name}", f"Reconstruction of {name}, {ratio:.0%} hidden", png(figure))


def position_picture(model: Any, modality: Modality) -> Picture | None:
    """A position table as the paper shows it; none where places have no fixed order (points)."""
    if (
        modality.token_order == "kd"
        or modality.shape is None
        or (len(modality.shape) == 1 and modality.num_channels > 2)
    ):
        return None
    with torch.no_grad():
        code = model.position_code(modality.name).float().cpu().numpy()
    caption = ""
    if len(modality.shape) >= 2:
        grid = in_shape(code, modality)
        near, chance = neighbour_score(grid if grid.ndim == 3 else grid[len(grid) // 2])
        caption = f"The most similar other place touches this one for {near:.1%} of places (by chance {chance:.1%})."
    figure = position_maps(modality, code)
    return Picture(f"positions_{modality.name}", f"Position codes of {modality.name}", png(figure), caption)


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


def _points(raw: np.ndarray, visible: np.ndarray, made: np.ndarray) -> Any:
    """Clouds [B, T, 3] of input, visible points and reconstruction."""
    figure = canvas(7.5, 2.4 * len(raw))
    for index, (before, seen, after) in enumerate(zip(raw, visible, made, strict=True)):
        columns = ((before, "input"), (before[seen], "visible"), (after, "reconstruction"))
        for column, (points, text) in enumerate(columns):
            axes: Any = figure.add_subplot(len(raw), 3, 3 * index + column + 1, projection="3d")
            axes.scatter(*points[:, :3].T, s=2)
            axes.set_axis_off()
            axes.set_title(text, fontsize=8)
    return figure
