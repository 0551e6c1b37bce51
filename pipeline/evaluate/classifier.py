"""A model and a linear head as one module to train: pooled latents of one block, standardised, then a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hip_model.selection import TokenSelection
from pipeline.evaluate.head import Head, pool_features


class Classifier(nn.Module):
    """Scores of normalised tokens. The head starts at zero, so that the first loss is that of guessing."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, level: int, label_names: list[str], task: str, train_model: bool = True) -> None:
        super().__init__()
        self.model = model
        self.level = level
        self.label_names = label_names
        self.task = task
        width = _level_width(model, level)
        self.head = nn.Linear(width, len(label_names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        for parameter in model.parameters():
            parameter.requires_grad_(train_model)
        self.train_model = train_model
        for name, parameter in model.named_parameters():
            if not used_by_level(name, level):
                parameter.requires_grad_(False)

    def features(self, inputs: dict[str, Tensor], selection: TokenSelection | None) -> Tensor:
        """Pooled latents [B, D]."""
        with torch.set_grad_enabled(self.train_model and torch.is_grad_enabled()):
            return pool_features(self.model.encode(inputs, selection), (self.level,))

    def forward(self, inputs: dict[str, Tensor], selection: TokenSelection | None = None) -> Tensor:
        """Scores [B, classes] of normalised inputs [B, T, C]."""
        return self.head((self.features(inputs, selection) - self.mean) / self.std)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with soft targets [B, classes], or the mean binary one."""
        if self.task == "classification":
            return nn.functional.cross_entropy(scores.float(), targets)
        return nn.functional.binary_cross_entropy_with_logits(scores.float(), targets)

    def to_head(self) -> Head:
        """The head in the form that evaluation and serving read."""
        values = (self.head.weight, self.head.bias, self.mean, self.std)
        weight, bias, mean, std = (value.detach().float().cpu().clone() for value in values)
        return Head(weight, bias, mean, std, (self.level,), self.task, tuple(self.label_names))


def used_by_level(name: str, level: int) -> bool:
    """Whether a model's parameter has a part in the latents of ``level``; the decoder and the rest get no gradient."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) <= level
    return parts[0] not in ("unembed", "head")


def soft_targets(labels: list[tuple[int, ...]], num_classes: int, task: str, smoothing: float) -> Tensor:
    """Targets [B, classes]: one-hot (or multi-hot), with ``smoothing`` of the mass spread evenly."""
    targets = torch.zeros(len(labels), num_classes)
    for row, classes in enumerate(labels):
        targets[row, list(classes)] = 1.0
    level = 1 / num_classes if task == "classification" else 0.5
    return targets * (1 - smoothing) + smoothing * level


def _level_width(model: Any, level: int) -> int:
    widths = model.config.num_channels
    return int(widths if isinstance(widths, int) else widths[level])
