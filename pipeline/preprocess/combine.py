"""Several finished datasets as one, for training on all of them: a manifest and nothing else is written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.preprocess.lock import dataset_lock
from pipeline.preprocess.plan import load_plan
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.shards.combined import combine, is_combined, joint_modalities
from pipeline.shards.manifest import MANIFEST_NAME, Manifest, Member
from pipeline.storage import absolute, exists, is_local, join, redact

logger = logging.getLogger(__name__)

_TRAIN = "train"


@dataclass(frozen=True)
class CombineOptions:
    """Which datasets, and how often each is drawn."""

    datasets: tuple[str, ...]
    """Folders or URIs of two or more finished datasets."""
    shards: str
    """Folder or URI of the combined one."""
    shares: tuple[float, ...] | None = None
    """Part of what training draws from each, relative to the others; None: each example once an epoch."""

    def __post_init__(self) -> None:
        if not self.shards.strip():
            raise UserError("shards is empty; give the folder of the combined dataset, like shards=/data/all")
        places = [absolute(place) for place in self.datasets]
        if len(set(places)) < 2:
            raise UserError(f"datasets={list(self.datasets)}: name two or more, like datasets=[clips,sounds]")
        if absolute(self.shards) in places:
            raise UserError(f"shards={self.shards} is one of the datasets; give a folder of its own")
        for place in self.datasets:
            if redact(place) != place:
                raise UserError(
                    f"datasets: {redact(place)} has credentials in its URI, which the manifest would show; "
                    "give them by the environment"
                )
        for place, times in Counter(places).items():
            if times > 1:
                raise UserError(f"datasets names {place} {times} times; give it a larger share instead, with shares=")
        if self.shares is None:
            return
        if len(self.shares) != len(self.datasets):
            raise UserError(f"shares has {len(self.shares)} numbers for {len(self.datasets)} datasets; give one each")
        for share in self.shares:
            if not 0 < share < float("inf"):
                raise UserError(f"shares: {share:g} must be above 0 and finite")


def run_combine(options: CombineOptions) -> Manifest:
    """Write the manifest of ``options.shards`` and return it; the datasets stay where they are.

    Raises:
        UserError: a dataset is missing, two do not fit each other, or ``shards`` holds tokens of its own.
        DataError: a damaged manifest.
    """
    with dataset_lock(options.shards):
        _check_free(options.shards)
        members = _members(options)
        modalities = joint_modalities(members)
        recipe = _recipe(members)
        if recipe is None or {spec.name: spec for spec in recipe.specs()} != {spec.name: spec for spec in modalities}:
            recipe = None
            logger.warning(
                "the datasets were made by recipes that cannot be one (their clips, or the order of their tokens, "
                "differ): models trained on them cannot be registered, nor read raw media"
            )
        here = [member.uri for member in members if is_local(member.uri)]
        if here and not is_local(options.shards):
            logger.warning("%s is on this machine: other machines that read %s need it too", here[0], options.shards)
        manifest = combine(members, _lineage(members, recipe))
        manifest.write(options.shards)
    return manifest


def _check_free(shards: str) -> None:
    if load_plan(shards) is not None or (exists(join(shards, MANIFEST_NAME)) and not is_combined(shards)):
        raise UserError(f"{redact(shards)} holds a dataset with tokens of its own; give another folder for the new one")


def _members(options: CombineOptions) -> list[Member]:
    total = sum(options.shares or ())
    members = []
    for number, place in enumerate(options.datasets):
        manifest = Manifest.load(place)
        if manifest.members:
            inside = ", ".join(redact(member.uri) for member in manifest.members)
            raise UserError(f"{redact(place)} is a combined dataset itself; name what it is made of: {inside}")
        share = options.shares[number] / total if options.shares else None
        if share is not None and not manifest.splits.get(_TRAIN):
            raise UserError(f"{redact(place)} has no training examples to take a share of; leave it out of shares=")
        members.append(Member(absolute(place), manifest, share))
    return members


def _recipe(members: Sequence[Member]) -> TokenRecipe | None:
    """One recipe that samples every modality as its dataset did; None where a dataset was not made by one."""
    try:
        recipes = [TokenRecipe.from_dict(member.manifest.lineage["recipe"]) for member in members]
    except (KeyError, TypeError, UserError):
        return None
    merged: dict[str, Any] = {}
    for recipe in sorted(recipes, key=_settings_that_count, reverse=True):
        for key, value in recipe.to_dict().items():
            if merged.get(key) is None:
                merged[key] = value
    return TokenRecipe.from_dict(merged)


def _settings_that_count(recipe: TokenRecipe) -> tuple[bool, bool]:
    """Clips are cut for video and sound only, and points have a token order of their own."""
    clips = recipe.video is not None or recipe.audio is not None
    return clips, clips or recipe.image is not None


def _lineage(members: Sequence[Member], recipe: TokenRecipe | None) -> dict[str, Any]:
    classes: dict[str, Counter[str]] = {}
    for member in members:
        for name, counts in member.manifest.lineage.get("class_examples", {}).items():
            classes.setdefault(name, Counter()).update(counts)
    return {
        "recipe": {} if recipe is None else recipe.to_dict(),
        "class_examples": {name: dict(sorted(counts.items())) for name, counts in sorted(classes.items())},
    }
