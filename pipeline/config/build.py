"""Fill typed option classes from plain dictionaries, naming every key that does not fit."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from pipeline.errors import UserError, nearest

Options = TypeVar("Options")


def build_options(cls: type[Options], content: dict[str, Any], prefix: str = "") -> Options:
    """An instance of the dataclass ``cls`` from ``content``, nested classes included.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong kind, by its full key.
    """
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls) if entry.init}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            raise UserError(f"unknown key {prefix + str(key)!r}: {nearest(key, fields)}")
    values = {key: _convert(hints[key], value, prefix + key) for key, value in content.items()}
    for name, entry in fields.items():
        if name in values:
            continue
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{name} is required")
    return cls(**values)


def with_value(options: Options, name: str, value: Any, key: str) -> Options:
    """``options`` with the field ``name`` set to ``value``, which messages call ``key``; its own checks run.

    Raises:
        UserError: a value of the wrong kind, or one that the class refuses.
    """
    hints = typing.get_type_hints(type(options))
    return dataclasses.replace(options, **{name: _convert(hints[name], value, key)})  # type: ignore[type-var]


def known_keys(cls: type[Any], prefix: str = "") -> list[str]:
    """Every dotted key that ``cls`` and its nested classes accept; ``key.*`` where keys below it are the user's own."""
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        keys.append(prefix + name)
        if typing.get_origin(hint) is dict:
            keys.append(f"{prefix}{name}.*")
        nested = _dataclass_of(hint)
        if nested is not None:
            keys += known_keys(nested, f"{prefix}{name}.")
    return keys


def _dataclass_of(hint: Any) -> type[Any] | None:
    """The dataclass in ``hint`` or in a union with None."""
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the kind that ``hint`` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{key}={value}: {nearest(value, arguments)}")
        return value
    if origin is dict:
        return _convert_dict(arguments, value, key)
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{key}={value}: this is a group of keys ({key}.<name>=…)")
        return build_options(hint, value, f"{key}.")  # type: ignore[arg-type]
    return _convert_scalar(hint, value, key)


def _convert_union(arguments: tuple[Any, ...], value: Any, key: str) -> Any:
    """The first alternative that fits; a single alternative's own message when none does."""
    if value is None and type(None) in arguments:
        return None
    alternatives = [argument for argument in arguments if argument is not type(None)]
    for argument in alternatives[:-1]:
        try:
            return _convert(argument, value, key)
        except UserError:
            continue
    return _convert(alternatives[-1], value, key)


def _convert_dict(arguments: tuple[Any, ...], value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{key}={value}: expected {{name: value, …}}")
    inner = arguments[1] if arguments else Any
    return {str(name): _convert(inner, item, f"{key}.{name}") for name, item in value.items()}


def _convert_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, key: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{key}={value}: expected a list, [a,b,…]")
    if origin is tuple and Ellipsis not in arguments and arguments:
        if len(value) != len(arguments):
            raise UserError(f"{key}={value}: expected {len(arguments)} values")
        return tuple(
            _convert(hint, item, f"{key}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
        )
    inner = arguments[0] if arguments else Any
    return origin(_convert(inner, item, f"{key}[{index}]") for index, item in enumerate(value))


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    """A bool, int, float or str; whole floats pass as int, ints as float, scalars as str. Numbers are finite."""
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool) and isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    if hint is float and not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, (str, int, float)):
        return str(value)
    is_finite = not isinstance(value, float) or math.isfinite(value)
    kind = type(value).__name__ if is_finite else f"{value}"
    raise UserError(f"{key}={value}: expected {getattr(hint, '__name__', hint)}, got {kind}")
