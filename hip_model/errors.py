"""The two ways a model can be misused, each with a message that says what would fit."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration no model can be built from."""


class InputError(ValueError):
    """An input that does not fit the model it was given to."""
