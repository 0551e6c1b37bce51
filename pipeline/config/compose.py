"""Hydra's part: ``conf/<verb>.yaml`` with its groups and the user's overrides, as plain dictionaries."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable
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
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if verb not in _files(""):
        raise UserError(f"unknown configuration {verb!r}: {nearest(verb, _files(''))}")
    GlobalHydra.instance().clear()
    for override in overrides:
        if not re.match(r"~|\+{0,2}\w[\w.-]*=", override):
            raise UserError(f"{override!r} is no setting: settings are written key=value (hip {verb} --help)")
    keys = keys or []
    overrides, values = _split_values(verb, _free_keys(_one_duration(overrides), keys))
    known = [key for key in keys if not key.endswith(".*")]
    overrides = _checked_choices(verb, overrides, known)
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose(verb, overrides)
            config.merge_with(values)
            content = OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        raise UserError(
            f"{error.override.lstrip('+~')} cannot be read ({str(error).splitlines()[0]}); "
            "in a shell, a value with braces, brackets or commas needs quotes: 'key={a: 1, b: 2}'"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, known, chosen_groups(verb))) from error
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


def _one_duration(overrides: list[str]) -> list[str]:
    """A duration that the user gives takes the place of the configuration's, in whatever unit that is."""
    given = {override.partition("=")[0] for override in overrides if not override.endswith("=null")}
    units = [f"duration.{unit}" for unit in ("steps", "examples", "epochs")]
    rest = [unit for unit in units if unit not in given] if given & set(units) else []
    return [*overrides, *(f"{unit}=null" for unit in rest)]


def _split_values(verb: str, overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Part the overrides of plain keys that share a group's name (``evaluate model=…``)."""
    folder = importlib.resources.files("conf")
    content = yaml.safe_load(folder.joinpath(f"{verb}.yaml").read_text())
    plain = {key for key, value in content.items() if not isinstance(value, dict) and folder.joinpath(key).is_dir()}
    parted = [override.partition("=") for override in overrides]
    values = {key: value for key, _, value in parted if key in plain}
    return [override for override, (key, _, _) in zip(overrides, parted, strict=True) if key not in plain], values


def _checked_choices(verb: str, overrides: list[str], keys: list[str]) -> list[str]:
    """The overrides without ``group=null``, which chooses nothing; what Hydra could not choose is refused."""
    groups, folder = chosen_groups(verb), importlib.resources.files("conf")
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith("~"):
            found.append(override)
        elif not folder.joinpath(key).is_dir():
            found.append(_with_quotes(override))
        elif key not in groups:
            raise UserError(_unknown(key, keys, groups))
        elif value != "null" or groups[key] is not None:
            choices = group_choices(key, verb)
            for name in re.split(r" *, *", value.removeprefix("[").removesuffix("]")):  # Hydra takes a list of names
                if name.strip("'\"") not in choices:
                    raise UserError(f"unknown choice {key}={value}: {nearest(name, choices)}")
            found.append(override)
    return found


def _with_quotes(override: str) -> str:
    """Hydra's grammar knows no ``=``, quote or comma within plain text, such as a path: it is given those in quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = override.partition("=")
    if not value or value[0] in "[{'\"" or "${" in value:
        return override
    try:
        if not OverridesParser.create().parse_override(override).is_sweep_override():
            return override
    except HydraException:
        pass
    escaped = re.sub(r"(\\*)('|$)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), value)
    return f"{key}='{escaped}'"


def chosen_groups(verb: str) -> dict[str, str | None]:
    """The groups of ``conf/<verb>.yaml`` and of what it builds on, those that ``group=name`` chooses from, and what is
    chosen without that."""
    content = yaml.safe_load(importlib.resources.files("conf").joinpath(f"{verb}.yaml").read_text())
    found: dict[str, str | None] = {}
    for default in content.get("defaults", []):
        if isinstance(default, dict):
            found |= {group.removeprefix("override "): name for group, name in default.items()}
        elif default != "_self_":
            found |= chosen_groups(default)
    return found


def group_choices(group: str, verb: str) -> list[str]:
    """The names that ``group=name`` may give ``verb``, sorted; experiments named finetune_* are fine-tuning's own."""
    names = _files(group)
    if group == "experiment":
        return [name for name in names if name.startswith("finetune_") == (verb == "finetune")]
    return names


def _files(group: str) -> list[str]:
    files = importlib.resources.files("conf").joinpath(group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _explain(error: Exception, keys: list[str], groups: Iterable[str]) -> str:
    """Hydra's complaint in one line, with the nearest key where a key is unknown."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        return _unknown(full.group(1) if full else unknown.group(1), keys, groups)
    return " ".join(text.split())


def _unknown(key: str, keys: list[str], groups: Iterable[str]) -> str:
    members = [known for known in keys if known.startswith(f"{key}.")]
    if members:
        return f"{key} takes no value here; set its keys: {', '.join(members)}"
    return f"unknown key {key!r}: {_suggest(key, list(dict.fromkeys([*keys, *groups])))}"


def _suggest(key: str, keys: list[str]) -> str:
    """The closest spelling, or the same name in another group; where that would be a guess, all names of the first
    level."""
    import difflib

    head, _, name = key.rpartition(".")
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.7)
    close += [known for known in keys if known.endswith(f".{name}") and known not in close][: 3 - len(close)]
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    group = head.partition(".")[0]
    if group and not any(known.startswith(f"{group}.") for known in keys):
        return f"this command has no {group!r} group; see --help for the keys"
    return f"valid: {', '.join(dict.fromkeys(known.partition('.')[0] for known in keys))} (see --help)"


def _check_required(content: Any, verb: str, prefix: str = "") -> None:
    """Refuse the first key that is still ``???``."""
    for key, value in content.items():
        if value == "???":
            raise UserError(
                f"{prefix}{key} is required: hip {verb} {prefix}{key}=<value> … (hip {verb} --help shows examples)"
            )
        if isinstance(value, dict):
            _check_required(value, verb, f"{prefix}{key}.")
