"""Fixed position codes (Fourier features) and learned tables carried over to another resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hip_model.errors import ConfigError, InputError
from hip_model.ordering import Indices, inverse, token_order

_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def num_fourier_channels(num_axes: int, num_bands: int, concat_position: bool = True) -> int:
    """Width of :func:`fourier_features`: sine and cosine per axis and band, and coordinates; 258 for 2-D, 64 bands."""
    return num_axes * (2 * num_bands + int(concat_position))


def fourier_features(
    shape: tuple[int, ...],
    num_bands: int,
    max_resolution: Sequence[int] | None = None,
    concat_position: bool = True,
    order: str = "raster",
) -> Tensor:
    """Fourier features ``[tokens, channels]`` (float32) of every cell of a grid, in the given token order.

    Each axis runs from -1 to 1; its frequencies are ``num_bands`` equal steps from 1 to half of ``max_resolution``
    (default: the shape itself). Channels are the coordinates, then all sines, then all cosines, axes slowest
    (Perceiver, arXiv 2103.03206, section 3.2). Works for 1-D, 2-D, 3-D and space-time alike; points in k-d order are
    placed along their sequence.

    Raises:
        ConfigError: fewer than 1 band, or a ``max_resolution`` with another number of axes.
    """
    resolution = tuple(shape) if max_resolution is None else tuple(max_resolution)
    if num_bands < 1:
        raise ConfigError(f"Fourier features need at least 1 band, got num_bands={num_bands}")
    if len(resolution) != len(shape):
        raise ConfigError(
            f"max_resolution {resolution} has {len(resolution)} axes, the shape {tuple(shape)} {len(shape)}"
        )
    # On the CPU even where a default device is set: a model built on "meta" still has its constants.
    axes = [torch.linspace(-1.0, 1.0, size, **_EXACT) if size > 1 else torch.zeros(1, **_EXACT) for size in shape]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(shape))
    bands = torch.stack([torch.linspace(1.0, size / 2, num_bands, **_EXACT) for size in resolution])
    angles = (math.pi * coordinates[:, :, None] * bands).flatten(1)
    parts = [coordinates] if concat_position else []
    features = torch.cat([*parts, angles.sin(), angles.cos()], dim=1).float()
    return features[torch.from_numpy(_cell_order(order, tuple(shape)).copy())]


def resize_position_table(
    table: Tensor, old_shape: tuple[int, ...], new_shape: tuple[int, ...], order: str = "raster"
) -> Tensor:
    """A learned position table ``[old tokens, E]`` interpolated along its original axes to ``[new tokens, E]``.

    What this is worth: a warm start, no more. HiP's paper never runs a table at another resolution, and HiP's groups
    are runs of tokens, so at another size a group covers another part of the input than the one its latents were
    trained for. The scale of a fresh table falls with its length (standard deviation ``1 / sqrt(tokens)``) and is
    deliberately not corrected: a trained table's values are what the rest of the model was trained with. Linear
    interpolation smooths, so an untrained table comes out with a smaller spread than it went in with. Expect to train
    further, and compare with a fresh table before relying on it.

    Raises:
        InputError: a table of another length than ``old_shape``, shapes with different numbers of axes or more than 3.
    """
    if table.ndim != 2 or table.shape[0] != math.prod(old_shape):
        raise InputError(
            f"a position table for shape {old_shape} has {math.prod(old_shape)} rows, got {tuple(table.shape)}"
        )
    if len(old_shape) != len(new_shape) or len(old_shape) > 3:
        raise InputError(f"cannot resize a table from {old_shape} to {new_shape}: both need the same 1, 2 or 3 axes")
    undone = torch.from_numpy(inverse(_cell_order(order, old_shape)))
    grid = table[undone.to(table.device)].T.reshape(1, table.shape[1], *old_shape)
    mode = ("linear", "bilinear", "trilinear")[len(old_shape) - 1]
    resized = functional.interpolate(grid.float(), size=new_shape, mode=mode, align_corners=False)
    redone = torch.from_numpy(_cell_order(order, new_shape).copy()).to(table.device)
    return resized.reshape(table.shape[1], -1).T[redone].to(table.dtype).contiguous()


def _cell_order(order: str, shape: tuple[int, ...]) -> Indices:
    """The token order; a k-d ordered cloud has no grid, so its points are placed along their sequence."""
    return token_order("raster" if order == "kd" and len(shape) == 1 else order, shape)
