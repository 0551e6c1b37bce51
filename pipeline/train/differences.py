"""Was a run started with the same options? The lines of a refusal to continue it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

_ABSENT = "(absent)"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def default_values(options: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass of options as JSON values by dotted name, of those that have one."""
    values: dict[str, Any] = {}
    for field in fields(options):
        if field.default is not MISSING:
            values[field.name] = field.default
        elif field.default_factory is not MISSING:
            made = field.default_factory()
            values[field.name] = asdict(made) if is_dataclass(made) and not isinstance(made, type) else made
    return flatten(json.loads(json.dumps(values, default=str)))


def digest_of_chosen(values: Mapping[str, Any], options: type[Any]) -> str:
    """Equal for values, by dotted name, that compute the same: an option that comes later changes nothing by itself."""
    defaults = default_values(options)
    chosen = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], options: type[Any]) -> list[str]:
    """One line per dotted key that has another value.

    An option that did not exist ``then`` counts as its default, which is what the program of that day did.
    """
    defaults = default_values(options)
    before = {key: then.get(key, defaults.get(key, _ABSENT)) for key in then.keys() | now.keys()}
    return [
        f"{key}: {before[key]} then, {now.get(key, _ABSENT)} now"
        for key in sorted(before)
        if before[key] != now.get(key, _ABSENT)
    ]
