"""The command that pretrains a search's winner at full scale."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pipeline.train.differences import flatten
from pipeline.train.options import PretrainOptions
from pipeline.train.resume import options_to_dict
from pipeline.tune.candidates import plain_pretrain_options
from pipeline.tune.options import TuneOptions
from pipeline.tune.results import TrialResult

# What a trial's result depends on, beside what was searched. How long and on what to train is the user's to choose.
_KEPT_GROUPS = (
    "storage", "seed", "modalities", "mask", "loss", "augment", "batch", "optim", "schedule", "guards",
)  # fmt: skip


def pretrain_command(options: TuneOptions, best: TrialResult) -> str:
    """The command that pretrains the winner for longer, ready to paste into a shell.

    It repeats what the search was told about data, batch, mask, loss and optimizer, and leaves the engine and the
    number of workers at the defaults of ``hip pretrain``.
    """
    candidate = best.candidate
    settings = candidate.training_settings
    words = ["hip", "pretrain", f"shards={settings.get('shards', options.shards)}", f"model={candidate.model_name}"]
    words += [f"model.overrides.{key}={_hydra(value)}" for key, value in _changed_fields(candidate.overrides).items()]
    kept = {**_chosen(options), **{key: value for key, value in settings.items() if not key.startswith("duration.")}}
    words += [f"{key}={_hydra(value)}" for key, value in kept.items() if key != "shards"]
    words.append("duration.epochs=100")
    return " ".join(shlex.quote(word) for word in words)


def _chosen(options: TuneOptions) -> dict[str, Any]:
    """What the user set otherwise than ``hip pretrain`` would, by dotted key."""
    plain, usual = plain_pretrain_options(options), PretrainOptions(shards=options.shards)
    mine, theirs = flatten(options_to_dict(plain)), flatten(options_to_dict(usual))
    groups = [field.name for field in fields(PretrainOptions) if field.name in _KEPT_GROUPS]
    return {
        key: value
        for key, value in mine.items()
        if key.partition(".")[0] in groups and value != theirs.get(key) and value != {}
    }


def _changed_fields(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides that say something: fields that are not at their own default."""
    from hip_model.config import HiPConfig

    defaults = {name: field.default for name, field in HiPConfig.__dataclass_fields__.items()}
    return {key: value for key, value in overrides.items() if value is not None and value != defaults.get(key)}


def _hydra(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_hydra(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(entry)}" for key, entry in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
