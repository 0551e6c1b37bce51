"""A dataset in S3 over the real protocol: written, read by ranges, verified; failures are explained."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from pipeline.errors import HipError, InfrastructureError, UserError
from pipeline.ingest.loader import BatchLoader
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.inspect import inspect_dataset
from pipeline.shards.manifest import Manifest
from pipeline.shards.options import InspectOptions
from pipeline.shards.reader import ShardReader
from pipeline.shards.remote import CacheOptions
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.verify import verify_dataset
from pipeline.shards.writer import ShardWriter

moto = pytest.importorskip("moto.server", reason="needs moto[s3], a test dependency")
pytestmark = pytest.mark.integration

SPEC = ModalitySpec("image", (128, 128), 3, "uint8")
NUM_EXAMPLES = 660


@contextmanager
def s3_server() -> Iterator[str]:
    """A fresh S3 server on this machine with the bucket ``data``; gives the query part of URIs into it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        query = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        fs.FileSystem.from_uri(f"s3://data?{query}&allow_bucket_creation=true")[0].create_dir("data")
        yield query
    finally:
        server.stop()


@pytest.fixture(scope="module", autouse=True)
def _credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="module")
def s3_query(_credentials: None) -> Iterator[str]:
    """The server that most tests share."""
    with s3_server() as query:
        yield query


def example(index: int) -> ExampleRow:
    image = np.random.default_rng(index).integers(0, 256, (16384, 3), dtype=np.uint8)
    return ExampleRow(index.to_bytes(8, "little") + bytes(8), f"{index}.png", 0.0, (), {"image": image})


def write_dataset(location: str, num_examples: int) -> str:
    """Two shards written straight to ``location``."""
    records = []
    for number, part in enumerate(np.array_split(np.arange(num_examples), 2)):
        with ShardWriter(location, f"train-{number:05d}", [SPEC]) as writer:
            for index in part.tolist():
                writer.add(example(index))
            records.append(writer.close())
    Manifest((SPEC,), tuple(records), notes={"source": "images"}).write(location)
    return location


@pytest.fixture(scope="module")
def uri(s3_query: str) -> str:
    """A dataset of 32 MB, two record batches a shard."""
    return write_dataset(f"s3://data/set?{s3_query}", NUM_EXAMPLES)


def test_rows_batches_checksums_and_report_over_s3(uri: str, tmp_path: Path) -> None:
    reader = ShardReader(uri, "train", cache=CacheOptions(str(tmp_path), 0.2))
    wanted = np.array([659, 0, 329, 330, 260])
    batch = reader.read(wanted)
    for slot, index in enumerate(wanted.tolist()):
        assert np.array_equal(batch.arrays["image"][slot], example(index).arrays["image"])
    assert len(list(tmp_path.rglob("*.batch"))) == 4
    assert all(check.sound for check in verify_dataset(uri))
    report = inspect_dataset(InspectOptions(uri, verify=True)).report
    assert "2 shards, 32.5 MB, 0 damaged" in report


def test_block_order_reads_every_record_batch_once_an_epoch(uri: str, tmp_path: Path) -> None:
    reader = ShardReader(uri, "train", cache=CacheOptions(str(tmp_path), 0.2))
    order = ExampleOrder(len(reader), 0, reader.manifest.fingerprint, "blocks", reader.block_bounds(), 2)
    seen: list[int] = []
    with BatchLoader(reader, order, 100, end_examples=len(reader)) as loader:
        for loaded in loader:
            seen += loaded.example_ids.tolist()
    assert sorted(seen) == list(range(NUM_EXAMPLES))


def test_failures_are_explained_without_the_secrets_of_the_uri(s3_query: str) -> None:
    with pytest.raises(UserError, match="not a finished token dataset"):
        ShardReader(f"s3://data/nowhere?{s3_query}")
    with pytest.raises(HipError) as caught:
        ShardReader(f"s3://user:hunter2@data/nowhere?{s3_query}")
    assert "hunter2" not in str(caught.value)


def test_a_server_that_goes_away_is_an_infrastructure_error(tmp_path: Path) -> None:
    with s3_server() as query:
        reader = ShardReader(write_dataset(f"s3://data/set?{query}", 4), cache=CacheOptions(str(tmp_path), 0.2))
        reader.read(np.array([0]))
    with pytest.raises(InfrastructureError, match=r"reading s3://data/set/train-00001\.arrow.* failed"):
        reader.read(np.array([3]))
    assert reader.read(np.array([0])).sources == ["0.png"]  # what is cached needs no server
