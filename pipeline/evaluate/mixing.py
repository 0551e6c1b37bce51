"""Mixup and CutMix on token batches: two examples blended, or a box of one pasted into the other, with soft targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hip_model.modality import Modality
from hip_model.ordering import token_order
from pipeline.seeding import derive_seed
from pipeline.train.options import at_least, between


@dataclass(frozen=True)
class MixOptions:
    """Blending of examples; each step uses at most one of the two kinds."""

    mixup: float = 0.0  # Beta(a, a) of mixup (Zhang et al. 2018); 0 = off
    cutmix: float = 0.0  # Beta(a, a) of CutMix (Yun et al. 2019); 0 = off
    probability: float = 1.0  # of mixing a step at all

    def __post_init__(self) -> None:
        at_least("mix.mixup", self.mixup, 0)
        at_least("mix.cutmix", self.cutmix, 0)
        between("mix.probability", self.probability, 0, 1)


def mix(
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    modalities: Mapping[str, Modality],
    options: MixOptions,
    seed: int,
    step: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Blend a batch with a rolled copy of itself; a function of (seed, step) and the batch.

    Args:
        inputs: normalised tokens [B, T, C] by modality.
        targets: soft targets [B, classes].

    Returns:
        The mixed inputs and the targets in the shares in which they are present.
    """
    random = np.random.default_rng(derive_seed(seed, "mix", step))
    kinds = [kind for kind, alpha in (("mixup", options.mixup), ("cutmix", options.cutmix)) if alpha > 0]
    if not kinds or len(targets) < 2 or random.uniform() >= options.probability:
        return dict(inputs), targets
    kind = kinds[random.integers(len(kinds))]
    share = float(random.beta(*[getattr(options, kind)] * 2))
    if kind == "mixup":
        mixed = {name: share * values + (1 - share) * values.roll(1, 0) for name, values in inputs.items()}
        return mixed, share * targets + (1 - share) * targets.roll(1, 0)
    mixed, kept = {}, []
    centre = random.uniform(size=3)
    for name, values in inputs.items():
        cut = torch.from_numpy(box_tokens(modalities[name], 1 - share, centre)).to(values.device)
        mixed[name] = torch.where(cut[None, :, None], values.roll(1, 0), values)
        kept.append(1 - float(cut.float().mean()))
    share = float(np.mean(kept))
    return mixed, share * targets + (1 - share) * targets.roll(1, 0)


def box_tokens(modality: Modality, share: float, centre: np.ndarray) -> np.ndarray:
    """Which tokens [T] lie in a box of about ``share`` of the volume; frames of a video are cut alike."""
    shape = modality.shape or (modality.num_tokens,)
    spatial = shape[-2:]
    side = share ** (1 / len(spatial))
    inside = np.ones(shape, dtype=bool)
    for axis, size in enumerate(spatial):
        middle, half = centre[axis] * size, side * size / 2
        cells = np.arange(size) + 0.5
        view = [1] * len(shape)
        view[len(shape) - len(spatial) + axis] = size
        inside &= (np.abs(cells - middle) < half).reshape(view)
    flat = inside.reshape(math.prod(shape))
    if modality.token_order == "kd":  # tokens have no fixed place: a run of them is the nearest thing to a box
        return flat
    return np.asarray(flat[token_order(modality.token_order, shape)])
