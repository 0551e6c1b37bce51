"""Datasets that a search compares, such as the same media in two token orders: ``search.options={shards: [...]}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.storage import absolute
from pipeline.train.build import TRAIN
from pipeline.train.modalities import manifest_as_read
from pipeline.tune.options import TuneOptions
from pipeline.tune.space import Choice, Space

KEY = "shards"


def with_absolute_datasets(space: Space) -> Space:
    """Local folders in full: trials run in folders of their own.

    Raises:
        UserError: a range of datasets.
    """
    domain = space.domains.get(KEY)
    if domain is None:
        return space
    if not isinstance(domain, Choice):
        raise UserError("search.options.shards: give a list of datasets")
    places = tuple(absolute(place) for place in map(str, domain.values))
    return replace(space, domains={**space.domains, KEY: Choice(places)})


def compared_datasets(space: Space, own: Manifest, options: TuneOptions) -> Mapping[str, Manifest]:
    """The manifest of every dataset in the space, as ``options`` read it, by location.

    Raises:
        UserError: one that is not there, without training examples, or with other inputs than ``own``, on which costs
            are counted.
        DataError: a damaged one.
    """
    domain = space.domains.get(KEY)
    if not isinstance(domain, Choice):
        return {}
    found = {str(place): manifest_as_read(replace(options, shards=str(place))) for place in domain.values}
    for place, manifest in found.items():
        if not manifest.splits.get(TRAIN):
            raise UserError(f"search.options.shards: {place} has no examples in split {TRAIN!r}")
        if _inputs(manifest) != _inputs(own):
            raise UserError(
                f"search.options.shards: {place} has the inputs {_inputs(manifest)}, the search's own shards "
                f"{_inputs(own)}; a search compares trials on the same inputs, so make one search of each"
            )
    return found


def _inputs(manifest: Manifest) -> str:
    return ", ".join(f"{spec.name} {spec.num_tokens}x{spec.num_channels}" for spec in manifest.modalities)
