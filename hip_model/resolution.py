"""A trained model at another input size: the same weights, with its position tables interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hip_model.errors import InputError
from hip_model.fourier import resize_position_table
from hip_model.modality import Modality


def at_resolution(model: Any, modalities: Sequence[Modality]) -> Any:
    """The same weights for inputs of another size; learned position tables are interpolated along their axes.

    The new model's modalities keep the old order, and one that is not given its size. Worth a warm start only: see
    :func:`hip_model.fourier.resize_position_table`.

    Raises:
        InputError: a modality that the model does not have.
    """
    old = {modality.name: modality for modality in model.modalities}
    new = {modality.name: modality for modality in modalities}
    unknown = sorted(new.keys() - old.keys())
    if unknown:
        raise InputError(f"the model has no modality {', '.join(unknown)}; it has {', '.join(old)}")
    resized = type(model)(model.config, [new.get(name, modality) for name, modality in old.items()])
    resized.load_state_dict({key: _fitted(key, value, old, new) for key, value in model.state_dict().items()})
    return resized


def _fitted(key: str, value: Tensor, old: dict[str, Modality], new: dict[str, Modality]) -> Tensor:
    parts = key.split(".")
    if parts[0] != "positions" or parts[-1] != "weight" or parts[1] not in new or len(parts) != 3:
        return value
    before, after = old[parts[1]], new[parts[1]]
    if before.shape == after.shape or before.shape is None or after.shape is None:
        return value
    return resize_position_table(value, before.shape, after.shape, before.token_order)
