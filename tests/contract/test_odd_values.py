"""Whatever value a key is given, the options are made or a sentence says why not."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.__main__ import VERBS
from pipeline.config import compose_config
from pipeline.config.build import build_options
from pipeline.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
ODD = ["abc", "", -1, 0, 1, 1.5, 10**30, math.inf, -math.inf, math.nan, [], [1], ["a"], {}, {"a": 1}, None, True]


def keys(content: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys(value, (*above, key))


def options_of(verb: str) -> Any:
    """The class that ``jobs/<verb>.py`` fills; None where it passes everything on to another verb."""
    return inspect.getclosurevars(importlib.import_module(f"jobs.{verb}").main).nonlocals.get("options_class")


@pytest.mark.parametrize("verb", [verb for verb in sorted(VERBS) if options_of(verb)])
def test_no_value_of_any_key_ends_in_a_traceback(verb: str) -> None:
    required = [key for key, value in yaml.safe_load((CONF / f"{verb}.yaml").read_text()).items() if value == "???"]
    of_pretraining = ["shards"] if verb in ("tune", "plan") else []
    content = compose_config(verb, [f"{key}=x" for key in (*required, *of_pretraining)])
    for place in list(keys(content)):
        for value in ODD:
            changed = copy.deepcopy(content)
            group = changed
            for name in place[:-1]:
                group = group[name]
            group[place[-1]] = value
            try:
                build_options(options_of(verb), changed)
            except UserError as error:
                assert len(str(error)) > 10, (place, value)  # noqa: PT017
