"""Turn nested options into what MLflow takes: flat names, short text, no secrets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from pipeline.storage import redact

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_SECRET_NAME = re.compile(r"(?:^|[._-])(?:password|secret|token|api_?key|access_key|credentials?)$", re.IGNORECASE)


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings and dataclasses as one level of dotted names; sequences stay whole."""
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    if not isinstance(values, Mapping) or (prefix and not values):
        return {prefix: values}
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def clean_key(name: str) -> str:
    """``name`` with the characters that MLflow refuses replaced, at most 250 long."""
    return _FORBIDDEN.sub("_", str(name))[:KEY_LIMIT]


def clean_text(name: str, value: object, limit: int) -> str:
    """``value`` as text without credentials, clipped to ``limit`` characters with a mark that it was."""
    if _SECRET_NAME.search(name) and value:
        return "***"
    text = redact(str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_params(params: object) -> dict[str, str]:
    """Flattened parameters, ready to log."""
    return {clean_key(name): clean_text(name, value, PARAM_LIMIT) for name, value in flatten(params).items()}


def clean_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags, ready to set."""
    return {clean_key(name): clean_text(name, value, TAG_LIMIT) for name, value in tags.items()}
