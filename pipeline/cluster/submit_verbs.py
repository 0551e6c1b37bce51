"""The verbs that can be sent to a cluster: their options, which keys name places, and what tells two runs apart."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config import load_options
from pipeline.errors import UserError, nearest
from pipeline.storage import is_local


@dataclass(frozen=True)
class SentVerb:
    """How one verb is sent."""

    options: str  # module:class
    places: tuple[str, ...]  # keys that are always folders, files or URIs
    names: tuple[str, ...] = ()  # keys that are a place or a name
    identity: tuple[str, ...] = ()  # keys that make it the same run; none: all of them
    in_driver: bool = False  # the work is done by the verb's own process


SENT_VERBS = {
    "preprocess": SentVerb(
        "pipeline.preprocess.options:PreprocessOptions", ("source", "shards", "media_root"), identity=("shards",)
    ),
    "combine": SentVerb(
        "pipeline.preprocess.combine:CombineOptions", ("datasets", "shards"), identity=("shards",), in_driver=True
    ),
    "inspect": SentVerb("pipeline.shards.options:InspectOptions", ("shards",), in_driver=True),
    "pretrain": SentVerb(
        "pipeline.train.options:PretrainOptions",
        ("shards", "storage"),
        ("init",),
        ("storage", "run.name"),
    ),
    "tune": SentVerb("pipeline.tune.options:TuneOptions", ("shards", "storage"), identity=("storage", "search.name")),
    "finetune": SentVerb(
        "pipeline.evaluate.finetune_options:FinetuneOptions",
        ("shards", "storage"),
        ("init",),
        ("storage", "run.name"),
    ),
    "evaluate": SentVerb(
        "pipeline.evaluate.options:EvaluateOptions",
        ("shards", "storage", "output", "export", "embed.cache", "segmentation.voc"),
        ("model",),
        in_driver=True,
    ),
    "register": SentVerb("pipeline.registry.options:RegisterOptions", ("storage",), ("run",), in_driver=True),
    "promote": SentVerb("pipeline.registry.options:PromoteOptions", ("storage", "shards"), in_driver=True),
    "predict": SentVerb(
        "pipeline.registry.options:PredictOptions", ("input", "output", "storage"), ("model",), in_driver=True
    ),
}


def sent_verb(name: str | None) -> SentVerb:
    """The entry of verb ``name``.

    Raises:
        UserError: no verb was given, or one that cannot be sent.
    """
    if name is None:
        raise UserError(
            f"job is required: hip submit job=pretrain address=http://head:8265 … ({', '.join(SENT_VERBS)})"
        )
    if name not in SENT_VERBS:
        raise UserError(f"job={name} cannot be sent to a cluster: {nearest(name, SENT_VERBS)}")
    return SENT_VERBS[name]


def verb_options(name: str | None, overrides: list[str]) -> Any:
    """The verb's options, composed and checked here as they will be on the cluster.

    Raises:
        UserError: as the verb itself would.
    """
    module, _, options_class = sent_verb(name).options.partition(":")
    assert name is not None
    options = load_options(getattr(importlib.import_module(module), options_class), name, overrides)
    if name in ("pretrain", "tune"):
        from pipeline.train.checks import check_options

        check_options(options)
    return options


def value_of(options: Any, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        options = getattr(options, part)
    return options


def check_places(name: str, options: Any) -> list[str]:
    """The local folders that the job uses, after refusing those that the cluster cannot find.

    Raises:
        UserError: a path that is relative to this machine's current folder or home, or a Ray of the job's own.
    """
    verb, found = sent_verb(name), []
    for key, value in _places_of(verb, options):
        if not is_local(value):
            continue
        path = str(value).removeprefix("file://")
        if key in verb.names and not path.startswith((".", "~", "/")):
            continue  # a run's or model's name
        if not path.startswith("/"):
            raise UserError(
                f"{key}={value} is relative to this machine; give {key}=s3://bucket/… or an absolute folder that every "
                f"node of the cluster mounts, such as {key}=/shared/{key.rpartition('.')[2]}"
            )
        found.append(f"{key}={value}")
    ray = getattr(options, "ray", None)
    if ray is not None and ray.address is not None:
        raise UserError(f"ray.address={ray.address}: a submitted job uses the cluster it was sent to; leave it out")
    return found


def _places_of(verb: SentVerb, options: Any) -> Iterator[tuple[str, str]]:
    for key in (*verb.places, *verb.names):
        value = value_of(options, key)
        for place in value if isinstance(value, tuple) else (value,):
            if place is not None:
                yield key, place


def submission_base(name: str, options: Any) -> str:
    """The submission id of this run without the number of the attempt: the same run has the same one, always."""
    identity = {key: value_of(options, key) for key in sent_verb(name).identity}
    label = str(identity.get("run.name") or identity.get("search.name") or "")
    if not identity or (not label and name != "preprocess"):
        identity = dataclasses.asdict(options)
    text = json.dumps({"verb": name, **identity}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    label = label or _place_label(options)
    return "-".join(part for part in ("hip", name, _slug(label), digest) if part)


def _place_label(options: Any) -> str:
    place = getattr(options, "shards", None) or getattr(options, "input", None) or getattr(options, "name", "")
    return str(place).rstrip("/").rpartition("/")[2]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].strip("-")
