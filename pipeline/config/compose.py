"""Hydra's part: ``conf/<verb>.yaml`` with its groups and the user's overrides, as plain dictionaries."""

from __future__ import annotations

import importlib.resources
import re
from typing import Any, TypeVar

import yaml

from pipeline.config.build import build_options, known_keys
from pipeline.errors import UserError, nearest

Options = TypeVar("Options")


def load_options(cls: type[Options], verb: str, overrides: list[str]) -> Options:
    """The options of ``verb`` with ``overrides`` (``key=value``) applied.

    Raises:
        UserError: an unknown key or group choice, a missing required key, a value of the wrong kind.
    """
    return build_options(cls, compose_config(verb, overrides, known_keys(cls)))


def compose_config(verb: str, overrides: list[str], keys: list[str] | None = None) -> dict[str, Any]:
    """The composed configuration of ``verb``; ``keys`` are suggested for a key that does not exist."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    keys = keys or []
    overrides, values = _split_values(verb, _free_keys(overrides, keys))
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose(verb, overrides)
            config.merge_with(values)
            content = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, [key for key in keys if not key.endswith(".*")])) from error
    assert isinstance(content, dict)
    _check_required(content, verb)
    return {str(key): value for key, value in content.items()}


def _free_keys(overrides: list[str], keys: list[str]) -> list[str]:
    """Hydra's signs for keys that are the user's own: ``key={…}`` replaces a preset's, ``key.name=…`` adds to them."""
    free = tuple(key.removesuffix(".*") for key in keys if key.endswith(".*"))
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in free and value.startswith("{"):
            found += [f"~{key}", f"+{override}"]
        else:
            found.append(f"++{override}" if key.startswith(tuple(f"{name}." for name in free)) else override)
    return found


def _split_values(verb: str, overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Part the overrides of plain keys that share a group's name (``evaluate model=…``)."""
    folder = importlib.resources.files("conf")
    file = folder.joinpath(f"{verb}.yaml")
    content = yaml.safe_load(file.read_text()) if file.is_file() else {}
    plain = {key for key, value in content.items() if not isinstance(value, dict) and folder.joinpath(key).is_dir()}
    parted = [override.partition("=") for override in overrides]
    values = {key: value for key, _, value in parted if key in plain}
    return [override for override, (key, _, _) in zip(overrides, parted, strict=True) if key not in plain], values


def _explain(error: Exception, keys: list[str]) -> str:
    """Hydra's complaint in one line, with the nearest key where a key is unknown."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else unknown.group(1)
        return f"unknown key {key!r}: {_suggest(key, keys)}"
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if choice:
        group, name = choice.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"unknown choice {group}={name}: {nearest(name, options)}"
    return " ".join(text.split())


def _suggest(key: str, keys: list[str]) -> str:
    """The closest spelling, or the same name in another group; nothing where that would be a guess."""
    import difflib

    head, _, name = key.rpartition(".")
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.7)
    close += [known for known in keys if known.endswith(f".{name}") and known not in close][: 3 - len(close)]
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    group = head.partition(".")[0]
    if group and not any(known.startswith(f"{group}.") for known in keys):
        return f"this command has no {group!r} group; see --help for the keys"
    return "see --help for the keys"


def _check_required(content: Any, verb: str, prefix: str = "") -> None:
    """Refuse the first key that is still ``???``."""
    for key, value in content.items():
        if value == "???":
            raise UserError(
                f"{prefix}{key} is required: hip {verb} {prefix}{key}=<value> … (hip {verb} --help shows examples)"
            )
        if isinstance(value, dict):
            _check_required(value, verb, f"{prefix}{key}.")
