"""Preprocessing from a bucket into a bucket, over the real protocol: the data of a folder, and no secret kept."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from pipeline.demo.clips import make_demo_clips
from pipeline.errors import UserError
from pipeline.preprocess.lock import dataset_lock
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.registry.predict import list_inputs
from pipeline.registry.work import decode_rows
from pipeline.shards.reader import ShardReader
from pipeline.shards.verify import verify_dataset
from pipeline.storage import list_files, name_of, read_bytes

moto = pytest.importorskip("moto.server", reason="needs moto[s3], a test dependency")
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

RECIPE = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(2, 16, 16), audio=AudioRecipe(1000))
SECRET = "hunter2secret"


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """A fresh S3 server on this machine with the bucket ``data``; gives the query part of URIs into it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    query = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    fs.FileSystem.from_uri(f"s3://key:{SECRET}@data?{query}&allow_bucket_creation=true")[0].create_dir("data")
    yield query
    server.stop()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_demo_clips(folder, 4, seed=7, num_images=1)
    (folder / "broken.mp4").write_bytes(b"not a video " * 30)
    return folder


def options(source: str, shards: str) -> PreprocessOptions:
    return PreprocessOptions(source, shards, RECIPE, validation_fraction=0.3, max_failed_fraction=0.5)


def shard_contents(location: str) -> dict[str, str]:
    return {
        Path(info.path).name: hashlib.sha256(
            read_bytes(location.replace("set", f"set/{Path(info.path).name}"))
        ).hexdigest()
        for info in list_files(location)
        if info.path.endswith(".arrow")
    }


def test_a_bucket_gives_what_a_folder_gives_and_keeps_no_secret(query: str, clips: Path, tmp_path: Path) -> None:
    source, shards = (f"s3://key:{SECRET}@data/{name}?{query}" for name in ("clips", "tokens/set"))
    system, _ = fs.FileSystem.from_uri(source)
    fs.copy_files(str(clips), "data/clips", destination_filesystem=system)
    here = run_preprocess(options(str(clips), str(tmp_path / "set")))
    there = run_preprocess(options(source, shards))
    assert shard_contents(shards) == shard_contents(str(tmp_path / "set"))
    assert (there.counts, there.quarantined) == (here.counts, here.quarantined)
    assert there.quarantined["not_media"] == 1
    assert run_preprocess(options(source, shards)).tasks_run == 0
    assert all(check.sound for check in verify_dataset(shards))
    ours, theirs = (
        ShardReader(place).read(np.arange(here.counts["examples"])) for place in (str(tmp_path / "set"), shards)
    )
    assert ours.sources == theirs.sources
    np.testing.assert_array_equal(ours.arrays["audio"], theirs.arrays["audio"])
    kept = {
        info.path: read_bytes(f"s3://key:{SECRET}@{info.path}?{query}") for info in list_files(shards, recursive=True)
    }
    assert len(kept) > 5
    assert not [path for path, content in kept.items() if SECRET.encode() in content or path.endswith(".lock")]
    assert SECRET not in str(there.manifest)


def test_a_bucket_has_one_writer(query: str, clips: Path) -> None:
    shards = f"s3://key:{SECRET}@data/busy?{query}"
    with dataset_lock(shards), pytest.raises(UserError, match=f"another run.*{os.getpid()}") as caught:
        run_preprocess(options(str(clips), shards))
    assert SECRET not in str(caught.value)
    with dataset_lock(shards):
        pass


def test_a_table_in_a_bucket_names_its_neighbours(query: str, clips: Path, tmp_path: Path) -> None:
    listed = f"s3://key:{SECRET}@data/listed/all.txt?{query}"
    system, path = fs.FileSystem.from_uri(listed)
    fs.copy_files(str(clips), "data/listed", destination_filesystem=system)
    named = sorted(str(file.relative_to(clips)) for file in clips.rglob("*.mp4") if file.name != "broken.mp4")[:2]
    with system.open_output_stream(path) as stream:
        stream.write("\n".join(named).encode())
    assert run_preprocess(options(listed, str(tmp_path / "set"))).counts["files"] == 2
    assert [name_of(source) for source in list_inputs(listed)] == [Path(name).name for name in named]
    rows = list(decode_rows(list_inputs(listed)[0], RECIPE))
    assert {row["error"] for row in rows} == {""}
    assert SECRET not in rows[0]["source"]
    [missing] = decode_rows(f"s3://key:{SECRET}@data/listed/none.mp4?{query}", RECIPE)
    assert missing["error"]
    assert SECRET not in missing["error"] + missing["source"]
