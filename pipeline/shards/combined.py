"""Several datasets as one: a manifest that names them, each modality of any of them, and no copy of a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from pipeline.errors import DataError, UserError
from pipeline.shards.block import Block
from pipeline.shards.data_fit import COMPARED
from pipeline.shards.local import LocalBlocks
from pipeline.shards.manifest import MANIFEST_NAME, Manifest, Member
from pipeline.shards.remote import CacheOptions, RemoteBlocks
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import exists, is_local, join, read_bytes, redact


def combine(members: Sequence[Member], lineage: dict[str, Any]) -> Manifest:
    """The manifest of ``members`` as one dataset; an example lacks the modalities that its own dataset lacks.

    Raises:
        UserError: two of them have a modality of one name and different content.
    """
    return Manifest(
        modalities=joint_modalities(members),
        shards=tuple(
            replace(shard, name=f"{number}/{shard.name}")
            for number, member in enumerate(members)
            for shard in member.manifest.shards
        ),
        label_names=_label_names(members),
        lineage=lineage,
        members=tuple(members),
    )


def load_members(values: dict[str, Any], shown: str) -> Manifest:
    """The manifest behind the JSON ``values`` of a combined one, which ``shown`` is called in messages.

    Raises:
        UserError: a member is not there, or has changed since.
        DataError: ``values`` or a member's manifest is damaged.
    """
    members = []
    try:
        for entry in values["members"]:
            uri, share = str(entry["uri"]), entry["share"]
            manifest = Manifest.load(uri)
            if manifest.fingerprint != entry["fingerprint"]:
                raise UserError(
                    f"{redact(uri)} is not the dataset that {shown} combined: fingerprint {entry['fingerprint'][:19]} "
                    f"then, {manifest.fingerprint[:19]} now; hip combine again takes it as it is, for new runs"
                )
            members.append(Member(uri, manifest, None if share is None else float(share)))
        return combine(members, dict(values["lineage"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{shown} is incomplete or damaged: {error!r}") from error


def is_combined(uri: str) -> bool:
    """Whether there is a combined dataset at ``uri``, its members as they were or not."""
    location = join(uri, MANIFEST_NAME)
    with suppress(ValueError):
        return exists(location) and "members" in json.loads(read_bytes(location))
    return False


def label_numbers(manifest: Manifest, split: str | None) -> list[list[int]]:
    """For each shard of a split, the numbers in this dataset of the labels that its own dataset numbers from 0.

    Nothing for a dataset that is not combined: there they are the same.
    """
    numbers = {name: number for number, name in enumerate(manifest.label_names)}
    of_members = [[numbers[name] for name in member.manifest.label_names] for member in manifest.members]
    return [of_members[int(shard.name.partition("/")[0])] for shard in manifest.shards_of(split) if of_members]


def draw_weights(manifest: Manifest, split: str) -> np.ndarray | None:
    """How often each example of a split is drawn relative to the others [N]; None where each is once an epoch."""
    parts = []
    for member in manifest.members:
        rows = member.manifest.splits.get(split, 0)
        if member.share is None:
            return None
        if rows:
            parts.append(np.full(rows, member.share / rows))
    return np.concatenate(parts) if parts else None


def ends_of_unlike(manifest: Manifest, split: str) -> np.ndarray | None:
    """Examples of a split up to the end of each member, int64 [members]; None where all have the same modalities."""
    kinds = {tuple(sorted(spec.name for spec in member.manifest.modalities)) for member in manifest.members}
    if len(kinds) < 2:
        return None
    return np.cumsum([member.manifest.splits.get(split, 0) for member in manifest.members], dtype=np.int64)


class Blocks(Protocol):
    """The record batches of a dataset, by number of the shard and place in it."""

    cache_blocks: int | None

    def block(self, shard: int, index: int) -> Block:
        """One of them, opened."""

    def expect(self, shards_blocks_rows: Sequence[tuple[int, int, Sequence[int]]], names: Sequence[str]) -> None:
        """Say which rows this thread reads next, and which modalities of them."""

    def fetch(self, shard: int, index: int) -> None:
        """Bring one to this machine."""

    def forget(self, shard: int, index: int) -> bool:
        """Drop a copy that is damaged; whether there was one."""

    def close(self) -> None:
        """Let go of all of them."""


def open_blocks(uri: str, manifest: Manifest, split: str | None, cache: CacheOptions) -> Blocks:
    """The record batches of a split (None: of all), wherever they are."""
    if manifest.members:
        return CombinedBlocks(manifest, split, cache)
    shards = manifest.shards_of(split)
    if is_local(uri):
        return LocalBlocks(uri, manifest, shards)
    return RemoteBlocks(uri, manifest, shards, cache)


class CombinedBlocks:
    """The record batches of several datasets, numbered one dataset after the other."""

    def __init__(self, manifest: Manifest, split: str | None, cache: CacheOptions) -> None:
        with_rows = [member for member in manifest.members if split is None or split in member.manifest.splits]
        self._parts = [open_blocks(member.uri, member.manifest, split, cache) for member in with_rows]
        counts = [len(member.manifest.shards_of(split)) for member in with_rows]
        self._starts = np.cumsum([0, *counts])
        held = [part.cache_blocks for part in self._parts if part.cache_blocks is not None]
        self.cache_blocks = min(held) if held else None  # they share one folder

    def block(self, shard: int, index: int) -> Block:
        """Record batch ``index`` of shard number ``shard``."""
        part, own = self._own(shard)
        return part.block(own, index)

    def expect(self, shards_blocks_rows: Sequence[tuple[int, int, Sequence[int]]], names: Sequence[str]) -> None:
        """Say which rows this thread reads next, and which modalities of them."""
        for place, part in enumerate(self._parts):
            first, end = self._starts[place : place + 2].tolist()
            wanted = [(shard - first, index, rows) for shard, index, rows in shards_blocks_rows if first <= shard < end]
            if wanted:
                part.expect(wanted, names)

    def fetch(self, shard: int, index: int) -> None:
        """Bring a record batch to this machine."""
        part, own = self._own(shard)
        part.fetch(own, index)

    def forget(self, shard: int, index: int) -> bool:
        """Drop a copy that is damaged; whether there was one."""
        part, own = self._own(shard)
        return part.forget(own, index)

    def close(self) -> None:
        """Let go of all of them."""
        for part in self._parts:
            part.close()

    def _own(self, shard: int) -> tuple[Blocks, int]:
        """The dataset that has a shard, and the shard's number there."""
        place = int(np.searchsorted(self._starts, shard, side="right")) - 1
        return self._parts[place], shard - int(self._starts[place])


def joint_modalities(members: Sequence[Member]) -> tuple[ModalitySpec, ...]:
    """Each modality of any of them, in the order of their first appearance.

    Raises:
        UserError: two of them have a modality of one name and different content.
    """
    found: dict[str, tuple[ModalitySpec, str]] = {}
    for member in members:
        for spec in member.manifest.modalities:
            known, where = found.setdefault(spec.name, (spec, member.uri))
            there, here = known.to_dict(), spec.to_dict()
            differences = [f"{key} {there[key]} and {here[key]}" for key in COMPARED if there[key] != here[key]]
            if differences:
                raise UserError(
                    f"{redact(where)} and {redact(member.uri)} both have {spec.name!r}, with {', '.join(differences)}; "
                    "preprocess one of them with the other's tokens"
                )
    return tuple(spec for spec, _ in found.values())


def _label_names(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for member in members for name in member.manifest.label_names))
