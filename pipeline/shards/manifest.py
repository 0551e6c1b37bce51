"""``manifest.json``: what a dataset is, written last; its fingerprint stands for the data everywhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.errors import DataError, UserError, nearest
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import FORMAT_VERSION, ModalitySpec, canonical_json, check_format_version
from pipeline.shards.statistics import ChannelSums
from pipeline.storage import exists, join, read_bytes, redact, write_atomic

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Member:
    """A dataset inside a combined one: where it is, and which part of the training draws come from it."""

    uri: str
    manifest: Manifest
    share: float | None  # none: each example once an epoch


@dataclass(frozen=True)
class Manifest:
    """One dataset: modalities, shards in order, label names and lineage.

    ``lineage`` (recipe, source, config, code version) is part of the fingerprint; ``notes`` (wall-clock times, host
    names) is not. A combined dataset has ``members``, whose shards it lists under ``<number>/<name>``.
    """

    modalities: tuple[ModalitySpec, ...]
    shards: tuple[ShardRecord, ...]
    label_names: tuple[str, ...] = ()
    lineage: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise DataError("the manifest lists a shard twice")

    @classmethod
    def load(cls, uri: str) -> Manifest:
        """Read the manifest of the dataset folder ``uri``.

        Raises:
            UserError: no dataset there, or one of a newer format.
            DataError: the manifest is damaged, was edited, or points outside its folder.
        """
        location = join(str(uri), MANIFEST_NAME)
        shown = redact(location)
        if not exists(location):
            raise UserError(
                f"{redact(str(uri))} is not a finished token dataset (no {MANIFEST_NAME}); "
                f"make or finish it with: hip preprocess source=<media> shards={redact(str(uri))}"
            )
        try:
            values = json.loads(read_bytes(location))
        except ValueError as error:
            raise DataError(f"{shown} is damaged: {error}; run hip preprocess again to rewrite it") from error
        if not isinstance(values, dict):
            raise DataError(f"{shown} is not a manifest; run hip preprocess again to rewrite it")
        check_format_version(values.get("format_version"), shown)
        if "members" in values:
            from pipeline.shards.combined import load_members  # which is built on this

            manifest = load_members(values, shown)
        else:
            manifest = cls.from_dict(values)
        if values.get("fingerprint") != manifest.fingerprint:
            raise DataError(
                f"{shown} does not match its own fingerprint: it was edited or damaged; "
                "run hip preprocess again to rewrite it"
            )
        return manifest

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Read what ``to_dict`` gave, without trusting it.

        Raises:
            DataError: a missing key or a value of the wrong kind.
        """
        try:
            return cls(
                modalities=tuple(ModalitySpec.from_dict(spec) for spec in values["modalities"]),
                shards=tuple(ShardRecord.from_dict(shard) for shard in values["shards"]),
                label_names=tuple(str(name) for name in values["label_names"]),
                lineage=dict(values["lineage"]),
                notes=dict(values.get("notes", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the manifest is incomplete or damaged: {error!r}") from error

    def read_as(self, modalities: Sequence[ModalitySpec]) -> Manifest:
        """The same dataset, of which ``modalities`` are read; what it does not have is missing from every example."""
        view = replace(self, modalities=tuple(modalities))
        view.__dict__["fingerprint"] = self.fingerprint  # the data are the same, whatever is read of them
        return view

    def place_of(self, uri: str, shard_name: str) -> tuple[str, Manifest, str]:
        """Folder and manifest of the dataset that has a shard of this one at ``uri``, and the shard's name there."""
        if not self.members:
            return uri, self, shard_name
        number, _, own_name = shard_name.partition("/")
        member = self.members[int(number)]
        return member.uri, member.manifest, own_name

    def places(self, uri: str) -> list[tuple[str, Manifest]]:
        """Folder and manifest of each dataset that has the shards: this one at ``uri``, or its members."""
        return [(member.uri, member.manifest) for member in self.members] or [(uri, self)]

    def write(self, uri: str) -> None:
        """Write ``manifest.json`` into the dataset folder, atomically; call it last."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_atomic(join(str(uri), MANIFEST_NAME), text.encode() + b"\n")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the derived counts and the fingerprint."""
        members = [{**_described(member), "uri": member.uri} for member in self.members]
        return {
            **self._defining(),
            **({"members": members} if members else {}),
            "fingerprint": self.fingerprint,
            "num_examples": self.num_examples(),
            "splits": self.splits,
            "statistics": {name: describe(sums) for name, sums in self.statistics().items()},
            "notes": self.notes,
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that defines the data; equal for equal data, wherever and whenever made."""
        return "sha256:" + hashlib.sha256(canonical_json(self._defining()).encode()).hexdigest()

    @property
    def splits(self) -> dict[str, int]:
        """Examples of each split."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.split] = counts.get(shard.split, 0) + shard.rows
        return counts

    def num_examples(self, split: str | None = None) -> int:
        """Examples of one split, or of all."""
        return sum(shard.rows for shard in self.shards_of(split))

    def shards_of(self, split: str | None) -> tuple[ShardRecord, ...]:
        """The shards of one split in manifest order; None is all.

        Raises:
            UserError: no such split.
        """
        if split is None:
            return self.shards
        if split not in self.splits:
            raise UserError(f"the dataset has no split {split!r}; {nearest(split, self.splits)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def statistics(self, split: str | None = None) -> dict[str, ChannelSums]:
        """Sums per modality over one split, or over all; a modality that no example has is absent."""
        merged: dict[str, ChannelSums] = {}
        for shard in self.shards_of(split):
            for name, sums in shard.statistics.items():
                merged[name] = merged[name] + sums if name in merged else sums
        return merged

    def normalisation(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Mean and std per channel in raw units, of the training split (of all if there is none).

        A constant channel gets std 1, so that dividing by it is harmless; a modality that no example has gets mean
        0, std 1.
        """
        sums = self.statistics("train" if self.splits.get("train") else None)
        return {spec.name: _mean_and_std(spec, sums.get(spec.name)) for spec in self.modalities}

    def data_card(self) -> dict[str, Any]:
        """What a model has to remember of its data."""
        return {
            "modalities": [spec.to_dict() for spec in self.modalities],
            "normalisation": {
                name: {"mean": list(mean), "std": list(std)} for name, (mean, std) in self.normalisation().items()
            },
            "label_names": list(self.label_names),
            "recipe": self.lineage.get("recipe", {}),
            "fingerprint": self.fingerprint,
        }

    def _defining(self) -> dict[str, Any]:
        if self.members:  # wherever they are
            members = [_described(member) for member in self.members]
            return {"format_version": FORMAT_VERSION, "members": members, "lineage": self.lineage}
        return {
            "format_version": FORMAT_VERSION,
            "modalities": [spec.to_dict() for spec in self.modalities],
            "shards": [shard.to_dict() for shard in self.shards],
            "label_names": list(self.label_names),
            "lineage": self.lineage,
        }


def _described(member: Member) -> dict[str, Any]:
    return {"fingerprint": member.manifest.fingerprint, "share": member.share}


def describe(sums: ChannelSums) -> dict[str, Any]:
    """Statistics as people read them: per channel, raw units."""
    return {
        "examples": sums.examples,
        "count": sums.count,
        "mean": list(sums.mean),
        "std": list(sums.std),
        "min": list(sums.minimum),
        "max": list(sums.maximum),
    }


def _mean_and_std(spec: ModalitySpec, sums: ChannelSums | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if sums is None:
        return (0.0,) * spec.num_channels, (1.0,) * spec.num_channels
    return sums.mean, tuple(std or 1.0 for std in sums.std)
