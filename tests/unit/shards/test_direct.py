"""Files written past the page cache hold what was written, whatever the sizes and whatever the file system can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards import direct
from pipeline.shards.direct import DirectFile, on_a_disk_here

BLOCK = direct._BLOCK_BYTES
SIZES = st.lists(
    st.one_of(st.integers(0, 9_000), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 4_096])), max_size=6
)


def write(path: Path, sizes: list[int], past_cache: bool) -> bytes:
    """Write pieces of those sizes; what they hold together."""
    content = np.random.default_rng(len(sizes)).integers(0, 256, sum(sizes), np.uint8).tobytes()
    file, start = DirectFile(path, past_cache), 0
    for size in sizes:
        assert file.write(memoryview(content)[start : start + size]) == size
        start += size
    file.sync()
    file.close()
    file.close()
    return content


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, past_cache=st.booleans())
def test_the_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], past_cache: bool
) -> None:
    path = tmp_path_factory.mktemp("direct") / "shard"
    assert write(path, sizes, past_cache) == path.read_bytes()


def is_cached(path: Path) -> bool:
    """Whether the system has the file's first page in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(4_096)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_only_with_past_cache_nothing_is_left_in_memory(tmp_path: Path) -> None:
    if not on_a_disk_here(tmp_path):
        pytest.skip("the temporary folder is on no disk of this machine")
    for past_cache in (True, False):
        write(tmp_path / "shard", [3 * BLOCK], past_cache)
        assert is_cached(tmp_path / "shard") is not past_cache


@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_that_refuses_is_written_through_its_cache(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "on_a_disk_here", lambda folder: True)
    refusals: list[int] = []
    system_open, system_write = os.open, os.write

    def open_it(path: Path, flags: int, mode: int) -> int:
        if refused == "open" and flags & os.O_DIRECT:
            refusals.append(flags)
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_open(path, flags, mode)

    def write_it(descriptor: int, content: memoryview) -> int:
        if refused == "write" and not refusals:
            refusals.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_write(descriptor, content)

    monkeypatch.setattr(direct.os, "open", open_it)
    monkeypatch.setattr(direct.os, "write", write_it)
    content = write(tmp_path / "shard", [2 * BLOCK + 17], past_cache=True)
    assert len(refusals) == 1
    assert content == (tmp_path / "shard").read_bytes()


def test_a_disk_that_takes_less_than_it_is_given_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_write = os.write
    monkeypatch.setattr(direct.os, "write", lambda descriptor, content: system_write(descriptor, content[:65_536]))
    content = write(tmp_path / "shard", [BLOCK + 100_000, 5], past_cache=True)
    assert content == (tmp_path / "shard").read_bytes()


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct.os, "write", full)
    file = DirectFile(tmp_path / "shard", past_cache=True)
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(BLOCK))
    file.close()
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "missing" / "shard", past_cache=True)
