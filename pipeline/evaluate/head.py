"""The linear head on pooled latents: what a probe or fine-tuning adds to a model, kept beside its weights.

Only torch, numpy, safetensors and ``hip_model`` are imported here, so that a served model can carry this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hip_model.errors import InputError

HEAD_FILE = "head.safetensors"
TASKS = ("classification", "multilabel")
# How latents become one vector: the names of the parts that stand side by side for each level.
POOLS = {"mean": ("mean",), "mean_std": ("mean", "std"), "groups": ("groups", "std")}
_MOST_GROUPS = 16


@dataclass(frozen=True)
class Head:
    """Scores = ``(features - mean) / std @ weight.T + bias``.

    ``weight`` [classes, D], ``bias`` [classes], ``mean`` and ``std`` [D] over the pooled features of the fit split;
    ``levels`` are the blocks whose latents are pooled and put side by side, ``pool`` says how (see
    :func:`pool_features`), ``task`` decides between softmax and sigmoid.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    levels: tuple[int, ...]
    task: str
    label_names: tuple[str, ...]
    pool: str = "mean"

    def __post_init__(self) -> None:
        classes, width = self.weight.shape
        shapes = (self.bias.shape, self.mean.shape, self.std.shape)
        if shapes != ((classes,), (width,), (width,)):
            raise InputError(f"head of weight {tuple(self.weight.shape)} has bias, mean, std of {shapes}")
        if self.task not in TASKS:
            raise InputError(f"head task {self.task!r} is unknown (valid: {', '.join(TASKS)})")
        if self.pool not in POOLS:
            raise InputError(f"head pool {self.pool!r} is unknown (valid: {', '.join(POOLS)})")
        if len(self.label_names) != classes:
            raise InputError(f"head has {classes} classes but {len(self.label_names)} label names")

    def scores(self, features: Tensor) -> Tensor:
        """Logits [B, classes] of pooled features [B, D]."""
        return torch.nn.functional.linear((features - self.mean) / self.std, self.weight, self.bias)

    def probabilities(self, features: Tensor) -> Tensor:
        """Softmax (classification) or sigmoid (multilabel) of the scores, [B, classes]."""
        scores = self.scores(features)
        return scores.softmax(-1) if self.task == "classification" else scores.sigmoid()

    def metadata(self) -> dict[str, Any]:
        """What goes into the model's metadata so that :func:`load_head` can read the tensors back."""
        return {
            "task": self.task,
            "label_names": list(self.label_names),
            "head": {"levels": list(self.levels), "pool": self.pool},
        }


def pool_features(latents: list[Tensor], levels: Sequence[int], pool: str = "mean") -> Tensor:
    """One vector an example from the outputs of some blocks: list of [B, G, N, D_i] -> [B, D].

    ``mean`` averages over groups and latents. ``mean_std`` puts their standard deviation beside it: what is in few
    latents only, a small object or a short sound, moves the spread where it would drown in the mean. ``groups`` keeps
    one mean for each group instead, and so where things are; more than 16 groups are averaged down to 16.

    Raises:
        InputError: the model has no such block.
    """
    parts = []
    for level in levels:
        if not -len(latents) <= level < len(latents):
            raise InputError(f"level {level} does not exist; this model gives levels 0 to {len(latents) - 1}")
        found = pooled_parts(latents[level])
        parts += [found[part] for part in POOLS[pool]]
    return torch.cat(parts, dim=1)


def pooled_parts(latents: Tensor) -> dict[str, Tensor]:
    """What the ways of pooling are made of, from one block's output [B, G, N, D]: ``mean`` and ``std`` [B, D], and
    ``groups`` [B, min(G, 16) * D], group by group."""
    values = latents.float()
    groups = values.mean(dim=2)
    mean = groups.mean(dim=1)
    centred = values.flatten(1, 2) - mean.unsqueeze(1)
    if groups.shape[1] > _MOST_GROUPS:
        groups = torch.nn.functional.adaptive_avg_pool1d(groups.transpose(1, 2), _MOST_GROUPS).transpose(1, 2)
    return {
        "mean": mean,
        # In place: on a CPU fresh memory takes longer than the arithmetic, and torch.std 2 to 10 times as long.
        "std": centred.square_().mean(dim=1).sqrt(),
        "groups": groups.flatten(1),
    }


def head_probabilities(head: Head, latents: list[Tensor]) -> Tensor:
    """Probabilities [B, classes] from a model's latents."""
    return head.probabilities(pool_features(latents, head.levels, head.pool))


def save_head(head: Head, folder: str | Path) -> None:
    """Write ``head.safetensors`` beside the weights; the metadata goes through ``save_pretrained``."""
    from safetensors.torch import save

    tensors = {
        name: getattr(head, name).detach().float().contiguous().cpu() for name in ("weight", "bias", "mean", "std")
    }
    path = Path(folder) / HEAD_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(save(tensors))
    temporary.replace(path)


def load_head(folder: str | Path) -> Head | None:
    """The head saved in a model folder, or None where there is none.

    Raises:
        InputError: tensors and metadata disagree.
    """
    path = Path(folder) / HEAD_FILE
    if not path.exists():
        return None
    from safetensors.torch import load_file

    metadata = json.loads((Path(folder) / "config.json").read_text())["metadata"]
    if "head" not in metadata or "task" not in metadata:
        raise InputError(f"{folder} has {HEAD_FILE}, but its config.json does not say which levels and task it is for")
    tensors = load_file(path)
    return Head(
        **{name: tensors[name] for name in ("weight", "bias", "mean", "std")},
        levels=tuple(int(level) for level in metadata["head"].get("levels") or [metadata["head"]["level"]]),
        pool=str(metadata["head"].get("pool", "mean")),
        task=str(metadata["task"]),
        label_names=tuple(metadata["label_names"]),
    )


def feature_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per column, float32; a constant column keeps scale 1."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)
