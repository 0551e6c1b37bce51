"""The plan says what a run fetches from elsewhere, and what to set where that would be nearly everything every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_data import write_dataset

from pipeline.ingest.options import IngestOptions
from pipeline.shards.manifest import Manifest
from pipeline.shards.remote import CacheOptions
from pipeline.train.plan import reading


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A real dataset whose one training shard is said to have 3 GiB."""
    small = Manifest.load(write_dataset(tmp_path_factory.mktemp("data") / "shards", train=8, validation=0))
    (shard,) = small.shards_of("train")
    batches = tuple(replace(batch, bytes=24 * 2**20) for batch in shard.batches)
    return replace(small, shards=(replace(shard, bytes=3 * 2**30, batches=batches),))


def ingest(order: str, limit_gib: float) -> IngestOptions:
    return IngestOptions(order=order, cache=CacheOptions(limit_gib=limit_gib))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ingest("global", 20),
            "3 GiB from elsewhere, fetched once and kept by each machine (ingest.cache.limit_gib=20)",
        ),
        (ingest("blocks", 1), "3 GiB from elsewhere an epoch, each record batch about once; each machine keeps 1 GiB"),
        (
            ingest("global", 1),
            "3 GiB from elsewhere, any example next, and a machine keeps 1 GiB: most examples fetch 24 MiB; "
            "set ingest.order=blocks, or a larger ingest.cache.limit_gib",
        ),
    ],
)
def test_reading_from_elsewhere(manifest: Manifest, options: IngestOptions, said: str) -> None:
    assert reading(options, manifest) == said
