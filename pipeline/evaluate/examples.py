"""Pictures of single examples and of what a model learned about places, drawn as training draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hip_model.autoencoder import MaskedAutoencoder, Reconstruction
from hip_model.masking import MaskConfig
from hip_model.modality import Modality
from pipeline.evaluate.attention import attention_pictures
from pipeline.evaluate.figures import Picture, png
from pipeline.evaluate.reconstruct import reconstruct_batch
from pipeline.evaluate.session import Session
from pipeline.ingest.spread import spread
from pipeline.train.figures import has_places, in_shape, position_maps, reconstruction_figure


def example_pictures(session: Session) -> list[Picture]:
    """Reconstructions at the ratio nearest to the paper's 0.85, attention maps, and every position table."""
    options = session.options
    ratio = min(options.mask.ratios, key=lambda value: abs(value - 0.85))
    config = MaskConfig(policy=options.mask.policy, ratio=ratio)
    autoencoder = MaskedAutoencoder(session.loaded.model, config, normalisation=session.loaded.normalisations)
    reader = session.reader(options.split)
    batch = reader.read(spread(min(options.figures.examples, session.count(options.split)), len(reader)))
    answer = reconstruct_batch(session, autoencoder, batch)
    pictures: list[Picture | None] = []
    for modality in session.loaded.model.modalities:
        rows = np.flatnonzero(batch.present[modality.name])
        if len(rows):
            pictures.append(reconstruction_picture(modality, answer, rows, ratio))
    pictures += attention_pictures(session, batch, min(2, options.figures.examples))
    pictures += [position_picture(session.loaded.model, modality) for modality in session.loaded.model.modalities]
    return [picture for picture in pictures if picture is not None]


def reconstruction_picture(
    modality: Modality, answer: Reconstruction, rows: np.ndarray, ratio: float
) -> Picture | None:
    """Input, what the model saw, and what it answered, one example a line, in raw units; none where nothing fits."""
    name = modality.name
    raw, made = (values[name].float().cpu().numpy()[rows] for values in (answer.raw, answer.reconstruction))
    visible = answer.visible[name].cpu().numpy()[rows]
    peak = 255.0 if answer.raw[name].dtype == torch.uint8 else float(np.abs(raw).max()) or 1.0
    figure = reconstruction_figure(modality, raw, visible, made, peak)
    if figure is None:
        return None
    return Picture(f"reconstruction_{name}", f"Reconstruction of {name}, {ratio:.0%} hidden", png(figure))


def position_picture(model: Any, modality: Modality) -> Picture | None:
    """A position table as the paper shows it; none where places have no fixed order (points)."""
    if not has_places(modality):
        return None
    with torch.no_grad():
        code = model.position_code(modality.name).float().cpu().numpy()
    caption = ""
    if len(modality.shape or ()) >= 2:
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
