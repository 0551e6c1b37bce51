"""From YAML and overrides to one typed, validated options object."""

from pipeline.config.build import build_options
from pipeline.config.compose import compose_config, load_options

__all__ = ["build_options", "compose_config", "load_options"]
