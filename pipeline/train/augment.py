"""Augmentation of raw tokens: put back on their grid, warped and recoloured, and flattened again in the same order.

Every draw is a function of (seed, epoch, example id), never of the batch an example happens to be in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hip_model.modality import Modality
from hip_model.ordering import inverse, token_order
from pipeline.seeding import derive_seed
from pipeline.train.options import AugmentOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _View:
    """How one example is seen: a 2-D affine map from output to input coordinates, then colour operations."""

    affine: np.ndarray  # [2, 3]
    colours: list[tuple[str, float]]
    gain: float
    shift: float
    scale: float
    jitter_seed: int


def augment(
    arrays: Mapping[str, Tensor],
    epochs: Tensor,
    example_ids: Tensor,
    modalities: Mapping[str, Modality],
    options: AugmentOptions,
    seed: int,
) -> dict[str, Tensor]:
    """Raw tokens [B, T, C] by modality to augmented ones of the same shape and type.

    Pictures (2 axes) and videos (3, all frames alike) are warped and recoloured, sounds (1 axis, mono or stereo)
    shifted and scaled, points (1 axis, 3 channels) scaled and jittered; anything else passes, and so does what no
    option is on for. ``epochs`` and ``example_ids`` are int64 [B] in host memory.
    """
    kinds = {name: kind for name in arrays if (kind := _kind(modalities[name])) and _switched_on(options, kind)}
    if not kinds:
        return dict(arrays)
    pairs = zip(epochs.tolist(), example_ids.tolist(), strict=True)
    views = [_draw(options, derive_seed(seed, "augment", epoch, example)) for epoch, example in pairs]
    found = dict(arrays)
    for name, kind in kinds.items():
        values = arrays[name].float()
        if kind == "pictures":
            values = _on_grid(values, modalities[name], lambda grid: _warp_and_colour(grid, views))
        elif kind == "points":
            values = _vary_points(values, views, options)
        else:
            values = _vary_sound(values, views)
        found[name] = _as_stored(values, arrays[name].dtype)
    return found


def _as_stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded, and held in the range of the type, where it is one of integers."""
    if dtype.is_floating_point:
        return values.to(dtype)
    limits = torch.iinfo(dtype)
    return values.round_().clamp_(limits.min, limits.max).to(dtype)


def warn_of_idle_options(options: AugmentOptions, modalities: Sequence[Modality]) -> None:
    """Say what is switched on for a kind of signal that is not among ``modalities``."""
    kinds, names = {_kind(modality) for modality in modalities}, ", ".join(m.name for m in modalities)
    for kind in _OPTIONS_OF:
        for option in _switched_on(options, kind) if kind not in kinds else ():
            value = getattr(options, option)
            logger.warning(
                "augment.%s=%s (it acts on %s) does nothing here: the model reads %s", option, value, kind, names
            )


_OFF = AugmentOptions()
_OPTIONS_OF = {
    "pictures": ("crop_min_area", "flip", "rand_layers"),
    "sound": ("audio_gain_decibel", "audio_shift"),
    "points": ("points_scale", "points_jitter"),
}


def _switched_on(options: AugmentOptions, kind: str) -> list[str]:
    return [name for name in _OPTIONS_OF[kind] if getattr(options, name) != getattr(_OFF, name)]


def _kind(modality: Modality) -> str | None:
    axes = len(modality.shape or ())
    if axes in (2, 3) and modality.num_channels in (1, 3) and modality.token_order != "kd":
        return "pictures"
    return {1: "sound", 2: "sound", 3: "points"}.get(modality.num_channels) if axes == 1 else None


def _draw(options: AugmentOptions, seed: int) -> _View:
    random = np.random.default_rng(seed)
    affine = _crop(options, random)
    if random.uniform() < options.flip:
        affine = affine @ np.diag([-1.0, 1.0, 1.0])
    colours: list[tuple[str, float]] = []
    strength = options.rand_magnitude / 10
    for _ in range(options.rand_layers):
        kind = _OPERATIONS[random.integers(len(_OPERATIONS))]
        amount = strength * random.choice([-1.0, 1.0])
        if kind in _WARPS:
            affine = affine @ _WARPS[kind](amount)
        else:
            colours.append((kind, amount))
    return _View(
        affine=affine[:2],
        colours=colours,
        gain=float(10 ** (random.uniform(-1, 1) * options.audio_gain_decibel / 20)),
        shift=float(random.uniform(-1, 1) * options.audio_shift),
        scale=float(1 + random.uniform(-1, 1) * options.points_scale),
        jitter_seed=int(random.integers(1 << 62)),
    )


def _crop(options: AugmentOptions, random: np.random.Generator) -> np.ndarray:
    """Random resized crop (Szegedy et al. 2015): a share of the area at a random aspect, anywhere inside."""
    if options.crop_min_area == 1:
        return np.eye(3)
    area = random.uniform(options.crop_min_area, 1)
    stretch = math.exp(random.uniform(-1, 1) * math.log(options.crop_aspect) / 2)
    width, height = (min(1.0, math.sqrt(area) * factor) for factor in (stretch, 1 / stretch))
    left, top = (random.uniform(-1, 1) * (1 - size) for size in (width, height))
    return np.array([[width, 0, left], [0, height, top], [0, 0, 1.0]])


# Largest strengths as in RandAugment (Cubuk et al. 2019): 30 degrees, shear 0.3, a shift by 0.45 of the picture.
_WARPS: dict[str, Callable[[float], np.ndarray]] = {
    "rotate": lambda a: _rotation(a * math.pi / 6),
    "shear_x": lambda a: np.array([[1, 0.3 * a, 0], [0, 1, 0], [0, 0, 1.0]]),
    "shear_y": lambda a: np.array([[1, 0, 0], [0.3 * a, 1, 0], [0, 0, 1.0]]),
    "translate_x": lambda a: np.array([[1, 0, 0.9 * a], [0, 1, 0], [0, 0, 1.0]]),
    "translate_y": lambda a: np.array([[1, 0, 0], [0, 1, 0.9 * a], [0, 0, 1.0]]),
}
_COLOURS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": lambda x, a: x * (1 + 0.9 * a),
    "contrast": lambda x, a: _blend(x, x.mean(), a),
    "saturation": lambda x, a: _blend(x, x.mean(dim=-3, keepdim=True), a),
    "posterize": lambda x, a: torch.floor(x / 2 ** round(4 * abs(a))) * 2 ** round(4 * abs(a)),
    "solarize": lambda x, a: torch.where(x < 256 * (1 - abs(a)), x, 255 - x),
    "autocontrast": lambda x, a: (
        (x - x.amin((-1, -2), True)) * 255 / (x.amax((-1, -2), True) - x.amin((-1, -2), True) + 1)
    ),
    "invert": lambda x, a: 255 - x,
}
_OPERATIONS = (*_WARPS, *_COLOURS, "identity")


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def _blend(values: Tensor, base: Tensor, amount: float) -> Tensor:
    return base + (values - base) * (1 + 0.9 * amount)


def _on_grid(values: Tensor, modality: Modality, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``change`` to [B, frames, C, H, W] and give tokens [B, T, C] back in their own order."""
    assert modality.shape is not None
    to_raster, to_order = _reordering(modality.token_order, modality.shape, values.device)
    raster = values if to_raster is None else values[:, to_raster]
    frames, height, width = (1, *modality.shape)[-3:]
    grid = raster.reshape(len(values), frames, height, width, -1).permute(0, 1, 4, 2, 3)
    tokens = change(grid).permute(0, 1, 3, 4, 2).reshape(len(values), modality.num_tokens, -1)
    return tokens if to_order is None else tokens[:, to_order]


@lru_cache(maxsize=16)
def _reordering(name: str, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Token of each cell and cell of each token, on the device once and for all; none where they are the same."""
    order = token_order(name, shape)
    if (order[:-1] < order[1:]).all():
        return None, None
    return torch.from_numpy(inverse(order)).to(device), torch.from_numpy(order.copy()).to(device)


def _warp_and_colour(grid: Tensor, views: list[_View]) -> Tensor:
    batch, frames, channels, height, width = grid.shape
    maps = np.stack([view.affine for view in views])
    if np.abs(maps - np.eye(2, 3)).max() > 1e-9:
        affine = torch.from_numpy(maps).to(grid)
        where = torch.nn.functional.affine_grid(affine, [batch, 1, height, width], align_corners=False)
        where = where.repeat_interleave(frames, dim=0)
        flat = grid.reshape(batch * frames, channels, height, width)
        warped = torch.nn.functional.grid_sample(flat, where, padding_mode="reflection", align_corners=False)
        grid = warped.view_as(grid)
    coloured = []
    for values, view in zip(grid, views, strict=True):
        for kind, amount in view.colours:
            if kind in _COLOURS:
                values = _COLOURS[kind](values, amount).clamp(0, 255)
        coloured.append(values)
    return torch.stack(coloured)


def _vary_sound(values: Tensor, views: list[_View]) -> Tensor:
    length = values.shape[1]
    return torch.stack(
        [torch.roll(row, round(view.shift * length), 0) * view.gain for row, view in zip(values, views, strict=True)]
    )


def _vary_points(values: Tensor, views: list[_View], options: AugmentOptions) -> Tensor:
    varied = []
    for row, view in zip(values, views, strict=True):
        row = row * view.scale
        if options.points_jitter > 0:
            generator = torch.Generator().manual_seed(view.jitter_seed)
            row = row + options.points_jitter * torch.randn(row.shape, generator=generator).to(row)
        varied.append(row)
    return torch.stack(varied)
