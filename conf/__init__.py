"""Defaults and presets of every verb, one YAML file or group each; ``pipeline.config`` reads them as package data."""
