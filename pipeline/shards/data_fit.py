"""Does a dataset fit a model: the same tokens, channels, order and sampling, or an error that names the difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.shards.schema import ModalitySpec

# What a value means to the model: where these differ, every number that comes out is wrong without a sign of it.
COMPARED = ("shape", "num_channels", "dtype", "token_order", "sampling")

_ASIDE = " (where that is meant, evaluation and fine-tuning take absent=[…])"


def differences(model_specs: Iterable[Mapping[str, Any]], data_specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each way in which data described by ``data_specs`` is not what the model was trained on.

    Both are lists of ``ModalitySpec.to_dict()``. A modality of the data that the model does not know is ignored (label
    maps travel so); a modality of the model that the data lacks is a difference.
    """
    in_data = {str(spec["name"]): spec for spec in data_specs}
    found = []
    for spec in model_specs:
        name = str(spec["name"])
        if name not in in_data:
            found.append(f"the model reads {name!r}, the data has {', '.join(sorted(in_data)) or 'nothing'}{_ASIDE}")
            continue
        for key in COMPARED:
            wanted, given = _plain(spec.get(key)), _plain(in_data[name].get(key))
            if wanted is not None and wanted != given:
                found.append(f"{name}.{key}: the model was trained on {wanted}, the data has {given}")
    return found


def absent_modalities(
    model_specs: Iterable[Mapping[str, Any]], data_specs: Iterable[Mapping[str, Any]], absent: Sequence[str]
) -> tuple[ModalitySpec, ...]:
    """The modalities of a model that its user says the data do not have.

    Raises:
        UserError: the model has no such modality, the data have it, or nothing would be left.
    """
    known = {str(spec["name"]): spec for spec in model_specs}
    there = {str(spec["name"]) for spec in data_specs}
    for name in absent:
        if name not in known:
            raise UserError(f"absent: the model has no modality {name!r}; {nearest(name, known)}")
        if name in there:
            raise UserError(f"absent: the data do have {name!r}; leave it out of absent=")
    if absent and not known.keys() - set(absent):
        raise UserError(f"absent={list(absent)} leaves the model nothing to read")
    return tuple(ModalitySpec.from_dict(dict(known[name])) for name in dict.fromkeys(absent))


def check_fit(model_specs: Iterable[Mapping[str, Any]], data_specs: Iterable[Mapping[str, Any]], shards: str) -> None:
    """Refuse data that the model was not made for.

    Raises:
        UserError: with every difference, one a line.
    """
    found = differences(model_specs, data_specs)
    if found:
        raise UserError(
            f"the data at {shards} does not fit the model:\n  "
            + "\n  ".join(found)
            + "\npreprocess the data with the recipe stored in the model's config.json, or choose another model"
        )


def _plain(value: Any) -> Any:
    """Tuples as lists and numpy names as text, so that a JSON round trip makes no difference."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
