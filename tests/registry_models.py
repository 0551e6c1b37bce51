"""Tiny trained-looking models for registry tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hip_model import build_model
from hip_model.export import save_pretrained
from pipeline.evaluate.head import Head, pool_features, save_head
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe

RECIPE = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(4, 16, 16), audio=AudioRecipe(4000))
LABELS = ("blue_square_down", "green_circle_left", "red_circle_right")


def data_card() -> dict[str, Any]:
    return {
        "modalities": [spec.to_dict() for spec in RECIPE.specs()],
        "normalisation": {"video": {"mean": [100.0] * 3, "std": [50.0] * 3}, "audio": {"mean": [0.0], "std": [3000.0]}},
        "label_names": list(LABELS),
        "recipe": RECIPE.to_dict(),
        "fingerprint": "sha256:0123",
    }


def make_model(folder: Path, seed: int = 0, with_head: bool = True) -> Path:
    """A ``save_pretrained`` folder of a random nano model, with a random head if asked for."""
    torch.manual_seed(seed)
    model = build_model("hip_nano", [spec.to_modality() for spec in RECIPE.specs()]).eval()
    latents = model.encode({m.name: torch.zeros(1, m.num_tokens, m.num_channels) for m in model.modalities})
    levels = tuple(range(len(latents)))
    width = pool_features(latents, levels, "groups").shape[1]
    head = Head(
        weight=torch.randn(len(LABELS), width),
        bias=torch.zeros(len(LABELS)),
        mean=torch.zeros(width),
        std=torch.ones(width),
        levels=levels,
        task="classification",
        label_names=LABELS,
        pool="groups",
    )
    save_pretrained(model, folder, {"data": data_card()} | (head.metadata() if with_head else {}))
    if with_head:
        save_head(head, folder)
    return folder
